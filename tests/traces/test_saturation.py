from __future__ import annotations

import json

import pyarrow as pa
import pytest

from srfa.traces.client import parse_client
from srfa.traces.findings import JobData
from srfa.traces.plugin import parse_trace
from srfa.traces.requests import requests_table
from srfa.traces.saturation import check_failures, check_little_law, check_queue_growth
from srfa.traces.steps import steps_table
from srfa.units import NS_PER_S

ONE_REQUEST_NS = 60_000_000
"""About what the toy engine takes for one request of 20 + 5 tokens alone, one at a time."""


@pytest.fixture
def data_at(toy, make_job):
    """Return a job whose load is ``load`` times what an engine with one seat can serve."""

    def build(load, n_requests=60):
        run = toy([(20, 5)] * n_requests, max_seqs=1, every_ns=int(ONE_REQUEST_NS / load))
        job = make_job(request_rate=load * NS_PER_S / ONE_REQUEST_NS, num_prompts=n_requests)
        records = parse_trace(run.lines())
        steps = steps_table(records, job)
        return JobData(records, job.engine, steps, requests_table(records, None, job), steps), job.workload

    return build


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_a_load_the_engine_can_serve_passes(data_at, load):
    data, workload = data_at(load)
    assert check_little_law(data, workload).passed
    assert check_queue_growth(data, workload).passed


@pytest.mark.parametrize("load", [1.3, 2.0, 4.0, 10.0, 50.0])
def test_a_load_beyond_the_engine_is_refused(data_at, load):
    data, workload = data_at(load)
    assert not check_little_law(data, workload).passed
    assert not check_queue_growth(data, workload).passed


@pytest.mark.parametrize("load", [1.5, 3.0])
def test_the_missing_share_is_one_minus_the_inverse_of_the_load(data_at, load):
    data, workload = data_at(load, n_requests=200)
    assert check_little_law(data, workload).value == pytest.approx(1 - 1 / load, abs=0.05)


def test_a_short_run_of_long_requests_is_not_taken_for_an_overload(toy, make_job):
    """Requests of a second arriving over two seconds: a quarter of the time lies after the last arrival."""
    run = toy([(20, 80)] * 20, max_seqs=32, every_ns=NS_PER_S // 10)
    job = make_job(request_rate=10.0, num_prompts=20)
    records = parse_trace(run.lines())
    data = JobData(records, job.engine, steps_table(records, job), requests_table(records, None, job), None)
    finding = check_little_law(data, job.workload)
    assert finding.value > 0.2
    assert finding.passed
    assert check_queue_growth(data, job.workload).passed


@pytest.mark.parametrize(("burstiness", "passed"), [(0.25, True), (100.0, False)])
def test_a_burst_at_the_end_is_luck_only_where_the_load_is_bursty(toy, make_job, burstiness, passed):
    """The last six of thirty-two requests arrive together, at a quarter of what the engine can serve."""
    run = toy([(20, 40)] * 32, max_seqs=8, every_ns=NS_PER_S // 4)
    job = make_job(request_rate=4.0, num_prompts=32, burstiness=burstiness)
    records = parse_trace(run.lines())
    requests = requests_table(records, None, job).to_pandas().sort_values("t_queued_ns")
    shift = requests.t_queued_ns.iloc[-6:].max() - requests.t_queued_ns.iloc[-6:]
    for name in ("t_queued_ns", "t_finished_ns"):
        requests.loc[shift.index, name] += shift
    table = pa.Table.from_pandas(requests, preserve_index=False)
    finding = check_little_law(JobData(records, job.engine, steps_table(records, job), table, None), job.workload)
    assert finding.value == pytest.approx(6 / 32, rel=0.2)
    assert finding.passed is passed


def test_a_closed_loop_may_queue(data_at, make_job):
    data, _ = data_at(10.0)
    closed = make_job().workload
    assert check_little_law(data, closed).passed
    assert check_queue_growth(data, closed).passed


def test_a_bound_on_concurrency_closes_the_loop_where_it_binds(data_at):
    data, workload = data_at(4.0)
    assert check_little_law(data, workload.model_copy(update={"max_concurrency": 10})).passed
    assert check_queue_growth(data, workload.model_copy(update={"max_concurrency": 10})).passed
    never_binds = workload.model_copy(update={"max_concurrency": workload.num_prompts})
    assert not check_little_law(data, never_binds).passed


@pytest.mark.parametrize("n_requests", [0, 1])
def test_too_few_arrivals_say_nothing_about_queues(data_at, n_requests):
    data, workload = data_at(1.0, n_requests=1)
    data = JobData(data.records, data.resolved, data.steps, data.requests.slice(0, n_requests), data.steps)
    assert check_little_law(data, workload).passed
    assert check_queue_growth(data, workload).passed


def _client(n_sent, n_failed):
    good = n_sent - n_failed
    document = {
        "duration": 1.0,
        "completed": good,
        "input_lens": [8] * n_sent,
        "output_lens": [1] * good + [0] * n_failed,
        "ttfts": [0.1] * good + [0.0] * n_failed,
        "itls": [[]] * n_sent,
        "errors": [""] * good + ["Traceback: connection refused"] * n_failed,
    }
    return parse_client(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("n_sent", "n_failed", "passed"), [(200, 2, True), (200, 3, False), (198, 0, True), (197, 0, False)]
)
def test_at_most_one_request_in_a_hundred_may_fail_or_be_missing(make_job, n_sent, n_failed, passed):
    finding = check_failures(_client(n_sent, n_failed), make_job(num_prompts=200).workload)
    assert finding.passed is passed
    assert ("connection refused" in finding.sentence) is bool(n_failed)


def test_shared_prefixes_are_repeated_equally_often(make_job):
    workload = {"dataset_name": "prefix_repetition", "num_prompts": 39, "prefix_repetition_num_prefixes": 10}
    assert check_failures(_client(30, 0), make_job(**workload).workload).passed
    assert not check_failures(_client(29, 0), make_job(**workload).workload).passed
