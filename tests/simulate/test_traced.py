"""Simulated runs written as traces: what the reader of real traces finds in them."""

import json

import numpy as np
import pytest

from srfa.operator_kernels import StepTotals
from srfa.simulate.client_file import client_document, token_times_us
from srfa.simulate.clock import linear_clock
from srfa.simulate.engine import simulate
from srfa.simulate.load import RequestLoad
from srfa.simulate.outside import Outside
from srfa.simulate.server import Server
from srfa.simulate.traced import TracedRun, trace_lines
from srfa.simulate.workload import workload_load
from srfa.specs import EngineArgs, Workload
from srfa.traces.client import parse_client
from srfa.traces.plugin import parse_trace
from srfa.traces.steps import step_entries

CLOCK = linear_clock(1000.0, StepTotals(prefill_tokens=10.0, decodes=100.0, is_measured=0.0))
ROOMY = Server(max_num_batched_tokens=256, max_num_seqs=8, max_model_len=512, block_size=16, num_gpu_blocks=400)
TIGHT = Server(max_num_batched_tokens=128, max_num_seqs=16, max_model_len=256, block_size=16, num_gpu_blocks=25)


def traced(load, server=ROOMY, outside=None):
    served = simulate(load, server, CLOCK, outside, record_steps=True)
    ids = tuple(f"client-{row}" for row in range(load.n_requests))
    return TracedRun(load, served, server, EngineArgs(), ids, "0.32.0")


def random_load(**words):
    defaults = {"random_input_len": 80, "random_output_len": 30, "random_range_ratio": 0.5, "num_prompts": 20}
    return workload_load(Workload(name="w", **defaults | words), seed=1)


def records_of(run):
    return parse_trace(list(trace_lines(run)))


@pytest.mark.parametrize("server", [ROOMY, TIGHT])
def test_the_trace_holds_every_step_and_request_as_simulated(server):
    run = traced(random_load(), server)
    records, log = records_of(run), run.steps
    assert records.dropped == records.torn == 0
    assert records.steps["step_id"].to_pylist() == list(range(log.n_steps))
    entries = step_entries(records.steps)
    np.testing.assert_array_equal(entries.new_tokens, log.new_tokens)
    np.testing.assert_array_equal(entries.computed_tokens, log.computed_tokens)
    assert records.requests.num_rows == run.load.n_requests
    np.testing.assert_allclose(
        np.diff(records.steps["t_output_ns"].to_numpy()) / 1e3, np.diff(log.t_output_us), atol=2e-3
    )


def test_times_in_the_trace_never_go_backwards():
    lines = [json.loads(line) for line in trace_lines(traced(random_load(request_rate=50.0)))][1:]
    instants = [line.get("t_output_ns", line.get("t_finished_ns")) for line in lines]
    assert instants == sorted(instants)


def test_every_preemption_is_recorded_of_a_request_that_was_preempted():
    run = traced(random_load(), TIGHT)
    assert run.served.num_preemptions.sum() > 0
    found = records_of(run).preemptions
    assert found.num_rows == run.served.num_preemptions.sum()
    preempted = {run.server_ids[row] for row in np.flatnonzero(run.served.num_preemptions)}
    assert set(found["request_id"].to_pylist()) == preempted


def test_block_names_are_written_where_prefixes_are_cached():
    load = workload_load(
        Workload(name="w", dataset_name="prefix_repetition", prefix_repetition_prefix_len=64,
                 prefix_repetition_num_prefixes=2, num_prompts=4, prefix_repetition_output_len=2), seed=0,
    )  # fmt: skip
    names = [json.loads(line).get("block_hashes") for line in trace_lines(traced(load)) if b'"request"' in line]
    assert [len(one) for one in names] == [4, 4, 4, 4]
    assert len({tuple(one) for one in names}) == 2


def test_the_engine_version_says_that_it_was_simulated():
    assert records_of(traced(random_load())).engine.vllm_version == "0.32.0+simulated"


@pytest.mark.parametrize("server", [ROOMY, TIGHT])
def test_every_output_token_has_its_step(server):
    run = traced(random_load(), server)
    owner, times = token_times_us(run.served, run.steps)
    np.testing.assert_array_equal(np.bincount(owner), run.load.output_tokens)
    first = np.searchsorted(owner, np.arange(run.load.n_requests))
    last = np.append(first[1:], len(owner)) - 1
    np.testing.assert_array_equal(times[first], run.served.t_first_token_us)
    np.testing.assert_array_equal(times[last], run.served.t_finished_us)


def test_the_client_saw_what_was_simulated():
    load = random_load(request_rate=40.0)
    count = load.n_requests
    outside = Outside(np.full(count, 300.0), np.full(count, 500.0), np.full(count, 20.0))
    run = traced(load, outside=outside)
    client = parse_client(json.dumps(client_document(run)).encode())
    np.testing.assert_allclose(client.e2e_us, run.served.e2e_us, atol=0.01)
    np.testing.assert_allclose(client.ttft_us, run.served.ttft_us, atol=0.01)
    gaps = client.itl_us.flatten().to_numpy()
    assert len(gaps) == (load.output_tokens - 1).sum()
    assert gaps.min() > 0


def test_one_request_has_the_times_of_its_steps():
    load = RequestLoad.of(np.zeros(1), np.array([100]), np.array([3]))
    client = client_document(traced(load))
    assert client["ttfts"][0] == pytest.approx((1000 + 10 * 100) / 1e6, rel=1e-5)
    assert client["itls"][0] == pytest.approx([1100 / 1e6] * 2, rel=1e-5)


def test_a_run_without_its_steps_cannot_be_written():
    load = random_load()
    run = TracedRun(load, simulate(load, ROOMY, CLOCK), ROOMY, EngineArgs(), ("x",) * 20, "0.32.0")
    with pytest.raises(ValueError, match="record_steps=True"):
        next(iter([*trace_lines(run)]))
