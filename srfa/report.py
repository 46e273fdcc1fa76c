"""What people look at: verdict first, then folds, what is behind them, coefficients, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import expm1
from typing import TYPE_CHECKING

from srfa.closed_loop_page import closed_loop_sections
from srfa.closed_loop_report import ClosedLoopReport
from srfa.coefficients import CoefficientBlock, Coefficients, Provenance
from srfa.fallback_file import Fallback
from srfa.gate import GateDecision
from srfa.grades import Intervals
from srfa.leaderboard import Leaderboard
from srfa.leaderboard_page import leaderboard_sections
from srfa.metrics import Errors
from srfa.page import Grid, Page, Section
from srfa.physics_report import PhysicsReport
from srfa.specs import JobOutcome, Skipped
from srfa.validation_report import FoldReport, GroupCoverage, ValidationReport

if TYPE_CHECKING:
    from srfa.blis import BlisProjection

FOLD_HEADS = ("held out", "steps", "jobs", "MAPE %", "95 % interval", "median %", "P90 %", "bias %", "MAE us", "fit")


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything a report can show; what is absent is left out of it.

    Parameters
    ----------
    skipped, outcomes
        Cells of the matrix that were not run, and how the jobs that were run ended.
    figures
        Names of pictures that lie beside the report.
    leaderboard, leaderboard_figure
        The estimator beside others, and the name of its picture.
    physics
        What a check of physics found.
    closed_loop, closed_loop_figure
        The replays of measured jobs, and the name of their picture.
    fallbacks
        What stands in for the estimator on single configurations.
    """

    reports: tuple[ValidationReport, ...]
    coefficients: Coefficients | None = None
    decision: GateDecision | None = None
    projection: BlisProjection | None = None
    skipped: tuple[Skipped, ...] = ()
    outcomes: tuple[JobOutcome, ...] = ()
    figures: tuple[str, ...] = ()
    physics: PhysicsReport | None = None
    leaderboard: Leaderboard | None = None
    leaderboard_figure: str = ""
    closed_loop: ClosedLoopReport | None = None
    closed_loop_figure: str = ""
    fallbacks: tuple[Fallback, ...] = ()


def report_page(findings: Findings) -> Page:
    """Return the report as a page; :mod:`srfa.page` writes it as Markdown or HTML."""
    estimator = findings.reports[0].estimator if findings.reports else "no estimator"
    return Page(f"Validation of {estimator}", tuple(_sections(findings)))


def fold_rows(report: ValidationReport) -> tuple[tuple[str, ...], ...]:
    """Return one row of text a fold, under :data:`FOLD_HEADS`."""
    return tuple(_fold_row(fold) for fold in report.folds)


def coefficient_rows(coefficients: Coefficients) -> tuple[tuple[str, ...], ...]:
    """Return one row of text a coefficient, under :data:`COEFFICIENT_HEADS`."""
    return tuple(row for name, block in coefficients.blocks.items() for row in _block_rows(name, block))


COEFFICIENT_HEADS = ("block", "coefficient", "value", "unit", "note")
"""The note is ``at bound``, or ``prior`` where no step moved the coefficient from what was known before."""
_AT_BOUND = "at bound"
_CYCLE = "us of one clock cycle"
_UNMOVED = 1e-9
COVERAGE_HEADS = ("held out", "steps", "groups behind it", "90 % interval", "inside")
PHYSICS_HEADS = ("rule", "outcome", "checked", "broken", "worst value", "limit", "worst case")


def coverage_rows(groups: Sequence[GroupCoverage]) -> tuple[tuple[str, ...], ...]:
    """Return one row of text a held-out group, under :data:`COVERAGE_HEADS`."""
    return tuple(
        (one.held_out, str(one.n_steps), str(one.n_groups), _offsets(one.p05, one.p95), f"{one.share_inside:.1%}")
        for one in groups
    )


def coverage_title(groups: Sequence[GroupCoverage]) -> str:
    """Return the mean share inside in words; every group counts equally."""
    mean = sum(one.share_inside for one in groups) / len(groups)
    return f"prediction intervals hold {mean:.1%} of the steps of a held-out group"


def _offsets(low: float, high: float) -> str:
    """Write log offsets as percent of the prediction."""
    return f"{expm1(low):+.1%} to {expm1(high):+.1%}"


def physics_rows(report: PhysicsReport) -> tuple[tuple[str, ...], ...]:
    """Return one row of text a rule of physics, under :data:`PHYSICS_HEADS`; the broken ones last."""
    ordered = sorted(report.findings, key=lambda finding: not finding.passed)
    return tuple(
        (
            one.rule,
            ("ok" if one.n_checked else "not asked") if one.passed else "BROKEN",
            str(one.n_checked),
            str(one.n_broken),
            "-" if one.value is None else f"{one.value:.4g}",
            "-" if one.limit is None else f"{one.limit:.4g}",
            one.worst or one.sentence,
        )
        for one in ordered
    )


