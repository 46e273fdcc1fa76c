"""What requests experienced, measured and simulated, and how far the two lie apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from srfa.closed_loop_report import Compared, Metric, Pair
from srfa.metrics import PERCENT
from srfa.ragged import FloatArray, Ragged
from srfa.simulate.client_file import inter_token_us
from srfa.simulate.served import Served
from srfa.units import NS_PER_US, US_PER_S

View = Literal["client", "engine"]
_TAILS = {"p50": (0.5, 1), "p90": (0.9, 10), "p99": (0.99, 100)}
"""By percentile: its level, and the requests below which it is one request's luck."""


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """Times of the requests of one job, microseconds, NaN where unknown; every array but one has one entry a request.

    Parameters
    ----------
    ttft_us, e2e_us
        Arrival to first and to last token, as ``view`` has it: the client's, or the engine's own.
    itl_us
        Gaps between tokens, of all requests together, shape ``(n_gaps,)``.
    span_us
        First arrival to last finish, on the engine's clock.
    """

    view: View
    ttft_us: FloatArray
    e2e_us: FloatArray
    output_tokens: FloatArray
    itl_us: FloatArray
    span_us: float

    @property
    def tpot_us(self) -> FloatArray:
        """Mean time of a token after the first; NaN where there is none."""
        rest = self.output_tokens - 1.0
        return np.divide(self.e2e_us - self.ttft_us, rest, out=np.full_like(rest, np.nan), where=rest > 0)

    @property
    def throughput_tokens_per_s(self) -> float:
        """Output tokens a second, from the first arrival to the last finish."""
        return float(self.output_tokens.sum() / self.span_us * US_PER_S) if self.span_us > 0 else float("nan")


def measured_times(requests: pa.Table) -> RequestTimes:
    """Read them off rows of the requests table; the engine's view where no row has the client's."""
    arrived, first, finished = (
        _numbers(requests, name) / NS_PER_US for name in ("t_arrived_ns", "t_first_token_ns", "t_finished_ns")
    )
    tokens, span_us = _numbers(requests, "output_tokens"), float(np.nanmax(finished) - np.nanmin(arrived))
    if requests["ttft_us"].null_count == requests.num_rows:
        return RequestTimes("engine", first - arrived, finished - arrived, tokens, np.empty(0), span_us)
    ttft, e2e = _numbers(requests, "ttft_us"), _numbers(requests, "e2e_us")
    return RequestTimes("client", ttft, e2e, tokens, Ragged.from_arrow(requests["itl_us"]).values, span_us)


def served_times(served: Served, view: View) -> RequestTimes:
    """Read them off a simulation; gaps between tokens only where it kept its steps."""
    arrived, finished = served.t_arrived_us, served.t_finished_us
    tokens, span_us = served.output_tokens.astype(np.float64), float(finished.max() - arrived.min())
    if view == "engine":
        first = served.t_first_token_us
        return RequestTimes("engine", first - arrived, finished - arrived, tokens, np.empty(0), span_us)
    gaps = inter_token_us(served, served.steps) if served.steps else np.empty(0)
    return RequestTimes("client", served.ttft_us, served.e2e_us, tokens, gaps, span_us)


def measured_means(times: RequestTimes) -> dict[Metric, float]:
    """Return the mean of every metric that was measured, microseconds, and tokens a second."""
    found: dict[Metric, FloatArray] = {
        "ttft": times.ttft_us,
        "tpot": times.tpot_us,
        "itl": times.itl_us,
        "e2e": times.e2e_us,
        "throughput": np.array([times.throughput_tokens_per_s]),
    }
    return {metric: float(np.nanmean(values)) for metric, values in found.items() if np.isfinite(values).any()}


def compare_times(measured: RequestTimes, predicted: RequestTimes) -> dict[Metric, Compared]:
    """Compare request by request, in the order of both; a metric that was not measured is left out."""
    found: dict[Metric, Compared | None] = {
        "ttft": _by_request(measured.ttft_us, predicted.ttft_us),
        "tpot": _by_request(measured.tpot_us, predicted.tpot_us),
        "itl": _compared(measured.itl_us, predicted.itl_us),
        "e2e": _by_request(measured.e2e_us, predicted.e2e_us),
        "throughput": _throughput(measured, predicted),
    }
    return {metric: one for metric, one in found.items() if one}


def pair_of(measured: float, predicted: float) -> Pair | None:
    """Return both with their error; None where one is not finite, or nothing was measured to relate it to.

    >>> pair_of(10.0, 11.0)
    Pair(measured=10.0, predicted=11.0, error_pct=10.0)
    """
    if not (np.isfinite(measured) and np.isfinite(predicted)) or measured <= 0:
        return None
    error_pct = PERCENT * (predicted - measured) / measured
    return Pair(measured=measured, predicted=predicted, error_pct=error_pct)


def _by_request(measured: FloatArray, predicted: FloatArray) -> Compared | None:
    """Compare the same requests on both sides: those that have the metric measured."""
    known = np.isfinite(measured) & np.isfinite(predicted) & (measured > 0)
    found = _compared(measured[known], predicted[known])
    if found is None:
        return None
    relative = PERCENT * (predicted[known] / measured[known] - 1.0)
    return found.model_copy(
        update={"median_ape_pct": float(np.median(np.abs(relative))), "bias_pct": float(relative.mean())}
    )


def _compared(measured: FloatArray, predicted: FloatArray) -> Compared | None:
    if not (measured.size and predicted.size):
        return None
    mean = pair_of(float(measured.mean()), float(predicted.mean()))
    tails = {
        name: pair_of(float(np.quantile(measured, level)), float(np.quantile(predicted, level)))
        for name, (level, least) in _TAILS.items()
        if len(measured) >= least
    }
    return Compared(n=len(measured), mean=mean, **tails) if mean else None


def _throughput(measured: RequestTimes, predicted: RequestTimes) -> Compared | None:
    mean = pair_of(measured.throughput_tokens_per_s, predicted.throughput_tokens_per_s)
    return Compared(n=len(measured.e2e_us), mean=mean) if mean else None


def _numbers(table: pa.Table, name: str) -> FloatArray:
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)
