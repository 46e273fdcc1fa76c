"""Speed of ingest: trace lines -> records -> steps table -> data gates, in steps a second.

Run ``python -m benchmarks.ingest [--steps 20000] [--running 32]``. The trace is made up in memory; its requests run
one after another in ``running`` seats, so that every step schedules ``running`` requests.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from srfa.specs import BenchmarkJob, EngineArgs, Workload
from srfa.traces.accounting import account_tokens
from srfa.traces.plugin import Window, cut_windows, parse_trace
from srfa.traces.requests import requests_table
from srfa.traces.steps import step_entries, steps_table

Result = TypeVar("Result")
OUTPUT_TOKENS = 128
PROMPT_TOKENS = 100
STEP_NS = 10_000_000
ENGINE = {
    "record": "engine",
    "schema_version": 1,
    "vllm_version": "0.32.0",
    "async_scheduling": False,
    "batch_queue_size": 1,
    "block_size": 16,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "max_model_len": 4096,
    "tensor_parallel_size": 1,
    "data_parallel_size": 1,
    "enable_expert_parallel": False,
    "mono_to_epoch_ns": 0,
}


def make_trace(n_steps: int, running: int) -> list[bytes]:
    """Return the lines of a trace whose every step schedules ``running`` requests."""
    records: list[dict[str, object]] = [ENGINE]
    for step in range(n_steps):
        if step % OUTPUT_TOKENS == 0:
            records += [_request(step, seat) for seat in range(running)]
        records.append(_step(step, running))
    return [json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records]


def _step(step: int, running: int) -> dict[str, object]:
    generation, position = divmod(step, OUTPUT_TOKENS)
    return {
        "record": "step",
        "step_id": step,
        "t_schedule_start_ns": step * STEP_NS,
        "t_schedule_end_ns": step * STEP_NS + STEP_NS // 10,
        "t_output_ns": (step + 1) * STEP_NS - STEP_NS // 10,
        "step_cpu_time_ns": STEP_NS // 2,
        "running_depth": running,
        "waiting_depth": 0,
        "num_preempted": 0,
        "num_finished": 0,
        "kv_blocks_total": 4096,
        "kv_blocks_free": 1024,
        "kv_usage_ratio": 0.75,
        "request_ids": [f"cmpl-bench-{generation}-{seat}-0-8f3a21bc" for seat in range(running)],
        "num_new_tokens": [1 if position else PROMPT_TOKENS] * running,
        "num_computed_tokens": [PROMPT_TOKENS + position - 1 if position else 0] * running,
        "num_prompt_tokens": [PROMPT_TOKENS] * running,
        "recorder_time_ns": 9000,
    }


def _request(step: int, seat: int) -> dict[str, object]:
    return {
        "record": "request",
        "request_id": f"cmpl-bench-{step // OUTPUT_TOKENS}-{seat}-0-8f3a21bc",
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "cached_tokens": 0,
        "num_preemptions": 0,
        "finish_status": "length",
        "t_queued_ns": step * STEP_NS,
    }


def timed(what: str, n_steps: int, function: Callable[[], Result]) -> Result:
    """Call ``function`` three times, print the best time, return the last result."""
    best_s = np.inf
    for _ in range(3):
        begin = time.perf_counter()
        result = function()
        best_s = min(best_s, time.perf_counter() - begin)
    print(f"{what:24} {best_s:8.3f} s {n_steps / best_s:12,.0f} steps/s")
    return result


def main() -> None:
    """Print the time of each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--running", type=int, default=32)
    arguments = parser.parse_args()
    n_steps = arguments.steps
    lines = make_trace(n_steps, arguments.running)
    print(f"{n_steps} steps x {arguments.running} requests, {sum(map(len, lines)):,} bytes")
    job = BenchmarkJob(model="m", gpu="g", engine=EngineArgs(), workload=Workload(name="w"), engine_version="0.32.0")
    half_ns = n_steps // 2 * STEP_NS
    windows = [
        Window(job_id="first", t_start_ns=0, t_end_ns=half_ns),
        Window(job_id="second", t_start_ns=half_ns, t_end_ns=2 * half_ns),
    ]
    timed("cut into two windows", n_steps, lambda: cut_windows(lines, windows))
    records = timed("parse", n_steps, lambda: parse_trace(lines))
    timed("steps table", n_steps, lambda: steps_table(records, job))
    requests = requests_table(records, None, job)
    timed("token account", n_steps, lambda: account_tokens(step_entries(records.steps), requests))


if __name__ == "__main__":
    main()
