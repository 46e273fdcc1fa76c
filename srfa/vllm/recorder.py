"""What the scheduler's hooks see, turned into trace records.

The recorder reads the scheduler and never changes it. Every hook runs through :meth:`Recorder.guarded`:
a hook that fails costs a record, never the engine, and a recorder that keeps failing turns itself off.
"""

import logging
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from srfa.vllm.cputime import CpuClocks, CpuReading, cpu_time_between
from srfa.vllm.records import RecordWriter

MAX_HOOK_FAILURES = 10
"""Failures after which the recorder turns itself off."""

MAX_PENDING_STEPS = 64
"""Scheduled steps without an output that are kept; vLLM has one to a few in flight."""

_NS_PER_S = 1_000_000_000
_first_64_bits = struct.Struct(">Q").unpack_from
_logger = logging.getLogger("vllm.srfa")


@dataclass(slots=True)
class _PendingStep:
    """A scheduled step that waits for its output; holding the output's object keeps its identity unique."""

    scheduler_output: Any
    fields: dict[str, object]
    cpu_begin: CpuReading


@dataclass(slots=True)
class _Journey:
    """What is known of a request while it is in the engine."""

    fields: dict[str, object]
    cached_tokens: int = 0
    t_first_scheduled_ns: int | None = None
    t_first_token_ns: int | None = None


@dataclass(slots=True)
class _Counters:
    """Events since the last step record."""

    finished: int = 0
    preempted: int = 0
    recorder_ns: int = 0


