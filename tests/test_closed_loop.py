"""Jobs served by a simulation with a known law, written as a measured run, fitted, and replayed."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from srfa.closed_loop import replay_coefficients, replay_validations
from srfa.closed_loop_page import job_rows
from srfa.estimators import estimator_named
from srfa.estimators.blackbox import configuration_name
from srfa.fallback_file import read_fallbacks, write_fallbacks
from srfa.fallbacks import search_fallbacks
from srfa.gate import Limits, check_gate
from srfa.measurements import Measurements
from srfa.observations import configuration_of
from srfa.provenance import provenance_of
from srfa.run_tables import Tables
from srfa.schema import JOBS, REQUESTS
from srfa.simulate.clock import clock_of
from srfa.validate import cross_predict
from tests import simulated_jobs
from tests.replays import replay
from tests.simulated_jobs import MODELS, ROWS, law, observed, quick, simulated_run

LIMITS = Limits.model_validate(
    {
        "splits": {"time": {"required": False}},
        "closed_loop": {
            "min_jobs": 6,
            "max_median_e2e_pct": 3,
            "max_median_ttft_pct": 3,
            "max_median_tpot_pct": 3,
            "max_abs_bias_pct": 3,
        },
    }
)


def measurements(tables, shipped):
    return Measurements(observed(tables), tables, shipped, quick())


def validated(measured, estimator="blackbox", splits=("leave-one-job-out",)):
    return [
        cross_predict(
            estimator_named(estimator), measured.observations, measured.catalog, split=split, config=measured.config
        )
        for split in splits
    ]


@pytest.fixture(scope="module")
def run() -> Tables:
    return simulated_run(law(), ROWS)


@pytest.fixture(scope="module")
def report(run, shipped):
    measured = measurements(run, shipped)
    return replay_validations(validated(measured), measured)


def test_a_law_that_the_estimator_can_express_comes_back_on_jobs_it_never_saw(report):
    assert report.headline.n_jobs == len(ROWS)
    assert not report.not_replayed
    for metric, found in report.headline.metrics.items():
        assert found.median_pct < 1.0, metric
        assert abs(found.bias_pct) < 1.5, metric
    assert max(abs(one.error_pct("e2e")) for one in report.replays) < 3.0
    assert all(abs(one.n_steps.error_pct) < 2.0 for one in report.replays)


def test_each_replay_says_what_the_clock_alone_is_off(report):
    assert all(abs(one.step_time_us.error_pct) < 1.0 for one in report.replays)
    assert {one.view for one in report.replays} == {"client"}


def test_repeats_with_other_seeds_give_a_noise_floor(report):
    assert (report.noise.n_cells, report.noise.n_jobs) == (len(ROWS) // 2, len(ROWS))
    assert report.noise.spread_pct["e2e"] > 0.1


def test_a_job_whose_engine_was_twice_as_slow_is_named_first_with_minus_fifty_percent(shipped):
    slow = ROWS[2]["job_id"]
    measured = measurements(simulated_run(law(), ROWS[:6], slower={slow: 2.0}), shipped)
    report = replay_validations(validated(measured, splits=("leave-one-job-out",)), measured)
    assert job_rows(report)[0][0] == slow
    by_job = {one.job_id: one for one in report.replays}
    assert by_job[slow].error_pct("e2e") == pytest.approx(-50.0, abs=8.0)
    assert by_job[slow].step_time_us.error_pct == pytest.approx(-50.0, abs=8.0)


def test_a_loop_that_is_slower_than_its_steps_shows_in_e2e_and_not_in_the_step_time(run, shipped):
    """The requests of one job took twice as long, its steps did not: what a stalled client looks like."""
    job = ROWS[2]["job_id"]
    doubled = pc.if_else(pc.equal(run.requests["job_id"], job), 2.0, 1.0)
    requests = run.requests
    for name in ("ttft_us", "e2e_us"):
        longer = pc.multiply(requests[name], doubled)
        requests = requests.set_column(requests.column_names.index(name), name, longer)
    measured = measurements(Tables(run.jobs, run.steps, requests), shipped)
    report = replay_validations(validated(measured), measured)
    (found,) = (one for one in report.replays if one.job_id == job)
    assert found.error_pct("e2e") == pytest.approx(-50.0, abs=2.0)
    assert abs(found.step_time_us.error_pct) < 1.0


def test_a_job_replayed_on_coefficients_that_saw_it_is_marked(run, shipped):
    measured = measurements(run, shipped)
    blackbox = estimator_named("blackbox")
    fitted = blackbox.fit(blackbox.features(measured.observations, shipped), quick())
    some = measured.observations.take([0])
    fitted = fitted.model_copy(update={"provenance": provenance_of(some, {})})
    report = replay_coefficients(fitted, measured)
    assert {one.job_id for one in report.replays if one.seen} == set(some.job_ids)
    assert report.headline.n_jobs == len(ROWS) - 1
    assert report.headline.median_pct("e2e") < 1.0


def test_what_cannot_be_replayed_is_listed_with_its_reason(run, shipped):
    """One job lost its requests, one its server's facts, a model was not fitted: all are there, by name."""
    no_requests, no_blocks = ROWS[0]["job_id"], ROWS[1]["job_id"]
    rows = [row | {"num_gpu_blocks": None} if row["job_id"] == no_blocks else row for row in run.jobs.to_pylist()]
    requests = run.requests.filter(pc.not_equal(run.requests["job_id"], no_requests))
    measured = measurements(Tables(pa.Table.from_pylist(rows, schema=JOBS), run.steps, requests), shipped)
    report = replay_validations(validated(measured, splits=("leave-one-model-out", "leave-one-job-out")), measured)
    reasons = {one.job_id: one.reason for one in report.lost}
    assert set(reasons) == {no_requests, no_blocks}
    assert all(one.split == "leave-one-job-out" for one in report.replays)
    decision = check_gate([], LIMITS, closed_loop=report)
    assert [finding.held_out for finding in decision.broken] == ["max_not_replayed"]


