"""A scheduler for ``vllm serve --scheduler-cls srfa.vllm.scheduler.TracingScheduler``.

It is vLLM's own scheduler, asynchronous or not as vLLM resolved it, with hooks around the methods
that open and close a step. The hooks are internal interfaces of vLLM, so a version they were not tested
with is refused when the engine starts. Without ``SRFA_TRACE_PATH`` it is vLLM's scheduler unchanged.
"""

import inspect
import logging
import os
import time
from typing import Any

from srfa.vllm.cputime import clocks_of_this_process
from srfa.vllm.recorder import Recorder, kv_state
from srfa.vllm.records import SCHEMA_VERSION, TRACE_PATH_VARIABLE, RecordWriter, trace_path

TESTED_VERSION = "0.32.0"
"""The vLLM release whose scheduler the hooks were tested with; its patch releases are accepted."""

HOOKS: dict[str, tuple[str, ...]] = {
    "schedule": (),
    "_update_after_schedule": ("scheduler_output",),
    "update_from_output": ("scheduler_output", "model_runner_output"),
    "add_request": ("request",),
    "_preempt_request": ("request",),
    "_free_request": ("request",),
    "shutdown": (),
    "get_request_counts": (),
    "get_kv_cache_usage": (),
}
"""Methods of vLLM's scheduler that tracing wraps or calls, with their first parameters."""

_logger = logging.getLogger("vllm.srfa")


class UntestedVllmError(RuntimeError):
    """This vLLM is not the one the hooks were tested with; raised at engine start only."""


def TracingScheduler(*args: Any, **kwargs: Any) -> Any:  # noqa: N802 - vLLM is given it where a class is expected
    """Return vLLM's scheduler, traced when ``SRFA_TRACE_PATH`` names a file.

    vLLM calls it with its scheduler's own arguments, of which ``vllm_config`` is read.

    Raises
    ------
    UntestedVllmError
        The installed vLLM is not a tested release, or a hook is missing or takes other arguments.
    srfa.vllm.records.TracePathError
        The trace file cannot be opened.
    """
    config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    base = scheduler_class(async_scheduling=bool(config.scheduler_config.async_scheduling))
    path = trace_path(os.environ, config.parallel_config.data_parallel_index)
    if path is None:
        _logger.warning("srfa tracing is off: %s names no file", TRACE_PATH_VARIABLE)
        return base(*args, **kwargs)
    check_hooks(base, installed_version())
    writer = RecordWriter.open(path)
    scheduler = traced(base)(*args, **kwargs)
    scheduler.start_recording(writer)
    _logger.info("srfa tracing writes %s", path)
    return scheduler


def scheduler_class(*, async_scheduling: bool) -> Any:
    """Return vLLM's own scheduler class for the resolved ``async_scheduling``."""
    # Imported here: the module must load where vLLM is not installed, to be checked and documented.
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: PLC0415
    from vllm.v1.core.sched.scheduler import Scheduler  # noqa: PLC0415

    return AsyncScheduler if async_scheduling else Scheduler


def installed_version() -> str:
    """Return the running vLLM's version."""
    from vllm.version import __version__  # noqa: PLC0415 - as above

    return str(__version__)


def check_hooks(base: type, version: str) -> None:
    """Refuse a vLLM that the hooks were not tested with.

    Raises
    ------
    UntestedVllmError
        With the version found, the one tested, the hook in question and what to do.
    """
    tested = TESTED_VERSION.rpartition(".")[0]
    problems = [] if version.startswith(f"{tested}.") else [f"version {version} was never tested"]
    problems += [problem for name in HOOKS if (problem := _hook_problem(base, name))]
    if problems:
        message = (
            f"srfa tracing was tested with vLLM {TESTED_VERSION}, this is {version}: {'; '.join(problems)}. "
            f"Install vllm=={TESTED_VERSION}, or start the engine without --scheduler-cls"
        )
        raise UntestedVllmError(message)


def _hook_problem(base: type, name: str) -> str | None:
    method = getattr(base, name, None)
    if not inspect.isfunction(method):
        return f"hook {base.__name__}.{name} is missing"
    expected = ("self", *HOOKS[name])
    found = tuple(inspect.signature(method).parameters)
    if found[: len(expected)] != expected:
        return f"hook {base.__name__}.{name} takes {found}, where {expected} was expected first"
    return None