class Recorder:
    """Turns hook calls into ``step``, ``request`` and ``preemption`` records.

    Parameters
    ----------
    writer
        Where records go.
    clocks
        CPU clocks of the engine core and its workers.
    mono_to_epoch_ns
        What to add to ``CLOCK_MONOTONIC`` for the Unix time, in ns.
    hashes_per_block
        Hashes vLLM keeps a KV block; 0 where prefix caching is off, and requests have no block names.
    """

    def __init__(
        self, writer: RecordWriter, clocks: CpuClocks, *, mono_to_epoch_ns: int, hashes_per_block: int = 0
    ) -> None:
        self.enabled = True
        self._hashes_per_block = hashes_per_block
        self._writer = writer
        self._clocks = clocks
        self._mono_to_epoch_ns = mono_to_epoch_ns
        self._failures = 0
        self._next_step_id = 0
        self._pending: dict[int, _PendingStep] = {}
        self._journeys: dict[str, _Journey] = {}
        self._awaiting_first_token: dict[str, Any] = {}
        self._counters = _Counters()
        self._t_schedule_start_ns = 0
        self._cpu_schedule_start = self._cpu_output = clocks.read()

    def guarded(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Call a hook; its failure is counted, its cost is added to the step's ``recorder_time_ns``."""
        if not self.enabled:
            return
        begin_ns = time.monotonic_ns()
        # Broad on purpose: the engine must go on whatever the recorder meets.
        try:
            hook(*arguments)
        except Exception:
            self._note_failure(hook)
        self._counters.recorder_ns += time.monotonic_ns() - begin_ns

    def close(self) -> None:
        """Report what was dropped and close the file."""
        self.enabled = False
        self._writer.close()

    def schedule_begins(self) -> None:
        """Hook before ``Scheduler.schedule``."""
        self._t_schedule_start_ns = time.monotonic_ns()
        self._cpu_schedule_start = self._clocks.read()

    def composed(self, scheduler: Any, scheduler_output: Any) -> None:
        """Hook before ``Scheduler._update_after_schedule``: the batch is known, no counter has advanced yet."""
        if not scheduler_output.total_num_scheduled_tokens:
            return
        requests = [scheduler.requests[request_id] for request_id in scheduler_output.num_scheduled_tokens]
        self._note_first_schedules(scheduler_output, scheduler.requests)
        fields = self._step_fields(scheduler)
        fields |= composition(scheduler_output.num_scheduled_tokens, requests)
        self._pending[id(scheduler_output)] = _PendingStep(scheduler_output, fields, self._cpu_schedule_start)
        self._next_step_id += 1
        self._counters.preempted = 0
        if len(self._pending) > MAX_PENDING_STEPS:
            del self._pending[next(iter(self._pending))]
            self._writer.drop()

    def schedule_ended(self, scheduler_output: Any) -> None:
        """Hook after ``Scheduler.schedule``."""
        step = self._pending.get(id(scheduler_output))
        if step is not None:
            step.fields["t_schedule_end_ns"] = time.monotonic_ns()

    def output_processed(self, scheduler_output: Any) -> None:
        """Hook after ``Scheduler.update_from_output``: the step has ended."""
        t_output_ns = time.monotonic_ns()
        step = self._pending.pop(id(scheduler_output), None)
        if step is None:
            return
        self._note_first_tokens(t_output_ns)
        cpu_output = self._clocks.read()
        step.fields["t_output_ns"] = t_output_ns
        step.fields |= self._cpu_fields(step.cpu_begin, cpu_output)
        self._cpu_output = cpu_output
        step.fields["num_finished"] = self._counters.finished
        step.fields["recorder_time_ns"] = self._counters.recorder_ns
        self._counters.finished = self._counters.recorder_ns = 0
        self._writer.write(step.fields)

    def request_added(self, scheduler: Any, request: Any) -> None:
        """Hook before ``Scheduler.add_request``; a further piece of a known request is not an arrival."""
        if request.request_id in self._journeys:
            return
        running, waiting = scheduler.get_request_counts()
        t_queued_ns = time.monotonic_ns()
        t_arrived_ns = int(request.arrival_time * _NS_PER_S) - self._mono_to_epoch_ns
        self._journeys[request.request_id] = _Journey(
            {
                "t_arrived_ns": min(t_arrived_ns, t_queued_ns),  # the Unix clock may be set while the engine runs
                "t_queued_ns": t_queued_ns,
                "running_at_queue": running,
                "waiting_at_queue": waiting,
                "kv_usage_at_queue": scheduler.get_kv_cache_usage(),
            }
        )

    def request_preempted(self, request: Any) -> None:
        """Hook before ``Scheduler._preempt_request``."""
        self._counters.preempted += 1
        self._writer.write(
            {
                "record": "preemption",
                "request_id": request.request_id,
                "t_ns": time.monotonic_ns(),
                "step_id": self._next_step_id,
            }
        )

    def request_freed(self, request: Any) -> None:
        """Hook before ``Scheduler._free_request``: the request has ended, whatever the reason."""
        t_finished_ns = time.monotonic_ns()
        self._counters.finished += 1
        journey = self._journeys.pop(request.request_id)
        if self._awaiting_first_token.pop(request.request_id, None) is not None and request.num_output_tokens:
            journey.t_first_token_ns = t_finished_ns
        names = block_names(request.block_hashes, self._hashes_per_block) if self._hashes_per_block else None
        self._writer.write(_request_record(request, journey, t_finished_ns) | {"block_hashes": names})

    def _step_fields(self, scheduler: Any) -> dict[str, object]:
        running, waiting = scheduler.get_request_counts()
        return {
            "record": "step",
            "step_id": self._next_step_id,
            "t_schedule_start_ns": self._t_schedule_start_ns,
            "running_depth": running,
            "waiting_depth": waiting,
            "num_preempted": self._counters.preempted,
            **kv_state(scheduler),
        }

    def _cpu_fields(self, cpu_begin: CpuReading, cpu_end: CpuReading) -> dict[str, object]:
        """CPU time of the busy cycle: since this step's schedule or the last output, whichever came later."""
        begin = max(cpu_begin, self._cpu_output, key=_engine_ns)
        spent = cpu_time_between(begin, cpu_end, in_workers=self._clocks.in_workers)
        return {
            "step_cpu_time_ns": spent.step_ns,
            "engine_cpu_time_ns": spent.engine_ns,
            "worker_cpu_time_ns": spent.workers_ns,
        }

    def _note_first_schedules(self, scheduler_output: Any, requests: dict[str, Any]) -> None:
        for new in scheduler_output.scheduled_new_reqs:
            journey = self._journeys[new.req_id]
            if journey.t_first_scheduled_ns is not None:
                continue
            request = requests[new.req_id]
            journey.t_first_scheduled_ns = self._t_schedule_start_ns
            if request.prefill_stats is not None:
                journey.cached_tokens = request.prefill_stats.num_cached_tokens
            self._awaiting_first_token[new.req_id] = request

    def _note_first_tokens(self, t_output_ns: int) -> None:
        arrived = [key for key, request in self._awaiting_first_token.items() if request.num_output_tokens]
        for request_id in arrived:
            del self._awaiting_first_token[request_id]
            self._journeys[request_id].t_first_token_ns = t_output_ns

    def _note_failure(self, hook: Callable[..., None]) -> None:
        self._failures += 1
        self._writer.drop()
        if self._failures == 1:
            _logger.exception("srfa tracing: hook %s failed; the engine goes on, a record is lost", hook.__name__)
        if self._failures >= MAX_HOOK_FAILURES:
            self.enabled = False
            self._writer.report_dropped()
            _logger.error("srfa tracing is off after %d failed hooks; the trace is incomplete", self._failures)


def composition(num_scheduled_tokens: dict[str, int], requests: Sequence[Any]) -> dict[str, object]:
    """Return the four parallel lists of a step, in scheduling order, counters not yet advanced.

    Parameters
    ----------
    num_scheduled_tokens
        vLLM's request id -> tokens computed in this step.
    requests
        The same requests' objects, in the same order.
    """
    return {
        "request_ids": list(num_scheduled_tokens),
        "num_new_tokens": list(num_scheduled_tokens.values()),
        "num_computed_tokens": [request.num_computed_tokens for request in requests],
        "num_prompt_tokens": [request.num_prompt_tokens for request in requests],
    }


def kv_state(scheduler: Any) -> dict[str, object]:
    """Return usable KV blocks in all, free ones, and the ratio in use; vLLM's null block is not usable."""
    pool = scheduler.kv_cache_manager.block_pool
    return {
        "kv_blocks_total": pool.num_gpu_blocks - 1,
        "kv_blocks_free": pool.get_num_free_blocks(),
        "kv_usage_ratio": scheduler.get_kv_cache_usage(),
    }


def block_names(hashes: Sequence[bytes], hashes_per_block: int) -> list[int]:
    r"""Return a name a full KV block: the first 63 bits of its hash, which covers the block and all before it.

    Parameters
    ----------
    hashes
        vLLM's ``Request.block_hashes``, at least 8 bytes each.
    hashes_per_block
        Where vLLM hashes in pieces smaller than a block, a block has the hash of its last piece.

    Examples
    --------
    >>> block_names([bytes(7) + b"\x02", bytes(7) + b"\x04", bytes(7) + b"\x06"], 2)
    [2]
    """
    return [_first_64_bits(each)[0] >> 1 for each in hashes[hashes_per_block - 1 :: hashes_per_block]]


def _engine_ns(reading: CpuReading) -> int:
    return reading.engine_ns


def _request_record(request: Any, journey: _Journey, t_finished_ns: int) -> dict[str, object]:
    return {
        "record": "request",
        "request_id": request.request_id,
        "prompt_tokens": request.num_prompt_tokens,
        "output_tokens": request.num_output_tokens,
        "priority": request.priority,
        "cached_tokens": journey.cached_tokens,
        "num_preemptions": request.num_preemptions,
        "finish_status": str(request.get_finished_reason()),
        **journey.fields,
        "t_first_scheduled_ns": journey.t_first_scheduled_ns,
        "t_first_token_ns": journey.t_first_token_ns,
        "t_finished_ns": t_finished_ns,
    }