def test_a_job_of_an_unknown_configuration_is_listed_where_an_estimator_learns_by_configuration(run, shipped):
    measured = measurements(run, shipped)
    only = measured.observations.take([0])
    known = law().model_copy(update={"provenance": provenance_of(only, {})})
    known = known.model_copy(update={"blocks": {name: block for name, block in law().blocks.items() if "Qwen" in name}})
    report = replay_coefficients(known, measured)
    assert {one.job_id for one in report.lost} == {row["job_id"] for row in ROWS if row["model"] == MODELS[0]}
    assert all("blackbox has no coefficients for" in one.reason for one in report.lost)


def test_a_job_alone_is_replayed_without_models_of_what_lies_outside_and_says_so(run, shipped):
    one = run.of_jobs([ROWS[0]["job_id"]])
    report = replay_coefficients(law(), measurements(one, shipped))
    missing = "alpha, alpha_token, between_steps, post, wall_ratio (no other job is there to learn from)"
    assert report.replays[0].without_outside == missing


def test_a_run_without_a_client_is_replayed_with_the_delays_that_need_none(run, shipped):
    """Its hand-over and its time between steps are known; without them E2E of decodes would be 1 % short."""
    requests = run.requests
    for name in ("ttft_us", "e2e_us", "itl_us"):
        at = requests.column_names.index(name)
        requests = requests.set_column(at, REQUESTS.field(name), pa.nulls(requests.num_rows, REQUESTS.field(name).type))
    report = replay_coefficients(law(), measurements(Tables(run.jobs, run.steps, requests), shipped))
    assert {one.view for one in report.replays} == {"engine"}
    for one in report.replays:
        assert one.without_outside.startswith("alpha_token, post (post and alpha_token: 0 usable requests")
        assert abs(one.error_pct("e2e")) < 0.5
        assert abs(one.error_pct("ttft")) < 1.0


def test_a_clients_rate_and_seats_are_both_replayed(shipped):
    """The client had seats for all it sent at its rate: a replay that forgot the rate would send all at once."""
    run = simulated_run(law(), ROWS[:6])
    rows = [row | {"max_concurrency": 16, "request_rate": 1000 / 60} for row in run.jobs.to_pylist()]
    jobs = pa.Table.from_pylist(rows, schema=JOBS)
    report = replay_coefficients(law(), measurements(Tables(jobs, run.steps, run.requests), shipped))
    assert report.headline.n_jobs == len(rows)
    for one in report.replays:
        assert abs(one.error_pct("ttft")) < 1.0
        assert abs(one.error_pct("e2e")) < 1.0


def test_a_validation_whose_folds_fail_lists_every_job(run, shipped):
    measured = measurements(run, shipped)
    report = replay_validations(validated(measured, splits=("leave-one-gpu-out",)), measured)
    assert report.headline is None
    assert len(report.lost) == len(ROWS)
    assert "leave-one-gpu-out needs at least two values of gpu" in report.lost[0].reason


def test_the_same_run_gives_the_same_report(run, shipped, report):
    measured = measurements(run, shipped)
    assert replay_validations(validated(measured), measured) == report


def test_progress_counts_every_replay(run, shipped):
    seen, measured = [], measurements(run.of_jobs([row["job_id"] for row in ROWS[:4]]), shipped)
    replay_validations(validated(measured), measured, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 4) for number in range(1, 5)]


