"""A simulated run in the form of the plugin's trace: JSON lines as ``srfa.vllm`` writes them inside a real engine.

The records are those of ``docs/adr/0001-architecture.md``. What a simulator does not know is derived: a step's CPU time
is its label, and its ``schedule()`` takes a share of it. Which requests a step preempted the log of steps does not say;
of those that pause over it the last to arrive are named, as vLLM preempts the last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from srfa.ragged import IntArray
from srfa.simulate.load import RequestLoad
from srfa.simulate.served import Served, StepLog
from srfa.simulate.server import Server
from srfa.simulated import SIMULATED
from srfa.specs import EngineArgs
from srfa.traces.plugin import TRACE_SCHEMA_VERSION
from srfa.units import NS_PER_S, NS_PER_US

T_ZERO_NS: Final = 1_000 * NS_PER_S
"""CLOCK_MONOTONIC at the start of a simulated load."""
MONO_TO_EPOCH_NS: Final = 1_700_000_000 * NS_PER_S
_SCHEDULE_RATIO: Final = 0.02
"""Share of a step that ``schedule()`` is said to take."""

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class TracedRun:
    """A simulated run and what a trace of it says beside its times.

    Parameters
    ----------
    served
        With its steps.
    engine
        The arguments as they were resolved.
    client_ids
        The ids the client sent, one a request.
    vllm_version
        The version whose scheduler is simulated.
    """

    load: RequestLoad
    served: Served
    server: Server
    engine: EngineArgs
    client_ids: tuple[str, ...]
    vllm_version: str

    @property
    def steps(self) -> StepLog:
        """The log of steps."""
        if self.served.steps is None:
            raise ValueError("a trace needs the steps: simulate with record_steps=True")
        return self.served.steps

    @property
    def server_ids(self) -> list[str]:
        """The ids vLLM makes of the client's."""
        return [f"cmpl-{client_id}-0-{row:08x}" for row, client_id in enumerate(self.client_ids)]


def trace_lines(run: TracedRun) -> Iterator[bytes]:
    """Yield the lines of the trace, each with its newline: the engine, then steps, requests and preemptions by time."""
    yield _line(engine_record(run))
    timed = [*_request_records(run), *_preemption_records(run), *_step_records(run)]
    for _, record in sorted(timed, key=_instant):
        yield _line(record)


def engine_record(run: TracedRun) -> dict[str, object]:
    """Return the ``engine`` record."""
    server, engine = run.server, run.engine
    return {
        "record": "engine",
        "schema_version": TRACE_SCHEMA_VERSION,
        "vllm_version": run.vllm_version + SIMULATED,
        "scheduler": "AsyncScheduler" if server.async_scheduling else "Scheduler",
        "async_scheduling": server.async_scheduling,
        "batch_queue_size": 2 if server.async_scheduling else 1,
        "block_size": server.block_size,
        "num_gpu_blocks": server.num_gpu_blocks,
        "max_num_seqs": server.max_num_seqs,
        "max_num_batched_tokens": server.max_num_batched_tokens,
        "max_model_len": server.max_model_len,
        "enable_chunked_prefill": server.enable_chunked_prefill,
        "enable_prefix_caching": server.enable_prefix_caching,
        "scheduling_policy": server.scheduling_policy,
        "long_prefill_token_threshold": server.long_prefill_token_threshold,
        "watermark": server.watermark,
        "scheduler_reserve_full_isl": server.scheduler_reserve_full_isl,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "data_parallel_size": engine.data_parallel_size,
        "enable_expert_parallel": engine.enable_expert_parallel,
        "pid": None,
        "worker_pids": [],
        "mono_to_epoch_ns": MONO_TO_EPOCH_NS,
    }


def monotonic_ns(times_us: np.ndarray) -> IntArray:
    """Return simulated times as readings of CLOCK_MONOTONIC."""
    return T_ZERO_NS + np.rint(np.asarray(times_us) * NS_PER_US).astype(np.int64)


_Timed = tuple[tuple[int, int, int], dict[str, object]]
"""``((time, kind, number), record)``: of one instant requests come before preemptions and steps, as in the engine."""


def _instant(timed: _Timed) -> tuple[int, int, int]:
    return timed[0]


def _line(record: dict[str, object]) -> bytes:
    return _encode(record).encode("ascii") + b"\n"


