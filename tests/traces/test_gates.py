from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from srfa.traces.accounting import account_tokens
from srfa.traces.client import parse_client
from srfa.traces.findings import JobData
from srfa.traces.gates import check_job, check_resolved_config, check_speed_of_light, summarise
from srfa.traces.plugin import parse_trace
from srfa.traces.requests import requests_table
from srfa.traces.steps import step_entries, steps_table
from srfa.traces.tables import jobs_table, observations_table, resolved_arguments


@pytest.fixture(scope="session")
def data_of(make_gpu):
    def build(run, job):
        records, client = parse_trace(run.lines()), parse_client(json.dumps(run.client).encode())
        steps, requests = steps_table(records, job), requests_table(records, client, job)
        jobs = jobs_table(job, records.engine, run_id="r")
        observations = observations_table(jobs, steps, {"toy-gpu": make_gpu()})
        resolved = resolved_arguments(job.engine, records.engine)
        return JobData(records, resolved, steps, requests, observations), client

    return build


@pytest.fixture(scope="session")
def failed_rules(data_of, job):
    def check(run, expected=job, floor_us=None):
        data, client = data_of(run, expected)
        return {finding.rule for finding in check_job(data, client, expected, floor_us) if not finding.passed}

    return check


REQUEST = st.tuples(st.integers(1, 150), st.integers(1, 12), st.integers(0, 90))
SCHEDULE = st.fixed_dictionaries(
    {
        "requests": st.lists(REQUEST, min_size=2, max_size=8),
        "budget": st.integers(4, 128),
        "max_seqs": st.integers(1, 6),
        "kv_tokens": st.integers(100, 600),
        "every_ns": st.integers(0, 30_000_000),
    }
)


@settings(max_examples=60, deadline=None)
@given(schedule=SCHEDULE)
def test_any_schedule_conserves_tokens_and_passes(toy, failed_rules, schedule):
    run = toy(**schedule)
    assume(len(run.kind("step")) >= 5)
    assert failed_rules(run) == set()


def _complete_requests(run):
    return {record["request_id"]: record for record in run.kind("request")}


def _drop(run):
    run.records.append({"record": "dropped", "count": 1})


def _lose_a_step(run):
    run.records.remove(run.kind("step")[2])


def _lose_a_request_record(run):
    run.records.remove(run.kind("request")[0])


def _one_token_more(run):
    run.kind("step")[2]["num_new_tokens"][0] += 1


def _one_output_less(run):
    run.kind("request")[0]["output_tokens"] -= 1


def _cached_more_than_started_with(run):
    run.kind("request")[0]["cached_tokens"] += 4


def _an_unexplained_fall(run):
    run.kind("step")[-1]["num_computed_tokens"][0] -= 2
    run.kind("step")[-1]["num_new_tokens"][0] += 2


def _another_prompt_at_the_client(run):
    run.client["input_lens"][0] += 1


def _an_unsent_request(run):
    for key in [key for key, value in run.client.items() if isinstance(value, list)]:
        del run.client[key][0]
    run.client["completed"] -= 1
    del run.client["mean_ttft_ms"]


def _finished_before_its_first_token(run):
    request = run.kind("request")[0]
    request["t_finished_ns"] = request["t_first_token_ns"] - 1


def _scheduled_before_it_was_queued(run):
    request = run.kind("request")[0]
    request["t_first_scheduled_ns"] = request["t_queued_ns"] - 1


def _schedule_longer_than_the_step(run):
    steps = run.kind("step")
    steps[3]["t_schedule_start_ns"] = steps[2]["t_output_ns"] - 90_000_000
    steps[3]["t_schedule_end_ns"] = steps[3]["t_output_ns"] - 1


def _clocks_that_stand_still(run):
    for step in run.kind("step")[2:]:
        step["t_output_ns"] = run.kind("step")[1]["t_output_ns"]