def traced(base: Any) -> Any:
    """Return a subclass of a vLLM scheduler class that tells a recorder what happens.

    Each override calls the base class with the arguments it was given and returns what that returned.
    """

    class TracedScheduler(base):  # type: ignore[misc]
        def start_recording(self, writer: RecordWriter) -> None:
            self._srfa = _start_recorder(self, base.__name__, writer)

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            self._srfa.guarded(self._srfa.schedule_begins)
            scheduler_output = super().schedule(*args, **kwargs)
            self._srfa.guarded(self._srfa.schedule_ended, scheduler_output)
            return scheduler_output

        def _update_after_schedule(self, scheduler_output: Any) -> None:
            self._srfa.guarded(self._srfa.composed, self, scheduler_output)
            super()._update_after_schedule(scheduler_output)

        def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            engine_outputs = super().update_from_output(scheduler_output, *args, **kwargs)
            self._srfa.guarded(self._srfa.output_processed, scheduler_output)
            return engine_outputs

        def add_request(self, request: Any) -> None:
            self._srfa.guarded(self._srfa.request_added, self, request)
            super().add_request(request)

        def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            self._srfa.guarded(self._srfa.request_preempted, request)
            return super()._preempt_request(request, *args, **kwargs)

        def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            self._srfa.guarded(self._srfa.request_freed, request)
            return super()._free_request(request, *args, **kwargs)

        def shutdown(self) -> None:
            super().shutdown()
            self._srfa.close()

    return TracedScheduler


def clock_offset_ns(tries: int = 9) -> int:
    """Return what to add to ``CLOCK_MONOTONIC`` for the Unix time, in ns.

    The two clocks cannot be read at one instant: the Unix time is read between two readings of the other, and of all
    tries the one with the least time between them counts, so that a process that was put aside meanwhile does no harm.
    """
    readings = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(tries)]
    before, epoch, after = min(readings, key=lambda reading: reading[2] - reading[0])
    return epoch - (before + after) // 2


def _start_recorder(scheduler: Any, scheduler_name: str, writer: RecordWriter) -> Recorder:
    """Write the ``engine`` record and return the recorder of this engine core."""
    clocks = clocks_of_this_process(str(scheduler.vllm_config.parallel_config.distributed_executor_backend))
    mono_to_epoch_ns = clock_offset_ns()
    process = {"pid": os.getpid(), "worker_pids": clocks.worker_pids, "mono_to_epoch_ns": mono_to_epoch_ns}
    kv_state(scheduler)  # fails here, at start, where this vLLM keeps its KV blocks elsewhere
    writer.write(engine_record(scheduler.vllm_config, scheduler_name) | process)
    return Recorder(writer, clocks, mono_to_epoch_ns=mono_to_epoch_ns, hashes_per_block=hashes_per_block(scheduler))


def hashes_per_block(scheduler: Any) -> int:
    """Return how many hashes vLLM keeps a KV block; 0 where prefix caching is off."""
    cache = scheduler.vllm_config.cache_config
    return max(1, cache.block_size // scheduler.hash_block_size) if cache.enable_prefix_caching else 0


def engine_record(config: Any, scheduler_name: str) -> dict[str, object]:
    """Return the ``engine`` record of a resolved ``VllmConfig``, without the fields of the process."""
    scheduling, cache, parallel = config.scheduler_config, config.cache_config, config.parallel_config
    return {
        "record": "engine",
        "schema_version": SCHEMA_VERSION,
        "vllm_version": installed_version(),
        "scheduler": scheduler_name,
        "async_scheduling": bool(scheduling.async_scheduling),
        "batch_queue_size": config.max_concurrent_batches,
        "block_size": cache.block_size,
        "num_gpu_blocks": cache.num_gpu_blocks,
        "max_num_seqs": scheduling.max_num_seqs,
        "max_num_batched_tokens": scheduling.max_num_batched_tokens,
        "max_model_len": config.model_config.max_model_len,
        "enable_chunked_prefill": bool(scheduling.enable_chunked_prefill),
        "enable_prefix_caching": bool(cache.enable_prefix_caching),
        "scheduling_policy": str(scheduling.policy),
        "long_prefill_token_threshold": scheduling.long_prefill_token_threshold,
        "watermark": scheduling.watermark,
        "scheduler_reserve_full_isl": bool(scheduling.scheduler_reserve_full_isl),
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "data_parallel_size": parallel.data_parallel_size,
        "enable_expert_parallel": bool(parallel.enable_expert_parallel),
    }