def _step_records(run: TracedRun) -> Iterator[_Timed]:
    log, ids = run.steps, run.server_ids
    start, output = monotonic_ns(log.t_start_us), monotonic_ns(log.t_output_us)
    label_ns = np.rint(log.step_time_us * NS_PER_US).astype(np.int64)
    scheduled = start + np.minimum((_SCHEDULE_RATIO * label_ns).astype(np.int64), output - start)
    prompts = run.load.prompt_tokens[log.request]
    usable = run.server.num_gpu_blocks - 1
    lists = (log.request.tolist(), log.new_tokens.tolist(), log.computed_tokens.tolist(), prompts.tolist())
    columns = (start, scheduled, output, label_ns, log.running_depth, log.waiting_depth, log.num_preempted)
    rows = zip(*(column.tolist() for column in (*columns, log.num_finished, log.kv_blocks_free)), strict=True)
    bounds = log.offsets.tolist()
    for step, (begin, end, done, label, running, waiting, preempted, finished, free) in enumerate(rows):
        part = slice(bounds[step], bounds[step + 1])
        yield (
            (done, 2, step),
            {
                "record": "step",
                "step_id": step,
                "t_schedule_start_ns": begin,
                "t_schedule_end_ns": end,
                "t_output_ns": done,
                "step_cpu_time_ns": label,
                "engine_cpu_time_ns": label,
                "worker_cpu_time_ns": None,
                "running_depth": running,
                "waiting_depth": waiting,
                "num_preempted": preempted,
                "num_finished": finished,
                "kv_blocks_total": usable,
                "kv_blocks_free": free,
                "kv_usage_ratio": 1.0 - free / usable,
                "request_ids": [ids[row] for row in lists[0][part]],
                "num_new_tokens": lists[1][part],
                "num_computed_tokens": lists[2][part],
                "num_prompt_tokens": lists[3][part],
                "recorder_time_ns": 0,
            },
        )


def _request_records(run: TracedRun) -> Iterator[_Timed]:
    served, load = run.served, run.load
    times = {
        "t_arrived_ns": served.t_arrived_us,
        "t_queued_ns": served.t_queued_us,
        "t_first_scheduled_ns": served.t_first_scheduled_us,
        "t_first_token_ns": served.t_first_token_us,
        "t_finished_ns": served.t_finished_us,
    }
    columns = {
        "prompt_tokens": served.prompt_tokens.tolist(),
        "output_tokens": served.output_tokens.tolist(),
        "priority": load.priority.tolist(),
        "cached_tokens": served.cached_tokens.tolist(),
        "num_preemptions": served.num_preemptions.tolist(),
        **{name: monotonic_ns(values).tolist() for name, values in times.items()},
        "running_at_queue": served.running_at_queue.tolist(),
        "waiting_at_queue": served.waiting_at_queue.tolist(),
        "kv_usage_at_queue": served.kv_usage_at_queue.tolist(),
        "block_hashes": _block_names(run),
    }
    for row, server_id in enumerate(run.server_ids):
        fields = {name: values[row] for name, values in columns.items()}
        record = {"record": "request", "request_id": server_id, "finish_status": "length", **fields}
        yield (columns["t_finished_ns"][row], 0, row), record


def _block_names(run: TracedRun) -> Sequence[list[int] | None]:
    if not run.server.enable_prefix_caching:
        return [None] * run.load.n_requests
    hashes = run.load.block_hashes
    bounds, names = hashes.offsets.tolist(), hashes.values.tolist()
    return [names[low:high] for low, high in pairwise(bounds)]


def _preemption_records(run: TracedRun) -> Iterator[_Timed]:
    """Name, for each preemption of a step, a request that was computed before it and again only after it."""
    log = run.steps
    if not log.num_preempted.any():
        return
    step = np.repeat(np.arange(log.n_steps), np.diff(log.offsets))
    order = np.lexsort((step, log.request))
    owner, at = log.request[order], step[order]
    pauses = np.flatnonzero((owner[1:] == owner[:-1]) & (at[1:] > at[:-1] + 1))
    left = run.served.num_preemptions.copy()
    start_ns, ids = monotonic_ns(log.t_start_us), run.server_ids
    for number in np.flatnonzero(log.num_preempted).tolist():
        over = pauses[(at[pauses] < number) & (at[pauses + 1] > number)]
        rows = [row for row in np.unique(owner[over])[::-1].tolist() if left[row] > 0][: log.num_preempted[number]]
        for row in rows:
            left[row] -= 1
            t_ns = int(start_ns[number])
            record = {"record": "preemption", "request_id": ids[row], "t_ns": t_ns, "step_id": number}
            yield (t_ns, 1, number), record
