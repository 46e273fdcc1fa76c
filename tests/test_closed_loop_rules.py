import pytest

from srfa.closed_loop_report import ClosedLoopReport, NotReplayed
from srfa.closed_loop_summary import closed_loop_report
from srfa.coefficients import FitConfig, Provenance
from srfa.errors import InputError, LimitsError
from srfa.gate import Limits, check_gate, load_limits
from srfa.validation_report import ValidationReport
from tests.replays import replay
from tests.steps import ROOT

FIGURES = {
    "max_median_e2e_pct": 10,
    "max_median_ttft_pct": 15,
    "max_median_tpot_pct": 10,
    "max_abs_bias_pct": 10,
    "min_jobs": 2,
}
JOBS = ("a", "b", "c")


def limits(**changes):
    return Limits.model_validate({"splits": {"time": {"required": False}}, "closed_loop": {**FIGURES, **changes}})


def loop(*, jobs=JOBS, lost=(), **changes):
    return closed_loop_report("srfa", [replay(job, **changes) for job in jobs], lost)


def judged(report, given=None, **changes):
    return check_gate([], limits(**changes), closed_loop=report, baseline_closed_loop=given)


def broken(decision):
    assert {finding.rule for finding in decision.broken} <= {"closed_loop"}
    return [(finding.split, finding.held_out) for finding in decision.broken]


def test_a_closed_loop_within_every_limit_passes():
    assert judged(loop(e2e=9.0, ttft=-10.0, tpot=9.0)).passed


@pytest.mark.parametrize(
    ("errors", "rules"),
    [
        ({"e2e": 10.1}, ["max_median_e2e_pct", "max_abs_bias_pct of e2e"]),
        ({"ttft": -15.1}, ["max_median_ttft_pct", "max_abs_bias_pct of ttft"]),
        ({"ttft": 12.0}, ["max_abs_bias_pct of ttft"]),
        ({"tpot": 11.0}, ["max_median_tpot_pct", "max_abs_bias_pct of tpot"]),
        ({"jobs": ("a",)}, ["min_jobs"]),
        ({"without": ("tpot",)}, ["max_median_tpot_pct", "max_abs_bias_pct of tpot"]),
        ({"lost": (NotReplayed(job_id="z", reason="no requests"),)}, ["max_not_replayed"]),
    ],
)
def test_each_limit_is_broken_alone_and_named(errors, rules):
    assert broken(judged(loop(**errors))) == [("", rule) for rule in rules]


def test_one_slow_job_of_three_moves_the_bias_and_not_the_median():
    report = closed_loop_report("srfa", [replay("a"), replay("b"), replay("c", e2e=-50.0)])
    assert broken(judged(report)) == [("", "max_abs_bias_pct of e2e")]


def test_a_lost_job_is_told_with_its_reason_and_as_many_as_the_limits_say_are_tolerated():
    report = loop(lost=(NotReplayed(job_id="z", reason="no finished request"),))
    assert "z: no finished request" in judged(report).broken[0].sentence
    assert judged(report, max_not_replayed=1).passed


def test_a_required_closed_loop_that_was_not_made_fails_and_one_that_is_not_required_may_be_missing():
    assert broken(judged(None)) == [("", "required")]
    assert judged(None, required=False).passed
    nothing = ClosedLoopReport(estimator="srfa", impossible="no tables came along")
    assert "no tables came along" in judged(nothing).broken[0].sentence
    assert judged(nothing, required=False).passed


def test_replays_of_jobs_the_coefficients_saw_prove_nothing():
    assert broken(judged(loop(seen=True))) == [("", "required")]


def test_a_limits_file_without_the_section_judges_nothing():
    loose = Limits.model_validate({"splits": {"time": {"required": False}}})
    assert check_gate([], loose, closed_loop=loop(e2e=500.0)).findings == check_gate([], loose).findings


def test_a_named_split_must_keep_to_the_limits_by_itself():
    replays = [replay("a", n_train_steps=200), replay("b", n_train_steps=200)]
    replays += [replay(job, split="leave-one-gpu-out", e2e=40.0) for job in ("a", "b")]
    report = closed_loop_report("srfa", replays)
    assert judged(report).passed
    found = judged(report, splits=["leave-one-gpu-out"])
    assert ("leave-one-gpu-out", "max_median_e2e_pct") in broken(found)
    assert broken(judged(report, splits=["time"])) == [("time", "required")]


def test_a_regression_of_every_job_fails_and_an_improvement_passes():
    assert broken(judged(loop(e2e=8.0), loop(e2e=3.0))) == [("", "baseline_regression of e2e")]
    assert judged(loop(e2e=3.0), loop(e2e=8.0)).passed
    assert judged(loop(e2e=3.5), loop(e2e=3.0)).passed


def test_a_median_that_rises_because_other_jobs_are_worse_now_is_noise():
    before = closed_loop_report("srfa", [replay(f"j{n}", e2e=4.0 if n < 4 else 1.0) for n in range(9)])
    after = closed_loop_report("srfa", [replay(f"j{n}", e2e=1.0 if n < 4 else 4.0) for n in range(9)])
    assert after.headline.median_pct("e2e") - before.headline.median_pct("e2e") == pytest.approx(3.0)
    assert judged(after, before).passed


def test_a_place_the_baseline_replayed_may_not_vanish():
    before = closed_loop_report("srfa", [replay("a"), replay("b"), replay("old", workload="chat")])
    assert broken(judged(loop(), before)) == [("", "lost_coverage")]
    assert "chat: replayed in the baseline, missing now" in judged(loop(), before).broken[0].sentence


