"""May these coefficients be published? Limits from a file, a verdict with a sentence for every rule.

Always refused, whatever the limits say: a fit that did not converge, a fold that failed, more than single labels
faster than light, a required split that is missing, and coverage the baseline had and the reports have lost. Broken
physics is refused unless the limits file says in so many words that it is only to be told.

Steps of a simulated engine are judged like measured ones, so that a campaign can be rehearsed to its end, and a finding
says that they are: such a verdict is not one on measurements.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from srfa.closed_loop_report import ClosedLoopReport
from srfa.closed_loop_rules import closed_loop_findings
from srfa.coefficients import Coefficients, Transfer
from srfa.errors import InputError
from srfa.limits import (
    BaselineLimits,
    ClosedLoopLimits,
    Limits,
    PhysicsLimits,
    SplitLimits,
    load_limits,
)
from srfa.metrics import Errors, JobError, mean_interval
from srfa.physics_report import PhysicsReport
from srfa.schema import TOLERATED_SHARE
from srfa.validation_report import FoldReport, ValidationReport
from srfa.verdict import Finding, GateDecision, Rule, finding_of

__all__ = [
    "BaselineLimits",
    "ClosedLoopLimits",
    "Finding",
    "GateDecision",
    "Limits",
    "PhysicsLimits",
    "Rule",
    "SplitLimits",
    "check_gate",
    "load_limits",
]


def check_gate(
    reports: Sequence[ValidationReport],
    limits: Limits,
    baseline: Sequence[ValidationReport] | None = None,
    *,
    physics: PhysicsReport | None = None,
    coefficients: Coefficients | None = None,
    closed_loop: ClosedLoopReport | None = None,
    baseline_closed_loop: ClosedLoopReport | None = None,
) -> GateDecision:
    """Judge reports by limits and, where they are given, by a baseline, a check of physics and a closed loop.

    Splits that carry no limits are judged by the rules that always hold alone.

    Parameters
    ----------
    coefficients
        What is to be published; where given, the check of physics must have been made of exactly these.
    closed_loop, baseline_closed_loop
        The replays of measured jobs, and those of the baseline.

    Raises
    ------
    InputError
        The reports hold one split twice, belong to different estimators, or they, the closed loop or the baseline know
        different things of the hardware (zero-shot, calibrated, few-shot); or reports, physics and coefficients do not
        belong together; or a closed loop is of other data than the reports it stands beside.
    """
    transfers = [report.transfer for report in (*reports, *(baseline or ()))]
    transfers += [loop.provenance.transfer for loop in (closed_loop, baseline_closed_loop) if loop]
    _refuse_mixed_transfer(transfers)
    by_split = _by_split(reports)
    _refuse_strangers(reports, physics, coefficients, closed_loop)
    _refuse_strange_baseline(baseline or (), baseline_closed_loop)
    findings = [
        *_required(by_split, limits),
        *(finding for report in reports for finding in _sound(report)),
        *(finding for report in reports for finding in _within(report, limits.splits.get(report.split))),
        *_against(by_split, _by_split(baseline or ()), limits.baseline),
        *_physical(physics, limits.physics),
        *closed_loop_findings(closed_loop, limits.closed_loop, baseline_closed_loop),
        *_rehearsed(reports, coefficients),
    ]
    return GateDecision(passed=all(finding.passed for finding in findings), findings=tuple(findings))


def _by_split(reports: Iterable[ValidationReport]) -> dict[str, ValidationReport]:
    by_split: dict[str, ValidationReport] = {}
    for report in reports:
        if report.split in by_split:
            raise InputError(f"two reports of split {report.split}; give each split once")
        by_split[report.split] = report
    if len(estimators := {report.estimator for report in by_split.values()}) > 1:
        raise InputError(f"reports of different estimators ({', '.join(sorted(estimators))}); gate one at a time")
    return by_split


def _refuse_mixed_transfer(transfers: Iterable[Transfer]) -> None:
    if len(modes := set(transfers)) > 1:
        raise InputError(
            f"reports of different transfer modes ({', '.join(sorted(modes))}); what a calibrated fit reaches says "
            "nothing of a zero-shot one: gate each mode by itself, against a baseline of its own"
        )


def _refuse_strangers(
    reports: Sequence[ValidationReport],
    physics: PhysicsReport | None,
    coefficients: Coefficients | None,
    closed_loop: ClosedLoopReport | None,
) -> None:
    """Refuse a check of physics, a closed loop, or coefficients, of something else than the reports are about."""
    about = {
        **({"reports": reports[0].estimator} if reports else {}),
        **({"physics": physics.estimator} if physics else {}),
        **({"closed loop": closed_loop.estimator} if closed_loop else {}),
        **({"coefficients": coefficients.estimator} if coefficients else {}),
    }
    if len(set(about.values())) > 1:
        raise InputError(", ".join(f"{what} of {name}" for what, name in about.items()) + "; gate one at a time")
    if physics and coefficients:
        physics.require_of(coefficients)
    if closed_loop:
        closed_loop.require_of(reports)


def _refuse_strange_baseline(reports: Sequence[ValidationReport], closed_loop: ClosedLoopReport | None) -> None:
    try:
        _refuse_strangers(reports, None, None, closed_loop)
    except InputError as error:
        raise InputError(f"baseline: {error}") from error


def _required(by_split: dict[str, ValidationReport], limits: Limits) -> Iterator[Finding]:
    for split in (name for name, limit in limits.splits.items() if limit.required):
        report = by_split.get(split)
        if report is None:
            reason = f"{split} is required and was not validated; run 'srfa validate --split {split}'"
        else:
            reason = "" if report.folds else f"{split} is required and not possible: {report.impossible or 'no folds'}"
        yield finding_of("required_split", split, "", passed=not reason, sentence=reason or f"{split} is there")


def _sound(report: ValidationReport) -> Iterator[Finding]:
    """Yield what must hold whatever the limits are."""
    yield _obeys_light(report)
    for fold in report.folds:
        where = f"{report.split}, {fold.held_out} held out"
        if fold.failure:
            yield finding_of(
                "fold_failed", report.split, fold.held_out, passed=False, sentence=f"{where}: {fold.failure}"
            )
            continue
        ended = "converged" if fold.converged else "did not converge"
        yield finding_of(
            "not_converged",
            report.split,
            fold.held_out,
            passed=fold.converged,
            sentence=f"{where}: the fit {ended} ({fold.message})",
        )


def _obeys_light(report: ValidationReport) -> Finding:
    left_out, total = report.n_impossible_labels, report.n_steps + report.n_impossible_labels
    limit = TOLERATED_SHARE * total
    return finding_of(
        "speed_of_light",
        report.split,
        "",
        value=left_out,
        limit=limit,
        passed=left_out <= limit,
        sentence=f"{report.split}: {left_out} of {total} labels undercut the speed of light; {limit:g} are tolerated",
    )


def _within(report: ValidationReport, limits: SplitLimits | None) -> Iterator[Finding]:
    for fold in report.folds:
        if limits is None or fold.errors is None:
            continue
        errors = fold.errors
        yield _at_most(report, fold, "max_mape_pct", errors.mape_pct, limits.max_mape_pct)
        yield _at_most(report, fold, "max_abs_bias_pct", abs(errors.bias_pct), limits.max_abs_bias_pct)
        yield _at_most(report, fold, "max_p90_ape_pct", errors.p90_ape_pct, limits.max_p90_ape_pct)
        yield _enough_jobs(report, fold, errors, limits.min_jobs)


_MEASURE = {"max_mape_pct": "MAPE", "max_abs_bias_pct": "absolute bias", "max_p90_ape_pct": "P90 APE"}


def _at_most(report: ValidationReport, fold: FoldReport, rule: Rule, value: float, limit: float | None) -> Finding:
    passed = limit is None or value <= limit
    against = "no limit" if limit is None else f"limit {limit:g} %"
    relation = "within" if passed else "above"
    sentence = f"{report.split}, {fold.held_out} held out: {_MEASURE[rule]} {value:.1f} % is {relation} the {against}"
    if limit is None:
        sentence = f"{report.split}, {fold.held_out} held out: {_MEASURE[rule]} {value:.1f} % (no limit)"
    return finding_of(rule, report.split, fold.held_out, value=value, limit=limit, passed=passed, sentence=sentence)


def _enough_jobs(report: ValidationReport, fold: FoldReport, errors: Errors, least: int) -> Finding:
    passed = errors.n_jobs >= least
    sentence = (
        f"{report.split}, {fold.held_out} held out: {errors.n_jobs} job(s), "
        f"{'enough' if passed else 'too few to prove anything'} for the limit of {least}"
    )
    return finding_of(
        "min_jobs", report.split, fold.held_out, value=errors.n_jobs, limit=least, passed=passed, sentence=sentence
    )


def _against(
    by_split: dict[str, ValidationReport], baseline: dict[str, ValidationReport], limits: BaselineLimits
) -> Iterator[Finding]:
    for split, before in baseline.items():
        now = {fold.held_out: fold for fold in by_split[split].folds} if split in by_split else {}
        for old in before.folds:
            if old.errors is None:
                continue
            new = now.get(old.held_out)
            if new is None or new.errors is None:
                sentence = f"{split}, {old.held_out} held out: measured in the baseline, missing now"
                yield finding_of("lost_coverage", split, old.held_out, passed=False, sentence=sentence)
            else:
                yield _regression(split, old, old.errors, new, new.errors, limits)


def _regression(
    split: str, old: FoldReport, old_errors: Errors, new: FoldReport, new_errors: Errors, limits: BaselineLimits
) -> Finding:
    rise = new_errors.mape_pct - old_errors.mape_pct
    surely = _sure_rise(old.jobs, new.jobs, limits.confidence)
    passed = rise <= limits.max_regression_pct_points or (surely is not None and surely <= 0)
    certainty = "" if surely is None else f", at least {surely:+.2f} points at {limits.confidence:.0%} confidence"
    return finding_of(
        "baseline_regression",
        split,
        old.held_out,
        value=rise,
        limit=limits.max_regression_pct_points,
        passed=passed,
        sentence=(
            f"{split}, {old.held_out} held out: MAPE {old_errors.mape_pct:.1f} -> {new_errors.mape_pct:.1f} %"
            f" ({rise:+.2f} points{certainty}); {limits.max_regression_pct_points:g} points are tolerated"
        ),
    )


def _physical(physics: PhysicsReport | None, limits: PhysicsLimits | None) -> Iterator[Finding]:
    """Yield one finding a rule of physics; a check that is required and was not made is one that failed."""
    tolerated = limits is not None and not limits.required
    if physics is None:
        if limits is not None and limits.required:
            sentence = "physics is required and was not checked; give what 'srfa physics --out physics.json' writes"
            yield finding_of("physics", "", "", passed=False, sentence=sentence)
        return
    for found in physics.findings:
        excused = tolerated and not found.passed
        finding = finding_of(
            "physics",
            "",
            found.rule,
            value=found.value,
            limit=found.limit,
            passed=found.passed or excused,
            sentence=f"physics: {found.sentence}{' (told, not required)' if excused else ''}",
        )
        yield finding.model_copy(update={"tolerated": excused})


def _rehearsed(reports: Sequence[ValidationReport], coefficients: Coefficients | None) -> Iterator[Finding]:
    """Yield a finding that is only told where a step came from a simulated engine."""
    origins = [*(report.provenance for report in reports), *([coefficients.provenance] if coefficients else [])]
    versions = sorted({version for origin in origins for version in origin.simulated_versions})
    if not versions:
        return
    sentence = f"rehearsal: steps of a simulated engine ({', '.join(versions)}), none of them proves anything"
    finding = finding_of("simulated", "", "", passed=True, sentence=f"{sentence}; never the latest release")
    yield finding.model_copy(update={"tolerated": True})


def _sure_rise(old: Iterable[JobError], new: Iterable[JobError], confidence: float) -> float | None:
    """Return the lower end of the rise in MAPE over the jobs both know; None where they share fewer than two."""
    before = {job.job_id: job for job in old}
    shared = [(before[job.job_id], job) for job in new if job.job_id in before]
    rises = [now.mape_pct - then.mape_pct for then, now in shared]
    interval = mean_interval(rises, [now.n_steps for _, now in shared], confidence=confidence)
    return interval.low if interval else None
