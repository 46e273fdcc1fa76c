import pytest

from srfa.coefficients import FitConfig, Provenance
from srfa.errors import FitError
from srfa.gate import Limits, check_gate
from srfa.page import to_markdown
from srfa.report import Findings, coefficient_unit, report_page
from srfa.specs import BenchmarkJob, EngineArgs, JobOutcome, Skipped, Workload
from srfa.validate import cross_validate
from tests.planted import LinearEstimator

STRICT = Limits.model_validate({"splits": {"leave-one-gpu-out": {"max_mape_pct": 1e-9}, "time": {}}})
LOOSE = Limits.model_validate({"splits": {"leave-one-gpu-out": {"max_mape_pct": 1}}})


@pytest.fixture(scope="module")
def validated(planted, shipped):
    return cross_validate(LinearEstimator(), planted, shipped, split="leave-one-gpu-out", config=FitConfig())


def headings(text):
    return [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]


def test_the_verdict_comes_first_with_every_broken_rule(validated):
    decision = check_gate([validated], STRICT)
    text = to_markdown(report_page(Findings((validated,), decision=decision)))
    assert headings(text)[0] == "Verdict: failed"
    assert all(finding.sentence in text for finding in decision.broken)


def test_a_verdict_of_yes_says_how_many_rules_hold(validated):
    decision = check_gate([validated], LOOSE)
    text = to_markdown(report_page(Findings((validated,), decision=decision)))
    assert f"All {len(decision.findings)} rules hold." in text


@pytest.mark.parametrize(("limits", "word"), [(LOOSE, "passed"), (STRICT, "failed")])
def test_a_rehearsal_s_verdict_says_that_it_is_one(validated, limits, word):
    simulated = Provenance(software_versions=("vllm 0.32.0+simulated",))
    rehearsed = validated.model_copy(update={"provenance": simulated})
    decision = check_gate([rehearsed], limits)
    text = to_markdown(report_page(Findings((rehearsed,), decision=decision)))
    assert headings(text)[0] == f"Verdict: {word} (rehearsal)"
    assert "steps of a simulated engine (vllm 0.32.0+simulated)" in text


def test_every_fold_stands_in_the_table_with_its_interval(validated):
    text = to_markdown(report_page(Findings((validated,))))
    for fold in validated.folds:
        assert f"| {fold.held_out} | {fold.errors.n_steps} |" in text


def test_coefficients_show_value_unit_and_bound(planted, shipped, validated):
    estimator = LinearEstimator()
    fitted = estimator.fit(estimator.features(planted, shipped), FitConfig())
    text = to_markdown(report_page(Findings((validated,), fitted)))
    assert "| linear | floor | 1.5 | 1 |  |" in text
    assert "| linear | constant | 800 | us |  |" in text
    assert "No coefficient ended on a bound." in text


def test_what_was_skipped_and_failed_is_told_with_reasons(planted, shipped):
    failing = cross_validate(LinearEstimator(fits=False), planted, shipped, split="time", config=FitConfig())
    job = BenchmarkJob(model="m", gpu="g", engine=EngineArgs(), workload=Workload(name="w"), engine_version="1")
    outcome = JobOutcome(
        job_id="j9", group_id="g", prefix="p", status="failed", reason="engine_died", message="killed by the kernel"
    )
    skipped = (Skipped(job=job, reason="does not fit"),) * 3
    text = to_markdown(report_page(Findings((failing,), skipped=skipped, outcomes=(outcome,))))
    assert "3 cell(s) skipped: does not fit" in text
    assert "job j9 failed (engine_died): killed by the kernel" in text
    assert str(FitError("planted: this estimator refuses to fit")) in text


OF_SRFA = [
    ("us of one clock cycle a kernel", "cycles a kernel"),
    ("us at the memory's bandwidth", "1"),
    ("layer", "us/layer"),
]


@pytest.mark.parametrize(("feature", "coefficient"), [("us", "1"), ("1", "us"), ("tokens", "us/tokens"), *OF_SRFA])
def test_coefficient_times_feature_is_microseconds(feature, coefficient):
    assert coefficient_unit(feature) == coefficient
