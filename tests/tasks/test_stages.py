"""What is retried, and that one group's misfortune stays its own; tasks are called without Prefect."""

import json

import pytest
from prefect.states import Failed

from srfa.coefficients import FitConfig
from srfa.errors import EngineError, FitError, GateFailed, StoreError
from srfa.gate import GateDecision, Limits
from srfa.release import RELEASE_FILE, read_release
from srfa.specs import EngineGroup
from tasks import stages, training
from tasks.group import failed_outcome, run_group
from tasks.ingest import stored_run
from tasks.publish import read_latest
from tasks.stages import fold_table, ingest_run, load_run, lost_group, measured_in_attempts, publish_release
from tasks.store import open_store
from tests.flows.recorded import NARROW, WIDE, jobs, record_job, record_run, write_inputs
from tests.steps import catalog


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def store(inputs, tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("store"))
    record_run(uri, "r1", jobs(inputs / "matrix.yaml"))
    return open_store(uri)


@pytest.fixture(scope="module")
def dataset(store):
    found, measured = ingest_run.fn(store, "r1", stored_run(store, "r1"), catalog())
    return load_run.fn(store, "r1", found, measured)


@pytest.fixture(scope="module")
def candidate(dataset):
    config = FitConfig(lambda_gamma=(0.001,), lambda_beta=(0.001,), huber_delta=(0.1,))
    coefficients = training.fit(dataset, "srfa-seed", config)
    splits = ("leave-one-gpu-out", "leave-one-workload-out")
    validations = [training.validate(dataset, "srfa-seed", split, config) for split in splits]
    return training.with_validation(coefficients, validations)


def limits(text):
    import yaml

    return Limits.model_validate(yaml.safe_load(text))


def outcomes_of(job, *reasons):
    return tuple(failed_outcome(job, "r1", reason, "planted") for reason in reasons)


@pytest.mark.parametrize(
    ("reason", "calls"), [("store", 2), ("worker_lost", 2), ("unschedulable", 1), ("engine_start", 1), ("timeout", 1)]
)
def test_only_what_may_pass_is_tried_again(inputs, reason, calls):
    answers = [outcomes_of(jobs(inputs / "matrix.yaml")[0], reason)] * 5
    measured_in_attempts(answers.pop, attempts=2)
    assert len(answers) == 5 - calls


def test_the_outcomes_of_the_last_attempt_count(inputs, tmp_path):
    job = jobs(inputs / "matrix.yaml")[0]
    good = (record_job(str(tmp_path / "s"), "r1", job),)
    answers = [good, outcomes_of(job, "store")]
    assert measured_in_attempts(answers.pop, attempts=2) == good


def test_a_group_whose_task_broke_fails_alone_and_says_why(inputs):
    job = jobs(inputs / "matrix.yaml")[0]
    (outcome,) = lost_group(EngineGroup(group_id=job.group_id, jobs=(job,)), "r1", ValueError("planted"))
    assert (outcome.status, outcome.reason) == ("failed", "worker_lost")
    assert "ValueError: planted" in outcome.message


def test_a_refusing_store_is_retried_and_bad_data_is_not():
    def retried(error):
        return stages._store_error(stages.ingest_run, None, Failed(data=error))

    assert retried(StoreError("planted"))
    assert not retried(FitError("planted"))
    assert not retried(EngineError("store", "planted"))


def test_coefficients_carry_where_they_come_from_and_how_they_did(candidate, dataset):
    origin = candidate.coefficients.provenance
    assert origin.data_sha256 == dataset.data_sha256
    assert set(origin.gpus) == {"cpu-1t", "cpu-1t-lite"}
    assert {row.split for row in candidate.coefficients.validation} == {"leave-one-gpu-out", "leave-one-workload-out"}
    assert all(report.provenance == origin for report in candidate.reports)


def test_requests_of_a_run_get_their_own_models(dataset):
    found = training.fit_requests(dataset, FitConfig())
    assert set(found.blocks) == {"alpha", "queue_wait", "alpha_token", "post", "between_steps", "wall_ratio"}
    assert all(value >= 0 for block in found.blocks.values() for value in block.values)
    assert found.refusals == {}


def test_observations_without_tables_have_no_request_models(dataset):
    from dataclasses import replace

    assert training.fit_requests(replace(dataset, tables=None), FitConfig()).blocks == {}


def test_every_fold_is_a_row_of_the_artifact(candidate):
    rows = fold_table(candidate.reports)
    assert len(rows) == 4
    assert {row["held out"] for row in rows} == {"cpu-1t", "cpu-1t-lite", "long", "short"}
    json.dumps(rows)


def test_a_release_that_passed_becomes_the_latest_and_one_that_failed_does_not(candidate, dataset, tmp_path):
    store = open_store(str(tmp_path / "s"))
    failed = training.judge(candidate, limits(NARROW))
    release, report, latest = publish_release.fn(store, candidate, failed, dataset)
    assert not release.passed
    assert not latest
    assert "Verdict: failed" in report
    with pytest.raises(StoreError):
        read_latest(store)
    assert store.exists(f"releases/{release.release_id}/{RELEASE_FILE}")
    passed = training.judge(candidate, limits(WIDE))
    release, _, latest = publish_release.fn(store, candidate, passed, dataset, out=tmp_path / "out")
    assert latest
    assert read_latest(store).release_id == release.release_id
    assert read_release(tmp_path / "out" / release.release_id) == release


def test_a_release_fitted_to_simulated_steps_is_written_and_never_becomes_the_latest(
    rehearsed_group, rehearsed_request, candidate, dataset, tmp_path
):
    store = open_store(rehearsed_request.store_uri)
    passed = training.judge(candidate, limits(WIDE))
    measured, _, _ = publish_release.fn(store, candidate, passed, dataset)
    run_group(rehearsed_group, rehearsed_request)
    run_id = rehearsed_request.run_id
    found, catalogue = ingest_run.fn(store, run_id, stored_run(store, run_id), catalog())
    rehearsed = load_run.fn(store, run_id, found, catalogue)
    config = FitConfig(lambda_gamma=(0.001,), lambda_beta=(0.001,), huber_delta=(0.1,))
    coefficients = training.fit(rehearsed, "srfa-seed", config)
    validation = training.validate(rehearsed, "srfa-seed", "leave-one-workload-out", config)
    proven = training.with_validation(coefficients, [validation])
    decision = training.judge(proven, limits("splits: {leave-one-workload-out: {}}"))
    release, report, latest = publish_release.fn(store, proven, decision, rehearsed)
    assert release.passed
    assert not latest
    assert release.provenance.simulated_versions == ("vllm 0.32.0+simulated",)
    assert "Verdict: passed (rehearsal)" in report
    assert store.exists(f"releases/{release.release_id}/{RELEASE_FILE}")
    assert read_latest(store).release_id == measured.release_id


def test_the_verdict_names_the_fold(candidate):
    decision = training.judge(candidate, limits(NARROW))
    assert isinstance(decision, GateDecision)
    with pytest.raises(GateFailed, match="leave-one-gpu-out, cpu-1t held out"):
        decision.require_passed()