FAULTS = {
    _drop: "dropped_records",
    _lose_a_step: "step_ids_contiguous",
    _lose_a_request_record: "tokens_sum_to_steps",
    _one_token_more: "tokens_conserved",
    _one_output_less: "tokens_conserved",
    _cached_more_than_started_with: "tokens_conserved",
    _an_unexplained_fall: "tokens_conserved",
    _another_prompt_at_the_client: "client_tokens",
    _an_unsent_request: "client_tokens",
    _finished_before_its_first_token: "request_order",
    _scheduled_before_it_was_queued: "request_order",
    _schedule_longer_than_the_step: "step_not_shorter_than_schedule",
    _clocks_that_stand_still: "valid_steps",
}


@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__.strip("_"))
@given(lengths=st.lists(st.tuples(st.integers(20, 150), st.integers(5, 9)), min_size=2, max_size=5))
def test_a_planted_fault_is_refused_by_its_rule(toy, failed_rules, plant, lengths):
    run = toy(lengths)
    plant(run)
    assert FAULTS[plant] in failed_rules(run)


SINGLE = (_drop, _lose_a_request_record, _another_prompt_at_the_client, _finished_before_its_first_token)


@pytest.mark.parametrize("plant", SINGLE, ids=lambda plant: plant.__name__.strip("_"))
def test_a_fault_with_one_consequence_fails_one_rule(toy, failed_rules, plant):
    run = toy([(100, 5), (40, 8)])
    plant(run)
    expected = {FAULTS[plant]} | ({"client_tokens"} if plant is _lose_a_request_record else set())
    assert failed_rules(run) == expected


def test_prefill_is_what_the_cache_did_not_hold(toy, failed_rules):
    run = toy([(100, 5, 64), (40, 5)])
    assert failed_rules(run) == set()
    # The record claims a shorter prompt: the totals shift between prompt and output, the prefill does not.
    request = _complete_requests(run)["cmpl-bench-0-0-00000000"]
    request["prompt_tokens"] -= 1
    request["output_tokens"] += 1
    assert "prefill_tokens" in failed_rules(run)


def test_recomputed_tokens_are_accounted_for(toy, job, data_of):
    run = toy([(60, 12), (60, 12), (60, 12)], kv_tokens=200)
    assert run.kind("preemption")
    data, _ = data_of(run, job)
    account = account_tokens(step_entries(data.records.steps), data.requests)
    prompt, output, cached = (data.integers(name) for name in ("prompt_tokens", "output_tokens", "cached_tokens"))
    assert account.recomputed_tokens.sum() > 0
    np.testing.assert_array_equal(account.scheduled_tokens + cached - account.recomputed_tokens, prompt + output - 1)
    np.testing.assert_array_equal(account.falls, data.integers("num_preemptions"))


def test_a_recomputation_without_a_preemption_is_refused(toy, failed_rules):
    run = toy([(60, 12), (60, 12), (60, 12)], kv_tokens=200)
    for request in run.kind("request"):
        request["num_preemptions"] = 0
    assert "tokens_conserved" in failed_rules(run)


def test_without_ids_lengths_are_compared_as_collections(toy, failed_rules):
    run = toy([(100, 5), (40, 8)])
    del run.client["request_ids"]
    assert failed_rules(run) == set()
    run.client["input_lens"].reverse()
    assert failed_rules(run) == {"client_tokens"}


def test_an_aborted_request_is_not_held_to_the_token_rules(toy, failed_rules):
    run = toy([(100, 5), (40, 8)])
    request = _complete_requests(run)["cmpl-bench-0-0-00000000"]
    request |= {"finish_status": "abort", "output_tokens": 2}
    run.client["errors"][0], run.client["output_lens"][0], run.client["completed"] = "gone", 0, 1
    del run.client["mean_ttft_ms"]
    assert failed_rules(run) == {"failed_requests"}


