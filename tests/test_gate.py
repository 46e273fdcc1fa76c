import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srfa.coefficients import FitConfig, Provenance
from srfa.errors import GateFailed, InputError, LimitsError
from srfa.gate import Limits, check_gate, load_limits
from srfa.metrics import Errors, Interval, JobError, mean_interval
from srfa.physics_report import PhysicsReport
from srfa.validate import cross_validate
from srfa.validation_report import FoldReport, ValidationReport
from tests.planted import LinearEstimator, planted_observations
from tests.steps import ROOT

LIMITS = Limits.model_validate(
    {
        "splits": {
            "leave-one-gpu-out": {"max_mape_pct": 10, "max_abs_bias_pct": 5, "max_p90_ape_pct": 25, "min_jobs": 2}
        },
        "baseline": {"max_regression_pct_points": 1.0, "confidence": 0.95},
    }
)


def fold(held_out="a", mape=5.0, bias=1.0, p90=10.0, jobs=(5.0,) * 8, **changes):
    errors = Errors(
        n_steps=10 * len(jobs),
        n_jobs=len(jobs),
        mape_pct=mape,
        median_ape_pct=mape,
        p90_ape_pct=p90,
        mae_us=100.0,
        bias_pct=bias,
        mape_interval_pct=Interval(low=mape, high=mape),
    )
    per_job = [JobError(job_id=f"j{n}", n_steps=10, mape_pct=one, bias_pct=0.0) for n, one in enumerate(jobs)]
    given_ = {"errors": errors, "converged": True, "message": "done", "jobs": tuple(per_job)} | changes
    return FoldReport(held_out=held_out, n_train_steps=10, n_train_jobs=2, **given_)


def report(*folds, split="leave-one-gpu-out", **changes):
    given_ = {"estimator": "linear", "split": split, "config": FitConfig(), "n_steps": 200, "n_jobs": 20} | changes
    return ValidationReport(folds=folds, pooled=None, **given_)


def broken(decision):
    return [(finding.rule, finding.held_out) for finding in decision.broken]


def of_jobs(held_out, jobs):
    return fold(held_out, mape=float(np.mean(jobs)), jobs=tuple(jobs))


def test_reports_within_every_limit_pass():
    decision = check_gate([report(fold("a"), fold("b"))], LIMITS)
    assert decision.passed
    decision.require_passed()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"mape": 10.1}, "max_mape_pct"),
        ({"bias": -5.1}, "max_abs_bias_pct"),
        ({"p90": 25.1}, "max_p90_ape_pct"),
        ({"jobs": (5.0,)}, "min_jobs"),
        ({"converged": False, "message": "out of iterations"}, "not_converged"),
        ({"errors": None, "failure": "too few steps"}, "fold_failed"),
    ],
)
def test_each_limit_is_broken_alone_and_names_its_fold(changes, rule):
    decision = check_gate([report(fold("fine"), fold("bad", **changes))], LIMITS)
    assert broken(decision) == [(rule, "bad")]
    with pytest.raises(GateFailed, match="leave-one-gpu-out, bad held out"):
        decision.require_passed()


def test_a_value_on_its_limit_passes():
    assert check_gate([report(fold(mape=10.0, bias=-5.0, p90=25.0, jobs=(10.0, 10.0)))], LIMITS).passed


def test_a_required_split_that_was_not_run_fails():
    assert broken(check_gate([report(fold(), split="time")], LIMITS)) == [("required_split", "")]


def test_a_required_split_that_is_impossible_fails_with_its_reason():
    decision = check_gate([report(impossible="only one GPU was measured")], LIMITS)
    assert broken(decision) == [("required_split", "")]
    assert "is required and not possible: only one GPU was measured" in decision.broken[0].sentence


def test_a_required_split_without_a_single_fold_fails():
    assert broken(check_gate([report()], LIMITS)) == [("required_split", "")]