def test_a_configuration_above_the_limit_gets_a_black_box_that_is_better_there(run, shipped, tmp_path):
    """A roofline knows nothing of this law: every configuration gets a fallback, with its own held-out error."""
    measured = measurements(run, shipped)
    report = replay_validations(validated(measured, "roofline"), measured)
    found = search_fallbacks(report, measured, limit_pct=10.0)
    assert len(found.fallbacks) == len(MODELS)
    for one in found.fallbacks:
        assert one.estimator_e2e_pct > 10.0
        assert one.held_out_e2e_pct < 2.0
        assert one.configuration in one.sentence
        assert list(one.coefficients.blocks) == [one.configuration]
        assert set(one.job_ids) == set(one.coefficients.provenance.job_ids)
    write_fallbacks("roofline", found.fallbacks, tmp_path / "fallbacks.json")
    assert read_fallbacks(tmp_path) == found.fallbacks
    place = configuration_of(run.jobs.to_pylist()[0])
    (own,) = (one for one in read_fallbacks(tmp_path) if one.configuration == configuration_name(place))
    assert clock_of(own.coefficients, place, shipped).estimator == "blackbox"


def test_no_fallback_is_made_below_the_limit_or_where_it_is_no_better(run, shipped, report):
    measured = measurements(run, shipped)
    roofline = replay_validations(validated(measured, "roofline"), measured)
    assert search_fallbacks(roofline, measured, limit_pct=1_000.0).fallbacks == ()
    nearly_right = replay(e2e=1e-6).metrics["e2e"]
    right = tuple(one.model_copy(update={"metrics": one.metrics | {"e2e": nearly_right}}) for one in report.replays)
    better = report.model_copy(update={"estimator": "roofline", "replays": right})
    found = search_fallbacks(better, measured, limit_pct=1e-9)
    assert found.fallbacks == ()
    assert len(found.declined) == len(MODELS)
    assert all("is no better" in sentence for sentence in found.declined)


def test_a_black_box_is_not_its_own_fallback(run, shipped, report):
    assert search_fallbacks(report, measurements(run, shipped), limit_pct=1e-9).fallbacks == ()


def test_the_error_in_sample_is_made_with_models_of_what_lies_outside_the_steps(shipped, monkeypatch):
    """All jobs are of one configuration, and a third of their time lies between the steps."""
    monkeypatch.setattr(simulated_jobs, "BETWEEN_US", 3_000.0)
    measured = measurements(simulated_run(law(), ROWS[:6]), shipped)
    report = replay_validations(validated(measured, "roofline"), measured)
    (found,) = search_fallbacks(report, measured, limit_pct=10.0).fallbacks
    assert found.in_sample_e2e_pct < 2.0


def test_a_black_box_that_was_replayed_on_some_of_the_jobs_is_declined_with_the_others_named(run, shipped):
    """One workload has fewer steps than a black box is fitted to, so the jobs of the other have no fold."""
    measured = measurements(run.of_jobs([row["job_id"] for row in ROWS[2:6]]), shipped)
    report = replay_validations(validated(measured, "roofline"), measured)
    steps = measured.observations
    of = [np.flatnonzero(np.array(steps.job_ids) == row["job_id"]) for row in ROWS[2:6]]
    kept = np.concatenate([of[0][:4], of[1][:4], *of[2:]])
    found = search_fallbacks(report, replace(measured, observations=steps.take(kept)), limit_pct=1.0)
    assert found.fallbacks == ()
    (sentence,) = found.declined
    assert "its black box could not be replayed on 2 of 4 jobs" in sentence
    assert all(row["job_id"] in sentence for row in ROWS[4:6])


def test_replays_say_what_data_their_fits_are_of(run, shipped):
    measured = measurements(run.of_jobs([row["job_id"] for row in ROWS[:2]]), shipped)
    origin = provenance_of(measured.observations, {"observations.parquet": "00"})
    validations = [one.with_provenance(origin) for one in validated(measured)]
    assert replay_validations(validations, measured).provenance == origin
    fitted = law().model_copy(update={"provenance": provenance_of(measured.observations, {"other.parquet": "11"})})
    assert replay_coefficients(fitted, measured).provenance == fitted.provenance


def test_a_job_of_one_token_answers_is_told_from_one_that_lost_its_tpot(shipped, monkeypatch):
    monkeypatch.setitem(simulated_jobs.WORKLOADS, "prefill", (900, 1))
    measured = measurements(simulated_run(law(), ROWS[:4]), shipped)
    report = replay_coefficients(law(), measured)
    has_tpot = {one.job_id: (one.longest_answer_tokens > 1, "tpot" in one.metrics) for one in report.replays}
    assert has_tpot == {row["job_id"]: (row["workload"] == "decode",) * 2 for row in ROWS[:4]}


def test_a_release_folder_without_fallbacks_has_none(tmp_path):
    assert read_fallbacks(tmp_path) == ()


def test_a_single_job_gets_a_fallback_in_sample_only_within_the_limit_and_its_error_is_not_called_held_out(
    run, shipped
):
    measured = measurements(run.of_jobs([ROWS[2]["job_id"], ROWS[8]["job_id"]]), shipped)
    report = replay_validations(validated(measured, "roofline"), measured)
    found = search_fallbacks(report, measured, limit_pct=5.0)
    assert len(found.fallbacks) == len(MODELS)
    for one in found.fallbacks:
        assert one.held_out_e2e_pct is None
        assert one.in_sample_e2e_pct < 5.0
        assert "in sample, of its one job" in one.sentence