def _stopped_one_step_late(toy):
    run = toy([(60, 6), (60, 9)])
    request = _complete_requests(run)["cmpl-bench-0-0-00000000"]
    request["output_tokens"] -= 1
    run.client["output_lens"][0] -= 1
    run.client["itls"][0].pop()
    run.client["latencies"][0] -= 2e-3
    return run, request


def test_a_stop_seen_one_step_late_is_allowed_with_asynchronous_scheduling_only(toy, failed_rules):
    run, request = _stopped_one_step_late(toy)
    assert failed_rules(run) == {"tokens_conserved"}
    run.records[0] |= {"async_scheduling": True, "batch_queue_size": 2}
    assert failed_rules(run) == {"tokens_conserved"}
    request["finish_status"] = "stop"
    assert failed_rules(run) == set()


def test_asynchronous_scheduling_may_shorten_one_step_in_a_hundred(toy, failed_rules):
    run = toy([(20, 60), (20, 60)] * 3)
    _schedule_longer_than_the_step(run)
    assert failed_rules(run) == {"step_not_shorter_than_schedule"}
    run.records[0] |= {"async_scheduling": True, "batch_queue_size": 2}
    assert failed_rules(run) == ({"step_not_shorter_than_schedule"} if len(run.kind("step")) < 100 else set())


def test_a_config_mismatch_names_the_argument_and_both_values(make_job, data_of, toy):
    expected = make_job({"max_num_seqs": 16, "block_size": 32, "dtype": "auto"})
    data, client = data_of(toy([(100, 5)]), expected)
    failed = [finding for finding in check_job(data, client, expected) if not finding.passed]
    assert [finding.rule for finding in failed] == ["config_mismatch"]
    assert failed[0].sentence == "max_num_seqs: asked 16, runs with 8"


def test_a_dtype_by_another_name_is_no_mismatch(make_job):
    requested = make_job({"dtype": "half"}).engine
    assert check_resolved_config(requested, requested.model_copy(update={"dtype": "float16"})).passed
    assert not check_resolved_config(requested, requested.model_copy(update={"dtype": "bfloat16"})).passed


@pytest.mark.parametrize(("factor", "passed"), [(0.79, False), (0.81, True)])
def test_a_label_under_four_fifths_of_the_speed_of_light_is_refused(toy, job, data_of, factor, passed):
    data, _ = data_of(toy([(100, 5)]), job)
    floor_us = data.observations["step_time_us"].to_numpy() / 2
    floor_us[2] *= 2 / factor
    finding = check_speed_of_light(data, floor_us)
    assert finding.passed is passed
    assert finding.value == pytest.approx(0.0 if passed else 0.2)  # one of five steps
    if not passed:
        for suspect in ("clock", "unit", "sparsity", f"step {data.observations['step_id'][2]}"):
            assert suspect in finding.sentence


def test_without_a_floor_the_speed_of_light_is_not_claimed(toy, job, data_of):
    data, client = data_of(toy([(100, 5)]), job)
    rules = {finding.rule for finding in check_job(data, client, job)}
    assert "speed_of_light" not in rules
    floor_us = np.zeros(data.observations.num_rows)
    assert rules | {"speed_of_light"} == {finding.rule for finding in check_job(data, client, job, floor_us)}


def test_a_trace_without_a_step_fails_instead_of_passing_emptily(toy, failed_rules):
    run = toy([(100, 5)])
    run.records[1:] = []
    assert failed_rules(run) == {"valid_steps", "client_tokens"}


def test_the_summary_names_every_failed_rule(toy, job, data_of):
    run = toy([(100, 5), (40, 8)])
    data, client = data_of(run, job)
    assert summarise(check_job(data, client, job)) == "all 13 data gates passed"
    _drop(run)
    _another_prompt_at_the_client(run)
    data, client = data_of(run, job)
    summary = summarise(check_job(data, client, job))
    assert summary.startswith(
        "2 of 13 data gates failed: dropped_records: the recorder lost 1 records; client_tokens: "
    )
    assert "\n" not in summary
