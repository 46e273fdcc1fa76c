"""Requests with their job's limits and the engine's state as they queued: what queueing and token models learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from srfa.catalog import Catalog
from srfa.geometry import geometry
from srfa.ragged import FloatArray
from srfa.units import BYTES_PER_US_PER_TBPS, NS_PER_US

RECENT_STEPS = 100
"""Preemptions of this many steps before a request queued count as recent."""

_COPIED = ("prompt_tokens", "output_tokens", "max_model_len", "max_num_seqs", "waiting_at_queue", "kv_usage_at_queue")


@dataclass(frozen=True, slots=True)
class RequestObservations:
    """Finished requests; every array has one entry a request.

    Parameters
    ----------
    arrival_to_queued_us
        HTTP, tokenisation and hand-over: what a simulator adds before its own queue.
    queue_wait_us
        Queued to first scheduled: depends on load; for users without a simulator.
    outside_us
        What the client saw beyond the engine's arrival-to-finish, NaN where the client's view is missing.
    kv_read_us
        KV bytes read for all decoded tokens at peak bandwidth.
    recent_preemptions
        Requests preempted in the last ``RECENT_STEPS`` steps before this one queued.
    """

    job_id: tuple[str, ...]
    prompt_tokens: FloatArray
    output_tokens: FloatArray
    max_model_len: FloatArray
    max_num_seqs: FloatArray
    waiting_at_queue: FloatArray
    kv_usage_at_queue: FloatArray
    recent_preemptions: FloatArray
    kv_read_us: FloatArray
    arrival_to_queued_us: FloatArray
    queue_wait_us: FloatArray
    outside_us: FloatArray

    @property
    def n_requests(self) -> int:
        """How many requests there are."""
        return len(self.prompt_tokens)


def request_observations(requests: pa.Table, jobs: pa.Table, steps: pa.Table, catalog: Catalog) -> RequestObservations:
    """Join the kept tables of a run into what the request models learn from; unfinished requests are left out."""
    frame = requests.drop_columns(["itl_us"]).to_pandas().merge(jobs.to_pandas(), on="job_id")
    frame = frame.dropna(subset=["t_arrived_ns", "t_queued_ns", "t_first_scheduled_ns", "t_finished_ns"])
    frame = frame.reset_index(drop=True)
    inside = (frame.t_finished_ns - frame.t_arrived_ns) / NS_PER_US
    return RequestObservations(
        job_id=tuple(frame.job_id),
        **{name: _floats(frame[name]) for name in _COPIED},
        recent_preemptions=_recent_preemptions(frame, steps),
        kv_read_us=_kv_read_us(frame, catalog),
        arrival_to_queued_us=_floats((frame.t_queued_ns - frame.t_arrived_ns) / NS_PER_US),
        queue_wait_us=_floats((frame.t_first_scheduled_ns - frame.t_queued_ns) / NS_PER_US),
        outside_us=_floats(frame.e2e_us - inside),
    )


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


def _kv_read_us(frame: pd.DataFrame, catalog: Catalog) -> FloatArray:
    """Sum over decoded tokens of ``context x KV bytes / bandwidth``: an arithmetic series in the output length."""
    decoded = np.maximum(_floats(frame.output_tokens) - 1.0, 0.0)
    context = decoded * (_floats(frame.prompt_tokens) + 0.5 * (decoded + 1.0))
    places = frame[["model", "gpu", "tensor_parallel_size", "dtype"]]
    keys = list(places.itertuples(index=False, name=None))
    rates = {key: _kv_us_per_token(key, catalog) for key in set(keys)}
    return np.asarray(context * np.array([rates[key] for key in keys]))


def _kv_us_per_token(key: tuple[str, str, int, str], catalog: Catalog) -> float:
    model, gpu, tensor_parallel_size, dtype = key
    shard = geometry(catalog.resolve_model(model), tensor_parallel_size=tensor_parallel_size, dtype=dtype or "auto")
    bandwidth = catalog.resolve_gpu(gpu).datasheet.memory_bandwidth_tbps * BYTES_PER_US_PER_TBPS
    return shard.kv_bytes_per_token / bandwidth
