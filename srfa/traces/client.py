"""The load generator's own view of a run: the result file of ``vllm bench serve --save-result --save-detailed``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from srfa.errors import DataInvalidError
from srfa.units import US_PER_MS, US_PER_S

IDENTITY_TOLERANCE: Final = 0.02
"""How far TTFT + TPOT x (n - 1) may lie from the end-to-end time, and a file's own mean from its values (ratio)."""


class _ResultFile(BaseModel):
    """The keys of the result file that are used; times as the file has them, in seconds (means in milliseconds)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    duration: float = Field(gt=0)
    completed: int = Field(ge=0)
    input_lens: tuple[int, ...]
    output_lens: tuple[int, ...]
    ttfts: tuple[float, ...]
    itls: tuple[tuple[float, ...], ...]
    errors: tuple[str | None, ...]
    start_times: tuple[float, ...] | None = None
    latencies: tuple[float, ...] | None = None
    request_ids: tuple[str, ...] | None = None
    mean_ttft_ms: float | None = None

    @model_validator(mode="after")
    def _one_length(self) -> _ResultFile:
        lengths = {
            name: len(values) for name in type(self).model_fields if isinstance(values := getattr(self, name), tuple)
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(f"per-request lists differ in length: {lengths}")
        return self


@dataclass(frozen=True, slots=True)
class ClientResult:
    """What the client sent and received, one entry a request in the order of the file; all arrays (n_requests,).

    Parameters
    ----------
    request_ids
        The ids the client sent in ``x-request-id``; None where the file does not keep them.
    output_tokens
        0 for a request that failed.
    start_us
        The client's monotonic clock when it sent the request; NaN where unknown.
    e2e_us
        From sending the request to its last token.
    itl_us
        Times between consecutive chunks, a list a request.
    duration_us
        Length of the whole run.
    """

    request_ids: tuple[str, ...] | None
    succeeded: NDArray[np.bool_]
    errors: tuple[str, ...]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    start_us: NDArray[np.float64]
    ttft_us: NDArray[np.float64]
    e2e_us: NDArray[np.float64]
    itl_us: pa.ListArray[Any]
    duration_us: float

    @property
    def failed_ratio(self) -> float:
        """Share of the requests that failed; 1 where none was sent."""
        return float(np.mean(~self.succeeded)) if self.succeeded.size else 1.0


def parse_client(document: bytes, *, name: str = "client.json") -> ClientResult:
    """Return the client's view, in microseconds, after checking that its times agree with each other.

    Raises
    ------
    DataInvalidError
        The file is not such a result; or, named at the start of the text: ``client_completed`` (its count of completed
        requests is not that of its lists), ``client_units`` (its times are not seconds), ``client_half_itl`` (more
        chunks than tokens, so that its inter-token latency is a fraction of the truth), ``client_identity``
        (TTFT + TPOT x (n - 1) is not the end-to-end time within 2 % for 99 % of the requests).
    """
    found = _load(document, name)
    result = _convert(found)
    for problem in (_completed_problem, _units_problem, _half_itl_problem, _identity_problem):
        if sentence := problem(found, result):
            raise DataInvalidError(f"{name}: {sentence}")
    return result


def _load(document: bytes, name: str) -> _ResultFile:
    remedy = "expected the file of vllm bench serve --save-result --save-detailed"
    try:
        return _ResultFile.model_validate(json.loads(document))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise DataInvalidError(f"{name}: {place}: {first['msg']}; {remedy}") from error
    except ValueError as error:
        raise DataInvalidError(f"{name}: not JSON ({error}); {remedy}") from error


def _convert(found: _ResultFile) -> ClientResult:
    ttft_us = np.asarray(found.ttfts, dtype=np.float64) * US_PER_S
    offsets = np.concatenate([[0], np.cumsum([len(itl) for itl in found.itls], dtype=np.int64)])
    itl_us = np.asarray([itl for itls in found.itls for itl in itls], dtype=np.float64) * US_PER_S
    output_tokens = np.asarray(found.output_lens, dtype=np.int64)
    summed_us = ttft_us + _sum_by_row(itl_us, offsets)
    start_times = found.start_times or np.full(ttft_us.size, np.nan)
    latencies_us = summed_us if found.latencies is None else np.asarray(found.latencies, dtype=np.float64) * US_PER_S
    return ClientResult(
        request_ids=found.request_ids,
        succeeded=(output_tokens > 0) & np.asarray([not error for error in found.errors], dtype=np.bool_),
        errors=tuple(error or "" for error in found.errors),
        prompt_tokens=np.asarray(found.input_lens, dtype=np.int64),
        output_tokens=output_tokens,
        start_us=np.asarray(start_times, dtype=np.float64) * US_PER_S,
        ttft_us=ttft_us,
        e2e_us=latencies_us,
        itl_us=pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(itl_us)),
        duration_us=found.duration * US_PER_S,
    )


def _sum_by_row(values: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum of each slice ``values[offsets[i]:offsets[i + 1]]``, 0 for an empty one."""
    rows = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    return np.bincount(rows, weights=values, minlength=offsets.size - 1).astype(np.float64)


