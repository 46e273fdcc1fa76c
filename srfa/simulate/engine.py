"""A simulated vLLM server: requests in, the times of every request out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from srfa.errors import CoefficientsError, InputError
from srfa.operator_kernels import TOTALS_DTYPE, StepTotals
from srfa.ragged import IntArray
from srfa.simulate.clock import AskedStep, Clock
from srfa.simulate.load import RequestLoad
from srfa.simulate.loop import ASK, DONE, FLUSH, run
from srfa.simulate.outside import Outside
from srfa.simulate.served import Served, StepLog
from srfa.simulate.server import Server
from srfa.simulate.state import ENTRY_DTYPE, FRAME_DTYPE, World, world_of


def simulate(
    load: RequestLoad, server: Server, clock: Clock, outside: Outside | None = None, *, record_steps: bool = False
) -> Served:
    """Serve a load as vLLM would and return when everything happened.

    Deterministic: equal arguments give equal bytes. Memory follows the requests that are alive at one time, beside what
    is kept of each that ended, and the steps where they are recorded.

    Parameters
    ----------
    record_steps
        True: keep every step with its requests (:class:`StepLog`). With data parallelism a row is one rank's step.

    Raises
    ------
    InputError
        The server could not start, or could never serve one of the requests: request, value and remedy.
    CoefficientsError
        The clock says of a step that it takes no time, or no finite one: estimator and step.
    """
    outside = outside or Outside.none(load)
    check(load, server, outside)
    world = world_of(load, server, outside, clock.kv_token_bytes, recording=record_steps)
    chunks: list[_Chunk] = []
    while (reason := run(world, clock.kernel)) != DONE:
        if reason == ASK:
            _answer(world, server, clock)
        elif reason == FLUSH:
            chunks.append(_take_log(world))
        else:
            raise InputError("simulation: requests are left that nothing can ever serve; check the server's limits")
    return _served(world, load, [*chunks, _take_log(world)] if record_steps else None)


_Chunk = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def _answer(world: World, server: Server, clock: Clock) -> None:
    """Ask the clock from outside about the step of every rank that is put together."""
    counts = world.counts[0]
    engine, frame = world.engines[counts["engine"]], counts["frame"]
    for rank in range(int(engine["first_rank"]), int(engine["end_rank"])):
        if world.frames[rank, frame]["n_entries"] and clock.ask is not None:
            step = _asked_step(world, rank, int(frame), server)
            world.times_us[rank] = _possible_us(clock.ask(step), step, clock.estimator, number=int(counts["n_steps"]))
    counts["answered"] = 1


def _possible_us(step_us: float, step: AskedStep, estimator: str, *, number: int) -> float:
    if not 0.0 < step_us < np.inf:
        totals = step.totals
        raise CoefficientsError(
            f"{estimator}: step {number} ({totals.prefill_tokens:g} prefill tokens of {totals.prefills:g} requests,"
            f" {totals.decode_tokens:g} decode tokens of {totals.decodes:g}) takes {step_us} us; expected a finite time"
            " above 0: fit again, or simulate nothing so far from what was measured"
        )
    return step_us


def _asked_step(world: World, rank: int, frame: int, server: Server) -> AskedStep:
    step = world.frames[rank, frame]
    entries = world.entries[rank, frame, : step["n_entries"]]
    new, computed = entries["new"].astype(np.float64), entries["computed"].astype(np.float64)
    is_prefill = computed < world.asked.prompt_tokens[entries["request"]]
    return AskedStep(
        StepTotals(*world.totals[rank, frame].tolist()),
        new[is_prefill],
        computed[is_prefill],
        (computed + new)[~is_prefill],
        1.0 - float(step["free"]) / (server.num_gpu_blocks - 1),
        server,
    )


def _take_log(world: World) -> _Chunk:
    counts = world.counts
    n_steps, n_entries = int(counts["log_steps"][0]), int(counts["log_entries"][0])
    counts["log_steps"] = counts["log_entries"] = 0
    logs = (world.log_frames[:n_steps], world.log_totals[:n_steps], world.log_entries[:n_entries])
    return (logs[0].copy(), logs[1].copy(), logs[2].copy())


def _step_log(chunks: list[_Chunk]) -> StepLog:
    frames = np.concatenate([np.zeros(0, FRAME_DTYPE), *(chunk[0] for chunk in chunks)])
    totals = np.concatenate([np.zeros(0, TOTALS_DTYPE), *(chunk[1] for chunk in chunks)])
    entries = np.concatenate([np.zeros(0, ENTRY_DTYPE), *(chunk[2] for chunk in chunks)])
    return StepLog(
        t_start_us=_column(frames, "t_start_us"),
        t_output_us=_column(frames, "t_output_us"),
        step_time_us=_column(frames, "step_time_us"),
        totals=totals,
        running_depth=_column(frames, "running"),
        waiting_depth=_column(frames, "waiting"),
        num_preempted=_column(frames, "preempted"),
        num_finished=_column(frames, "finished"),
        kv_blocks_free=_column(frames, "free"),
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(frames["n_entries"])]),
        request=_whole(entries, "request"),
        new_tokens=_whole(entries, "new"),
        computed_tokens=_whole(entries, "computed"),
    )


def _served(world: World, load: RequestLoad, chunks: list[_Chunk] | None) -> Served:
    results, asked = world.results, world.asked
    return Served(
        t_arrived_us=_column(results, "t_arrived_us"),
        t_queued_us=_column(results, "t_queued_us"),
        t_first_scheduled_us=_column(results, "t_first_scheduled_us"),
        t_first_token_us=_column(results, "t_first_token_us"),
        t_finished_us=_column(results, "t_finished_us"),
        t_departed_us=_column(results, "t_departed_us"),
        first_outside_us=asked.post_us + asked.alpha_token_us,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        cached_tokens=_column(results, "cached_tokens"),
        num_preemptions=_column(results, "num_preemptions"),
        running_at_queue=_column(results, "running_at_queue"),
        waiting_at_queue=_column(results, "waiting_at_queue"),
        kv_usage_at_queue=_column(results, "kv_usage_at_queue"),
        n_steps=int(world.counts["n_steps"][0]),
        steps=None if chunks is None else _step_log(chunks),
    )


def _column(records: NDArray[Any], name: str) -> NDArray[Any]:
    return np.ascontiguousarray(records[name])


def _whole(records: NDArray[Any], name: str) -> IntArray:
    return records[name].astype(np.int64)


def check(load: RequestLoad, server: Server, outside: Outside) -> None:
    """Refuse a server that vLLM would not start, and requests that it could never serve.

    Raises
    ------
    InputError
        With the value, what was expected and what to do.
    """
    _check_server(server)
    _check_outside(load, outside)
    longest = load.prompt_tokens + load.output_tokens
    _refuse(
        longest > server.max_model_len,
        longest,
        f"prompt and output tokens exceed max_model_len={server.max_model_len}; raise it or shorten the request",
    )
    usable = (server.num_gpu_blocks - 1) * server.block_size
    _refuse(
        longest - 1 > usable,
        longest,
        f"prompt and output tokens can never fit the KV cache of {usable} tokens"
        f" (num_gpu_blocks={server.num_gpu_blocks}, one of them vLLM's null block); raise num_gpu_blocks",
    )


def _refuse(bad: NDArray[np.bool_], values: IntArray, claim: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"request {row}: {values[row]} {claim} ({int(bad.sum())} such request(s))")


def _check_server(server: Server) -> None:
    least = {
        "max_num_batched_tokens": 1, "max_num_seqs": 1, "max_model_len": 2, "block_size": 1, "num_gpu_blocks": 2,
        "long_prefill_token_threshold": 0, "watermark": 0, "data_parallel_size": 1, "cpu_offload_bytes": 0,
        "kv_offload_blocks": 0,
    }  # fmt: skip
    for name, smallest in least.items():
        value = getattr(server, name)
        if not smallest <= value < np.inf:
            raise InputError(f"server: {name} is {value}; expected at least {smallest}")
    if not server.enable_chunked_prefill and server.max_num_batched_tokens < server.max_model_len:
        raise InputError(
            f"server: max_num_batched_tokens={server.max_num_batched_tokens} is below"
            f" max_model_len={server.max_model_len} without chunked prefill, as vLLM refuses too; raise it, or enable"
            " chunked prefill"
        )
    if server.scheduling_policy not in {"fcfs", "priority"}:
        raise InputError(f"server: scheduling_policy is {server.scheduling_policy!r}; expected 'fcfs' or 'priority'")


def _check_outside(load: RequestLoad, outside: Outside) -> None:
    for name in ("alpha_us", "post_us", "alpha_token_us"):
        values = getattr(outside, name)
        if len(values) != load.n_requests or not (np.isfinite(values).all() and np.all(values >= 0)):
            raise InputError(f"outside: {name} must hold {load.n_requests} finite numbers of at least 0")
    for name in ("between_steps_us", "between_steps_request_us"):
        if not 0 <= getattr(outside, name) < np.inf:
            raise InputError(f"outside: {name} is {getattr(outside, name)}; expected a finite number of at least 0")
    if not 0 < outside.wall_ratio < np.inf:
        raise InputError(f"outside: wall_ratio is {outside.wall_ratio}; expected a finite number above 0")
    if load.max_concurrency is not None and load.max_concurrency < 1:
        raise InputError(f"requests: max_concurrency is {load.max_concurrency}; expected at least 1, or None")