def test_physics_of_another_estimator_is_refused_by_name():
    of = {"n_batches": 1, "seed": 0, "configurations": (), "findings": ()}
    assert check_gate([report(fold())], LIMITS, physics=PhysicsReport(estimator="linear", **of)).passed
    with pytest.raises(InputError, match="reports of linear, physics of other"):
        check_gate([report(fold())], LIMITS, physics=PhysicsReport(estimator="other", **of))


def test_a_split_that_is_not_required_may_be_missing():
    limits = Limits.model_validate({"splits": {"time": {"required": False, "max_mape_pct": 1}}})
    assert check_gate([], limits).passed


@pytest.mark.parametrize(("left_out", "passed"), [(0, True), (2, True), (3, False)])
def test_more_than_one_label_in_a_hundred_faster_than_light_fails(left_out, passed):
    assert check_gate([report(fold(), n_impossible_labels=left_out)], LIMITS).passed == passed


def test_splits_without_limits_still_may_not_hold_a_fit_that_did_not_converge():
    decision = check_gate([report(fold()), report(fold("late", converged=False), split="time")], LIMITS)
    assert broken(decision) == [("not_converged", "late")]


def test_a_baseline_equal_to_the_report_passes():
    same = [report(fold("a", jobs=(3.0, 5.0, 9.0)))]
    assert check_gate(same, LIMITS, same).passed


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_noise_of_single_jobs_passes(seed):
    rng = np.random.default_rng(seed)
    jobs = rng.gamma(4, 1, size=30)
    noisy = np.abs(jobs + rng.normal(0, 0.5, size=30))
    assert check_gate([report(of_jobs("a", noisy))], LIMITS, [report(of_jobs("a", jobs))]).passed


def test_a_large_rise_that_one_job_alone_causes_is_not_significant():
    before, after = [4.0] * 6, [4.0] * 5 + [20.0]
    decision = check_gate([report(of_jobs("a", after))], LIMITS, [report(of_jobs("a", before))])
    assert decision.passed


def test_a_regression_of_every_job_fails_and_names_its_fold():
    rng = np.random.default_rng(0)
    jobs = rng.gamma(2, 2, size=30)
    before = [report(of_jobs("same", jobs), of_jobs("worse", jobs))]
    after = [report(of_jobs("same", jobs), of_jobs("worse", jobs + 2.0))]
    decision = check_gate(after, LIMITS, before)
    assert broken(decision) == [("baseline_regression", "worse")]
    assert "+2.00 points" in decision.broken[0].sentence


def test_a_small_significant_rise_is_tolerated():
    jobs = [5.0] * 30
    assert check_gate([report(of_jobs("a", [5.9] * 30))], LIMITS, [report(of_jobs("a", jobs))]).passed


def test_without_common_jobs_the_points_alone_decide():
    before, after = fold("a", mape=5.0, jobs=()), fold("a", mape=7.0, jobs=(), errors=fold("a", mape=7.0).errors)
    decision = check_gate([report(after)], LIMITS, [report(before)])
    assert ("baseline_regression", "a") in broken(decision)


def test_an_improvement_passes():
    assert check_gate([report(of_jobs("a", [3.0] * 9))], LIMITS, [report(of_jobs("a", [8.0] * 9))]).passed


@pytest.mark.parametrize("now", [[], [report(fold("a"))], [report(fold("a"), fold("b", errors=None, failure="no"))]])
def test_a_fold_the_baseline_had_may_not_vanish(now):
    decision = check_gate(now, LIMITS, [report(fold("a"), fold("b"))])
    assert ("lost_coverage", "b") in broken(decision)


def test_a_new_fold_is_no_regression():
    assert check_gate([report(fold("a"), fold("new"))], LIMITS, [report(fold("a"))]).passed


def test_two_estimators_are_refused():
    with pytest.raises(InputError, match="linear, other"):
        check_gate([report(fold()), report(fold(), split="time", estimator="other")], LIMITS)