def _completed_problem(found: _ResultFile, result: ClientResult) -> str | None:
    succeeded = int(result.succeeded.sum())
    if succeeded == found.completed:
        return None
    return f"client_completed: completed={found.completed}, but {succeeded} requests have output and no error"


def _units_problem(found: _ResultFile, result: ClientResult) -> str | None:
    e2e_us, ttft_us = result.e2e_us[result.succeeded], result.ttft_us[result.succeeded]
    if not e2e_us.size:
        return None
    if e2e_us.max() > result.duration_us * (1 + IDENTITY_TOLERANCE):
        return (
            f"client_units: a request took {e2e_us.max():.6g} us of a run of {result.duration_us:.6g} us; "
            "times in this file must be seconds"
        )
    mean_us = None if found.mean_ttft_ms is None else found.mean_ttft_ms * US_PER_MS
    if mean_us is not None and abs(mean_us - ttft_us.mean()) > IDENTITY_TOLERANCE * mean_us:
        return (
            f"client_units: mean_ttft_ms={found.mean_ttft_ms:.6g}, but ttfts average {ttft_us.mean():.6g} us; "
            "ttfts must be seconds"
        )
    return None


def _half_itl_problem(_: _ResultFile, result: ClientResult) -> str | None:
    several = result.succeeded & (result.output_tokens > 1)
    if not several.any():
        return None
    gaps = np.diff(result.itl_us.offsets.to_numpy())[several]
    chunks_per_token = float(np.median(gaps / (result.output_tokens[several] - 1)))
    if chunks_per_token <= 1 + IDENTITY_TOLERANCE:
        return None
    return (
        f"client_half_itl: {chunks_per_token:.3g} chunks a token, so its inter-token latencies are "
        f"{1 / chunks_per_token:.2g} x the truth; use a load generator that times tokens, not stream chunks"
    )


def _identity_problem(_: _ResultFile, result: ClientResult) -> str | None:
    e2e_us = result.e2e_us[result.succeeded]
    itl_us, offsets = result.itl_us.values.to_numpy(), result.itl_us.offsets.to_numpy().astype(np.int64)
    summed_us = (result.ttft_us + _sum_by_row(itl_us, offsets))[result.succeeded]
    broken = np.abs(summed_us - e2e_us) > IDENTITY_TOLERANCE * e2e_us
    if not broken.any() or broken.mean() <= 0.01:
        return None
    worst = int(np.argmax(np.abs(summed_us - e2e_us)))
    return (
        f"client_identity: TTFT + TPOT x (n - 1) = {summed_us[worst]:.6g} us, but end to end {e2e_us[worst]:.6g} us "
        f"(limit {IDENTITY_TOLERANCE:.0%}; {int(broken.sum())} of {broken.size} requests)"
    )