def _sections(findings: Findings) -> Iterator[Section]:
    if findings.decision:
        yield _verdict(findings.decision)
    for report in findings.reports:
        yield _folds(report)
    yield from _replays_and_ranks(findings)
    for report in findings.reports:
        if report.folds:
            yield _partitions(report)
        if report.coverage:
            grid = Grid(COVERAGE_HEADS, coverage_rows(report.coverage))
            yield Section(f"Coverage: {report.split}", (f"{coverage_title(report.coverage)}.".capitalize(),), grid=grid)
    if findings.coefficients and findings.coefficients.intervals:
        yield _intervals(findings.coefficients.intervals)
    if findings.physics:
        yield _physics(findings.physics)
    if findings.coefficients:
        yield _coefficients(findings.coefficients)
        yield _identifiability(findings.coefficients, findings.reports)
    if findings.projection:
        yield _projection(findings.projection)
    yield _left_out(findings)
    for figure in findings.figures:
        yield Section(figure.removesuffix(".png").capitalize(), figure=figure)
    if findings.coefficients:
        yield _provenance(findings.coefficients.provenance)


def _replays_and_ranks(findings: Findings) -> Iterator[Section]:
    if findings.closed_loop:
        yield from closed_loop_sections(findings.closed_loop, findings.closed_loop_figure, findings.fallbacks)
    if findings.leaderboard:
        yield from leaderboard_sections(findings.leaderboard, findings.leaderboard_figure)


def _verdict(decision: GateDecision) -> Section:
    n_rules, broken = len(decision.findings), decision.broken
    points = tuple(finding.sentence for finding in decision.told)
    kind = " (rehearsal)" if decision.simulated else ""
    if decision.passed:
        return Section(f"Verdict: passed{kind}", (f"All {n_rules} rules hold.",), points)
    sentence = f"{len(broken)} of {n_rules} rules are broken; these coefficients are not to be published as the latest."
    return Section(f"Verdict: failed{kind}", (sentence,), points)


def _intervals(intervals: Intervals) -> Section:
    heads = ("domain grade", "interval", "groups", "measured on", "method")
    rows = tuple(
        (str(one.grade), _offsets(one.p05, one.p95), str(one.n_groups), one.source, one.method)
        for one in intervals.grades
    )
    sentence = f"{intervals.level:.0%} of the steps of a grade lie between these shares of their prediction."
    return Section("Prediction intervals", (sentence,), grid=Grid(heads, rows))


def _physics(report: PhysicsReport) -> Section:
    sentence = (
        f"{report.n_batches} random batches on {len(report.configurations)} configurations, asked for as they are and"
        " with more work; these rules need no measurements."
    )
    return Section("Physics", (sentence,), grid=Grid(PHYSICS_HEADS, physics_rows(report)))


def _folds(report: ValidationReport) -> Section:
    heading = f"Folds: {report.split}"
    if report.impossible:
        return Section(heading, (f"Not possible: {report.impossible}.",))
    sentences = [f"{report.n_steps} steps of {report.n_jobs} jobs; each row was predicted by a fit that never saw it."]
    if report.pooled:
        sentences.append(f"All held-out steps together: {_short(report.pooled)}.")
    if shared := max((fold.n_shared_jobs for fold in report.folds), default=0):
        sentences.append(
            f"{shared} imported job ids span several of the groups; each part was taken as a run of its own."
        )
    return Section(heading, tuple(sentences), grid=Grid(FOLD_HEADS, fold_rows(report)))


def _fold_row(fold: FoldReport) -> tuple[str, ...]:
    errors = fold.errors
    if errors is None:
        return (fold.held_out, *["-"] * (len(FOLD_HEADS) - 2), f"failed: {fold.failure}")
    return (
        fold.held_out,
        str(errors.n_steps),
        str(errors.n_jobs),
        f"{errors.mape_pct:.1f}",
        _interval(errors),
        f"{errors.median_ape_pct:.1f}",
        f"{errors.p90_ape_pct:.1f}",
        f"{errors.bias_pct:+.1f}",
        f"{errors.mae_us:.0f}",
        "converged" if fold.converged else "NOT converged",
    )


def _interval(errors: Errors) -> str:
    interval = errors.mape_interval_pct
    return f"{interval.low:.1f} to {interval.high:.1f}" if interval else "one job: none"


def _short(errors: Errors) -> str:
    return f"MAPE {errors.mape_pct:.1f} % ({_interval(errors)}), bias {errors.bias_pct:+.1f} %"


def _partitions(report: ValidationReport) -> Section:
    rows = tuple(
        (fold.held_out, part.kind, part.name or "(unnamed)", str(part.errors.n_steps), *_mape_and_bias(part.errors))
        for fold in report.folds
        for part in fold.partitions
    )
    return Section(
        f"Behind the folds: {report.split}",
        ("The same errors part by part, so that errors of opposite sign do not cancel unseen.",),
        grid=Grid(("held out", "part", "name", "steps", "MAPE %", "bias %"), rows),
    )


def _mape_and_bias(errors: Errors) -> tuple[str, str]:
    return f"{errors.mape_pct:.1f}", f"{errors.bias_pct:+.1f}"


