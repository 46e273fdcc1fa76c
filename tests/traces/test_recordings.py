"""Against recordings of real vLLM 0.32.0 on a CPU: chunked prefill, prefix hits and preemptions."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from srfa.traces.accounting import account_tokens
from srfa.traces.client import ClientResult
from srfa.traces.findings import JobData
from srfa.traces.gates import check_job
from srfa.traces.plugin import Window, cut_windows, parse_trace
from srfa.traces.requests import requests_table
from srfa.traces.steps import step_entries, steps_table
from srfa.traces.tables import jobs_table, observations_table, resolved_arguments
from srfa.units import NS_PER_US

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(params=["dense", "moe"])
def lines(request):
    with gzip.open(DATA / f"trace_{request.param}.jsonl.gz") as file:
        return file.readlines()


@pytest.fixture
def data(lines, job, make_gpu):
    records = parse_trace(lines)
    jobs, steps = jobs_table(job, records.engine, run_id="r"), steps_table(records, job)
    observations = observations_table(jobs, steps, {"toy-gpu": make_gpu("step_cpu_time")})
    resolved = resolved_arguments(job.engine, records.engine)
    return JobData(records, resolved, steps, requests_table(records, None, job), observations)


def test_the_recording_holds_what_it_is_for(data):
    assert (data.steps["prefill_tokens"].to_numpy() == data.records.engine.max_num_batched_tokens).any()
    assert data.integers("cached_tokens").max() > 0
    assert data.integers("num_preemptions").sum() == data.records.preemptions.num_rows > 0


def test_tokens_are_conserved_on_every_request(data):
    account = account_tokens(step_entries(data.records.steps), data.requests)
    made = account.scheduled_tokens + data.integers("cached_tokens") - account.recomputed_tokens
    np.testing.assert_array_equal(made, data.integers("prompt_tokens") + data.integers("output_tokens") - 1)
    assert account.orphan_tokens == 0


def test_every_data_gate_passes(data, job):
    sent = _as_sent(data)
    failed = [finding for finding in check_job(data, sent, job) if not finding.passed]
    assert failed == []


def test_labels_tile_the_busy_time(data):
    """Each cycle ends where the next may begin: labels never count an instant twice."""
    start = data.steps["t_schedule_start_ns"].to_numpy()
    output = data.steps["t_output_ns"].to_numpy()
    total_us = data.steps["step_time_us"].to_numpy().sum()
    assert total_us <= (output[-1] - start[0]) / NS_PER_US
    assert (data.steps["step_time_us"].to_numpy() <= np.diff(output, prepend=start[0]) / NS_PER_US).all()


def test_cpu_time_is_the_label_and_does_not_exceed_the_wall_by_much(data):
    label, wall = (data.observations[name].to_numpy() for name in ("step_time_us", "step_wall_time_us"))
    assert label.size == data.steps.num_rows - 1
    assert np.median(label / wall) < 1.05


def test_a_recording_cut_in_two_loses_only_what_crosses_the_border(lines, data):
    border = int(data.steps["t_output_ns"][100].as_py())
    windows = [Window(job_id="a", t_start_ns=0, t_end_ns=border), Window(job_id="b", t_start_ns=border, t_end_ns=2**62)]
    parts = [parse_trace(part) for part in cut_windows(lines, windows).values()]
    assert sum(part.steps.num_rows for part in parts) == data.steps.num_rows
    assert sum(part.requests.num_rows for part in parts) == data.requests.num_rows


def _as_sent(data):
    """The client that would have sent exactly these requests."""
    n_requests = data.requests.num_rows
    nothing = np.zeros(n_requests)
    return ClientResult(
        request_ids=None,
        succeeded=np.ones(n_requests, dtype=bool),
        errors=("",) * n_requests,
        prompt_tokens=data.integers("prompt_tokens"),
        output_tokens=data.integers("output_tokens"),
        start_us=nothing,
        ttft_us=nothing,
        e2e_us=nothing,
        itl_us=data.requests["itl_us"],
        duration_us=0.0,
    )
