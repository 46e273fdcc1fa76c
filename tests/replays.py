"""Replays with planted errors, for tests of what is made of them."""

from __future__ import annotations

from srfa.closed_loop_report import METRICS, Compared, Replay
from srfa.request_times import pair_of

MEASURED = {"ttft": 50_000.0, "tpot": 10_000.0, "itl": 10_000.0, "e2e": 1_000_000.0, "throughput": 500.0}


def replay(job_id="job", *, without=(), **changes) -> Replay:
    """One job that is right in everything but the metrics named: ``e2e=20.0`` is 20 % too long."""
    errors = {metric: changes.pop(metric, 0.0) for metric in METRICS}
    metrics = {metric: _compared(metric, errors[metric]) for metric in METRICS if metric not in without}
    fields = {
        "split": "leave-one-workload-out",
        "held_out": "w",
        "n_train_steps": 100,
        "configuration": "m on g, tp1 ep1 dp1, bfloat16",
        "workload": "w",
        "n_requests": 20,
        "view": "client",
        "longest_answer_tokens": 60,
        "step_time_us": pair_of(10_000.0, 10_000.0),
        "n_steps": pair_of(100, 100),
    }
    return Replay(job_id=job_id, metrics=metrics, **fields | changes)


def _compared(metric, error_pct) -> Compared:
    pair = pair_of(MEASURED[metric], MEASURED[metric] * (1 + error_pct / 100))
    return Compared(n=20, mean=pair, p50=pair, p90=pair, median_ape_pct=abs(error_pct), bias_pct=error_pct)
