"""Requests with their job's limits and the engine's state as they queued: what queueing and token models learn from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from srfa.catalog import Catalog
from srfa.handover import EngineClock
from srfa.observations import Configuration, configuration_of
from srfa.ragged import FloatArray, IntArray
from srfa.roofline import Place, bytes_per_us, flops_per_token, flops_per_us, place_of
from srfa.units import NS_PER_US

RECENT_STEPS = 100
"""Preemptions of this many steps before a request queued count as recent."""

_COPIED = (
    "prompt_tokens",
    "output_tokens",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "running_at_queue",
    "waiting_at_queue",
    "kv_usage_at_queue",
)


@dataclass(frozen=True, slots=True)
class RequestObservations:
    """Finished requests; every array has one entry a request.

    Parameters
    ----------
    arrived_ns
        When the server got it, on the clock of its job's steps.
    arrival_to_queued_us
        HTTP, tokenisation and hand-over, and then the rest of the step that ran: see :mod:`srfa.handover`.
    handover_least_us
        What the hand-over took at least; ``arrival_to_queued_us`` is the most, and both are equal on an idle engine.
    queue_wait_us
        Queued to first scheduled: depends on load; for users without a simulator.
    outside_us
        What the client saw beyond the engine's arrival-to-finish, NaN where the client's view is missing.
    first_outside_us
        The same of the first token: ``ttft_us`` beyond the engine's arrival-to-first-token.
    kv_read_us
        KV bytes read for all decoded tokens at peak bandwidth.
    kv_us_per_token
        KV bytes of one token of context at peak bandwidth.
    prompt_compute_us
        Matrix operations of the prompt at the dense peak.
    cached_share
        Share of the prompt found in the prefix cache, 0 where it was not recorded.
    chunked_prefill
        1 where the server splits prefills into chunks (vLLM's default, taken where it was not recorded), else 0.
    recent_preemptions
        Requests preempted in the last ``RECENT_STEPS`` steps before this one queued.
    clocks
        The steps of each job, by its id; a job without any counts as idle.
    """

    job_id: tuple[str, ...]
    prompt_tokens: FloatArray
    output_tokens: FloatArray
    max_model_len: FloatArray
    max_num_seqs: FloatArray
    max_num_batched_tokens: FloatArray
    running_at_queue: FloatArray
    waiting_at_queue: FloatArray
    kv_usage_at_queue: FloatArray
    recent_preemptions: FloatArray
    kv_read_us: FloatArray
    kv_us_per_token: FloatArray
    prompt_compute_us: FloatArray
    cached_share: FloatArray
    chunked_prefill: FloatArray
    arrived_ns: NDArray[np.int64]
    arrival_to_queued_us: FloatArray
    handover_least_us: FloatArray
    queue_wait_us: FloatArray
    outside_us: FloatArray
    first_outside_us: FloatArray
    clocks: Mapping[str, EngineClock] = field(default_factory=dict)

    @property
    def n_requests(self) -> int:
        """How many requests there are."""
        return len(self.prompt_tokens)

    @property
    def decoded_tokens(self) -> FloatArray:
        """Output tokens that a decode step made: all but the first, which the prefill makes."""
        return np.maximum(self.output_tokens - 1.0, 0.0)

    def take(self, rows: IntArray) -> RequestObservations:
        """Return the given requests, in that order."""
        job_id = tuple(np.array(self.job_id, dtype=object)[rows])
        arrays = {each.name: getattr(self, each.name)[rows] for each in fields(self)[1:-1]}
        return replace(self, job_id=job_id, **arrays)

    def of_jobs(self, job_ids: Collection[str]) -> RequestObservations:
        """Return the requests of some jobs: those a fit may see where the others are held out."""
        return self.take(np.flatnonzero(np.isin(np.array(self.job_id), list(job_ids))))


def request_observations(requests: pa.Table, jobs: pa.Table, steps: pa.Table, catalog: Catalog) -> RequestObservations:
    """Join the kept tables of a run into what the request models learn from; unfinished requests are left out."""
    lists = [name for name in requests.column_names if pa.types.is_list(requests.schema.field(name).type)]
    frame = requests.drop_columns(lists).to_pandas().merge(jobs.to_pandas(), on="job_id")
    frame = frame.dropna(subset=["t_arrived_ns", "t_queued_ns", "t_first_scheduled_ns", "t_finished_ns"])
    frame = frame.reset_index(drop=True)
    inside, first = ((frame[name] - frame.t_arrived_ns) / NS_PER_US for name in ("t_finished_ns", "t_first_token_ns"))
    clocks = {job_id: EngineClock.of(own) for job_id, own in _steps_by_job(steps)}
    rates = _rates(frame, jobs, catalog)
    return RequestObservations(
        job_id=tuple(frame.job_id),
        **{name: _floats(frame[name]) for name in _COPIED},
        recent_preemptions=_recent_preemptions(frame, steps),
        kv_read_us=_decoded_context(frame) * rates[:, 0],
        kv_us_per_token=rates[:, 0],
        prompt_compute_us=_floats(frame.prompt_tokens) * rates[:, 1],
        cached_share=np.nan_to_num(_floats(frame.cached_tokens)) / np.maximum(_floats(frame.prompt_tokens), 1.0),
        chunked_prefill=_floats(frame.enable_chunked_prefill.fillna(True)),
        arrived_ns=frame.t_arrived_ns.to_numpy(dtype=np.int64),
        handover_least_us=_least_handover_us(frame, clocks),
        arrival_to_queued_us=_floats((frame.t_queued_ns - frame.t_arrived_ns) / NS_PER_US),
        queue_wait_us=_floats((frame.t_first_scheduled_ns - frame.t_queued_ns) / NS_PER_US),
        outside_us=_floats(frame.e2e_us - inside),
        first_outside_us=_floats(frame.ttft_us - first),
        clocks=clocks,
    )


def _steps_by_job(steps: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    clock = steps.select(["job_id", "t_schedule_start_ns", "t_output_ns"]).drop_null()
    for job_id in pc.unique(clock["job_id"]).to_pylist():
        yield job_id, clock.filter(pc.equal(clock["job_id"], job_id))


def _least_handover_us(frame: pd.DataFrame, clocks: Mapping[str, EngineClock]) -> FloatArray:
    arrived, queued = (frame[name].to_numpy(dtype=np.int64) for name in ("t_arrived_ns", "t_queued_ns"))
    least = (queued - arrived) / NS_PER_US
    for job_id, clock in clocks.items():
        rows = np.flatnonzero(frame.job_id == job_id)
        least[rows] = clock.least_handover_us(arrived[rows], queued[rows])
    return np.asarray(least)


def _floats(series: pd.Series[float]) -> FloatArray:
    return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))


def _recent_preemptions(frame: pd.DataFrame, steps: pa.Table) -> FloatArray:
    """Count per job with one cumulative sum and two binary searches."""
    recent = np.zeros(len(frame))
    history = steps.select(["job_id", "t_output_ns", "num_preempted"]).to_pandas().sort_values("t_output_ns")
    for job_id, own in history.groupby("job_id"):
        rows = np.flatnonzero(frame.job_id == job_id)
        total = np.concatenate([[0.0], np.cumsum(own.num_preempted.to_numpy())])
        last = np.searchsorted(own.t_output_ns.to_numpy(), frame.t_queued_ns.to_numpy()[rows], side="right")
        recent[rows] = total[last] - total[np.maximum(last - RECENT_STEPS, 0)]
    return recent


def _decoded_context(frame: pd.DataFrame) -> FloatArray:
    """Sum of the contexts that the decoded tokens attend: an arithmetic series in the output length."""
    decoded = np.maximum(_floats(frame.output_tokens) - 1.0, 0.0)
    return np.asarray(decoded * (_floats(frame.prompt_tokens) + 0.5 * (decoded + 1.0)))


def _rates(frame: pd.DataFrame, jobs: pa.Table, catalog: Catalog) -> FloatArray:
    """Microseconds of one token's KV bytes and of its matrix operations at peak, shape ``(n_requests, 2)``."""
    by_job = {row["job_id"]: _rates_of(place_of(configuration_of(row), catalog)) for row in _configured(jobs)}
    rows = {job_id: position for position, job_id in enumerate(by_job)}
    index = frame.job_id.map(rows).to_numpy(dtype=np.int64)
    return np.asarray(np.array(list(by_job.values()), dtype=np.float64)[index])


def _configured(jobs: pa.Table) -> list[dict[str, object]]:
    return list(jobs.select(["job_id", *(field.name for field in fields(Configuration))]).to_pylist())


def _rates_of(place: Place) -> tuple[float, float]:
    return place.shard.kv_bytes_per_token / bytes_per_us(place), flops_per_token(place) / flops_per_us(place)