def test_reports_of_two_transfer_modes_are_refused_by_name():
    with pytest.raises(InputError, match=r"different transfer modes \(calibrated, zero-shot\)"):
        check_gate([report(fold()), report(fold(), split="time", transfer="calibrated")], LIMITS)


def test_a_baseline_of_another_transfer_mode_is_refused_and_of_the_same_is_not():
    few = report(fold(), transfer="few-shot")
    assert check_gate([few], LIMITS, [few]).passed
    with pytest.raises(InputError, match=r"few-shot, zero-shot.*a baseline of its own"):
        check_gate([few], LIMITS, [report(fold())])


def test_a_split_given_twice_is_refused():
    with pytest.raises(InputError, match="two reports of split leave-one-gpu-out"):
        check_gate([report(fold()), report(fold())], LIMITS)


def test_the_paired_interval_is_narrower_than_the_two_it_compares():
    rng = np.random.default_rng(1)
    jobs = rng.gamma(2, 3, size=40)
    rises = mean_interval(list(rng.normal(1.5, 0.3, size=40)), [1] * 40)
    alone = mean_interval(list(jobs), [1] * 40)
    assert rises.high - rises.low < (alone.high - alone.low) / 3


def test_a_planted_regression_of_an_estimator_fails_against_its_own_baseline(shipped):
    """End to end: 20 % slower predictions on the longer half of the steps."""
    limits = Limits.model_validate({"splits": {"leave-one-gpu-out": {"max_mape_pct": 50}}})
    steps = planted_observations(noise=0.02, steps_per_job=30)
    slower = LinearEstimator(slower=1.2, slower_from_us=float(np.median(steps.step_time_us)))
    before, after = (
        [cross_validate(one, steps, shipped, split="leave-one-gpu-out", config=FitConfig())]
        for one in (LinearEstimator(), slower)
    )
    assert check_gate(before, limits, before).passed
    assert {rule for rule, _ in broken(check_gate(after, limits, before))} == {"baseline_regression"}


@pytest.mark.parametrize("name", ["gate.yaml", "examples/gate-local.yaml"])
def test_the_shipped_limits_are_usable(name):
    assert "leave-one-gpu-out" in load_limits(ROOT / name).splits


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("splits:\n  time:\n    max_mape: 3\n", r":3: unknown key in splits\.time 'max_mape'"),
        ("# c\nsplits:\n  times:\n    max_mape_pct: 3\n", ":3: "),
        ("splits:\n  time:\n    max_mape_pct: -3\n", r":3: splits\.time\.max_mape_pct=-3"),
        ("splits: {}\n", ":1: splits"),
        ("splits:\n  time: {\n", ": not YAML"),
        ("limits: 3\n", ":1: "),
    ],
)
def test_a_faulty_limits_file_is_refused_with_its_line(text, complaint, tmp_path):
    (tmp_path / "limits.yaml").write_text(text)
    with pytest.raises(LimitsError, match=complaint):
        load_limits(tmp_path / "limits.yaml")


def test_a_missing_limits_file_is_refused_by_name(tmp_path):
    with pytest.raises(LimitsError, match=r"none\.yaml"):
        load_limits(tmp_path / "none.yaml")


def test_simulated_steps_are_judged_like_measured_ones_and_the_verdict_tells_that_they_are():
    simulated = Provenance(software_versions=("vllm 0.32.0", "vllm 0.32.0+simulated"))
    for mape, passed in ((5.0, True), (50.0, False)):
        decision = check_gate([report(fold("a", mape), provenance=simulated)], LIMITS)
        assert decision.passed is passed
        assert decision.simulated
        assert decision.told[0].rule == "simulated"
        assert "(vllm 0.32.0+simulated)" in decision.told[0].sentence


def test_nothing_is_told_of_measured_steps():
    measured = Provenance(software_versions=("vllm 0.32.0",))
    decision = check_gate([report(fold("a"), provenance=measured)], LIMITS)
    assert not decision.simulated
    assert decision.told == ()