def test_a_closed_loop_of_another_estimator_is_refused_by_name():
    report = ValidationReport(
        estimator="roofline", split="time", config=FitConfig(), n_steps=1, n_jobs=1, pooled=None, folds=()
    )
    with pytest.raises(InputError, match="reports of roofline, closed loop of srfa"):
        check_gate([report], limits(), closed_loop=loop())


def test_a_baseline_that_was_replayed_may_not_be_followed_by_nothing():
    """A closed loop that is not required may be missing, but not lost."""
    decision = judged(None, loop(), required=False)
    assert broken(decision) == [("", "lost_coverage")]
    assert "replayed in the baseline, missing now" in decision.broken[0].sentence
    nothing = ClosedLoopReport(estimator="srfa", impossible="no tables came along")
    assert judged(None, nothing, required=False).passed


def test_a_median_of_fewer_jobs_than_the_limit_proves_nothing_however_many_were_replayed():
    report = closed_loop_report("srfa", [replay("a"), *(replay(job, without=("tpot",)) for job in "bcd")])
    decision = judged(report)
    assert broken(decision) == [("", "min_jobs of tpot")]
    assert "1 job(s) with TPOT, too few to prove anything for the limit of 2" in decision.broken[0].sentence
    assert judged(report, max_median_tpot_pct=None, max_abs_bias_pct=None).passed


def test_a_job_whose_answers_are_single_tokens_does_not_lack_its_tpot():
    single = (replay(job, without=("tpot", "itl"), longest_answer_tokens=1) for job in "bcd")
    assert judged(closed_loop_report("srfa", [replay("a"), *single])).passed


def test_a_named_split_needs_as_many_jobs_as_the_headline():
    replays = [replay("a", n_train_steps=200), replay("b", n_train_steps=200), replay("a", split="leave-one-gpu-out")]
    report = closed_loop_report("srfa", replays)
    assert judged(report).passed
    decision = judged(report, splits=["leave-one-gpu-out"])
    assert broken(decision) == [("leave-one-gpu-out", "min_jobs")]
    assert "closed loop, leave-one-gpu-out: 1 job(s) replayed" in decision.broken[0].sentence


JULY, AUGUST = (Provenance(data_sha256={f"{name}.parquet": name * 32}, job_ids=JOBS) for name in ("7a", "8b"))
"""The same matrix, measured twice: equal job ids, other data."""


def reported(provenance, estimator="srfa"):
    return ValidationReport(
        estimator=estimator,
        split="time",
        transfer=provenance.transfer,
        config=FitConfig(),
        n_steps=1,
        n_jobs=1,
        pooled=None,
        folds=(),
        provenance=provenance,
    )


def of(provenance):
    return loop().model_copy(update={"provenance": provenance})


def test_a_closed_loop_of_other_data_is_refused_and_both_are_named():
    with pytest.raises(
        InputError, match=r"3 jobs, sha256 7a7a7a7a7a7a of 7a\.parquet.*of time \(3 jobs, sha256 8b8b8b8b"
    ):
        check_gate([reported(AUGUST)], limits(), closed_loop=of(JULY))


def test_a_closed_loop_of_the_same_files_under_other_names_is_accepted():
    (digest,) = JULY.data_sha256.values()
    elsewhere = JULY.model_copy(update={"data_sha256": {"observations/run_id=r/observations.parquet": digest}})
    assert check_gate([reported(JULY)], limits(), closed_loop=of(elsewhere)).passed


@pytest.mark.parametrize(("report", "replays"), [(JULY, Provenance()), (Provenance(), JULY)])
def test_a_file_that_does_not_say_its_data_is_refused_beside_one_that_does(report, replays):
    with pytest.raises(InputError, match="not recorded"):
        check_gate([reported(report)], limits(), closed_loop=of(replays))


def test_where_no_file_was_hashed_the_jobs_tell_the_data():
    ab, bc = (Provenance(job_ids=jobs) for jobs in (("a", "b"), ("b", "c")))
    assert check_gate([reported(ab)], limits(), closed_loop=of(ab)).passed
    with pytest.raises(InputError, match=r"2 jobs\) than the report of time \(2 jobs\)"):
        check_gate([reported(ab)], limits(), closed_loop=of(bc))


def test_a_baseline_may_be_of_other_data_but_its_closed_loop_must_be_its_own():
    now = {"reports": [reported(AUGUST)], "limits": limits(), "closed_loop": of(AUGUST)}
    before = [reported(JULY)]
    assert check_gate(**now, baseline=before, baseline_closed_loop=of(JULY)).passed
    with pytest.raises(InputError, match="baseline: the closed loop is of other data"):
        check_gate(**now, baseline=before, baseline_closed_loop=of(AUGUST))
    with pytest.raises(InputError, match="baseline: reports of roofline, closed loop of srfa"):
        check_gate(**now, baseline=[reported(JULY, "roofline")], baseline_closed_loop=of(JULY))


def test_a_closed_loop_that_knew_more_of_the_hardware_is_refused():
    calibrated = JULY.model_copy(update={"transfer": "calibrated"})
    with pytest.raises(InputError, match="calibrated, zero-shot"):
        check_gate([reported(JULY)], limits(), closed_loop=of(calibrated))


@pytest.mark.parametrize("name", ["gate.yaml", "examples/gate-local.yaml"])
def test_the_shipped_limits_judge_the_closed_loop(name):
    assert load_limits(ROOT / name).closed_loop.max_median_e2e_pct


def test_an_unknown_key_of_the_section_is_refused_with_its_line(tmp_path):
    (tmp_path / "limits.yaml").write_text("splits:\n  time: {}\nclosed_loop:\n  max_median_e2e: 3\n")
    with pytest.raises(LimitsError, match=r":4: unknown key in closed_loop 'max_median_e2e'"):
        load_limits(tmp_path / "limits.yaml")