def _coefficients(coefficients: Coefficients) -> Section:
    ended = "converged" if coefficients.converged else "DID NOT CONVERGE"
    chosen = ", ".join(f"{name} = {value:g}" for name, value in coefficients.chosen.items()) or "none"
    constants = tuple(f"constant {name} = {value:.6g}" for name, value in coefficients.constants.items())
    return Section(
        f"Coefficients of {coefficients.estimator}",
        (f"The fit {ended}: {coefficients.message}. Settings chosen by cross-validation: {chosen}.",),
        constants,
        Grid(COEFFICIENT_HEADS, coefficient_rows(coefficients)),
    )


def _block_rows(block_name: str, block: CoefficientBlock) -> Iterator[tuple[str, ...]]:
    columns = (block.names, block.values, block.units, block.at_bound, block.scales)
    for name, value, unit, at_bound, scale in zip(*columns, strict=True):
        note = _AT_BOUND if at_bound else "prior" if abs(value * scale - 1.0) < _UNMOVED else ""
        yield block_name, name, f"{value:.6g}", coefficient_unit(unit), note


def coefficient_unit(feature_unit: str) -> str:
    """Return the unit of a coefficient whose feature has ``feature_unit``: their product is microseconds.

    A time at a datasheet's rate is taken a number of times; the time of one clock cycle makes that number cycles.

    Examples
    --------
    >>> coefficient_unit("us"), coefficient_unit("1"), coefficient_unit("log(tokens)")
    ('1', 'us', 'us/log(tokens)')
    >>> coefficient_unit("us at the link's bandwidth"), coefficient_unit("us of one clock cycle a kernel")
    ('1', 'cycles a kernel')
    """
    if feature_unit.startswith(_CYCLE):
        return f"cycles{feature_unit.removeprefix(_CYCLE)}"
    if feature_unit.startswith("us at "):
        return "1"
    return {"us": "1", "1": "us"}.get(feature_unit, f"us/{feature_unit}")


def _identifiability(coefficients: Coefficients, reports: Sequence[ValidationReport]) -> Section:
    full = [f"{row[0]}.{row[1]}" for row in coefficient_rows(coefficients) if row[4] == _AT_BOUND]
    in_folds = Counter(name for report in reports for fold in report.folds for name in fold.at_bound)
    n_folds = sum(fold.errors is not None for report in reports for fold in report.folds)
    points = [f"{name}: on its bound in the published fit" for name in full]
    points += [f"{name}: on its bound in {count} of {n_folds} folds" for name, count in sorted(in_folds.items())]
    sentence = (
        "Totals do not identify single operators: a coefficient is no measured efficiency. One that ends on its bound"
        " is not identified by these data, or the model asks of it what the data contradict."
    )
    return Section("Identifiability", (sentence,), tuple(points) or ("No coefficient ended on a bound.",))


def _projection(projection: BlisProjection) -> Section:
    cost = projection.mape_pct - projection.estimator_mape_pct
    sentence = (
        f"On the same {projection.n_steps} steps the estimator has a MAPE of {projection.estimator_mape_pct:.1f} %, its"
        f" projection onto the BLIS basis {projection.mape_pct:.1f} % ({cost:+.1f} points; both in sample)."
    )
    unidentified = tuple(f"{name}: not identified, exported as 0" for name in projection.unidentified)
    return Section("BLIS export", (sentence,), unidentified)


def _left_out(findings: Findings) -> Section:
    reasons = Counter(skip.reason for skip in findings.skipped)
    points = [f"{count} cell(s) skipped: {reason}" for reason, count in reasons.most_common()]
    points += [
        f"job {outcome.job_id} failed ({outcome.reason}): {outcome.message}"
        for outcome in findings.outcomes
        if outcome.status == "failed"
    ]
    points += [f"split {report.split}: {report.impossible}" for report in findings.reports if report.impossible]
    points += [
        f"split {report.split}, {fold.held_out}: {fold.failure}"
        for report in findings.reports
        for fold in report.folds
        if fold.failure
    ]
    points += sorted(
        {
            f"{report.n_impossible_labels} step(s): faster than light"
            for report in findings.reports
            if report.n_impossible_labels
        }
    )
    return Section("Skipped and failed", points=tuple(points) or ("Nothing.",))


def _provenance(provenance: Provenance) -> Section:
    facts = (
        ("transfer", provenance.transfer),
        ("steps", str(provenance.n_steps)),
        ("jobs", str(len(provenance.job_ids))),
        ("GPUs", ", ".join(provenance.gpus)),
        ("models", ", ".join(provenance.models)),
        ("engines", ", ".join(provenance.software_versions)),
        ("srfa", " ".join((provenance.srfa_version, provenance.code_version)).strip()),
        ("libraries", ", ".join(f"{name} {version}" for name, version in provenance.library_versions.items())),
        *((f"sha256 of {name}", digest) for name, digest in provenance.data_sha256.items()),
        *((f"sha256 of {name}", digest) for name, digest in provenance.transfer_sha256.items()),
    )
    return Section("Provenance", grid=Grid(("what", "value"), facts))
