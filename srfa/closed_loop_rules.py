"""The gate's rules of the closed loop: medians and bias against limits, what was lost, what a baseline had."""

from __future__ import annotations

from collections.abc import Iterator

from srfa.closed_loop_report import ClosedLoopReport, Metric, Replay, Summary, nearest
from srfa.limits import ClosedLoopLimits
from srfa.metrics import mean_interval
from srfa.verdict import Finding, finding_of

_REMEDY = "give what 'srfa replay --out closed_loop.json' writes"
_JUDGED: dict[Metric, str] = {"e2e": "E2E", "ttft": "TTFT", "tpot": "TPOT"}


def closed_loop_findings(
    report: ClosedLoopReport | None, limits: ClosedLoopLimits | None, baseline: ClosedLoopReport | None = None
) -> Iterator[Finding]:
    """Yield one finding a rule; nothing where the limits file has no section of it.

    Replays on coefficients that saw the job prove nothing and are not judged.
    """
    if limits is None:
        return
    headline = report.headline if report else None
    if report is None or headline is None:
        yield from _absent(report, limits)
    else:
        yield from _enough_jobs(report, "", limits)
        yield from _within(headline, limits)
        yield from _splits_within(report, limits)
    if report is not None:
        yield _replayed(report, limits)
    if baseline is not None and baseline.headline is not None:
        yield from _covered(report, baseline)
        yield from _against(report, baseline, limits)


def _absent(report: ClosedLoopReport | None, limits: ClosedLoopLimits) -> Iterator[Finding]:
    if limits.required:
        reason = f"was not made; {_REMEDY}"
        if report is not None:
            reason = f"is not possible: {report.impossible or 'no job was replayed on a fit that never saw it'}"
        yield _finding("required", passed=False, sentence=f"closed loop: is required and {reason}")


def _enough_jobs(report: ClosedLoopReport, split: str, limits: ClosedLoopLimits) -> Iterator[Finding]:
    """Yield whether enough jobs were replayed, and have each figure that has a limit."""
    jobs = nearest(one for one in report.replays if split in ("", one.split))
    yield _enough(split, "min_jobs", f"{len(jobs)} job(s) replayed", len(jobs), limits)
    for metric, limit in _median_limits(limits).items():
        lacking = [one for one in jobs if metric not in one.metrics and not _can_have_none(one, metric)]
        if (limit is None and limits.max_abs_bias_pct is None) or not 0 < len(lacking) < len(jobs):
            continue
        n_with = len(jobs) - len(lacking)
        yield _enough(split, f"min_jobs of {metric}", f"{n_with} job(s) with {_JUDGED[metric]}", n_with, limits)


def _can_have_none(one: Replay, metric: Metric) -> bool:
    """Answers of one token have no TPOT."""
    return metric == "tpot" and one.longest_answer_tokens <= 1


def _enough(split: str, rule: str, what: str, value: int, limits: ClosedLoopLimits) -> Finding:
    passed, least = value >= limits.min_jobs, limits.min_jobs
    enough = "enough" if passed else "too few to prove anything"
    sentence = f"{_where(split)}: {what}, {enough} for the limit of {least}"
    return _finding(rule, split=split, value=value, limit=least, passed=passed, sentence=sentence)


def _within(summary: Summary, limits: ClosedLoopLimits) -> Iterator[Finding]:
    for metric, limit in _median_limits(limits).items():
        name, found = _JUDGED[metric], summary.metrics.get(metric)
        median, bias = (found.median_pct, abs(found.bias_pct)) if found else (None, None)
        yield _at_most(summary.split, f"max_median_{metric}_pct", f"median error of {name}", median, limit)
        yield _at_most(
            summary.split, f"max_abs_bias_pct of {metric}", f"absolute bias of {name}", bias, limits.max_abs_bias_pct
        )


def _median_limits(limits: ClosedLoopLimits) -> dict[Metric, float | None]:
    return {
        "e2e": limits.max_median_e2e_pct,
        "ttft": limits.max_median_ttft_pct,
        "tpot": limits.max_median_tpot_pct,
    }


def _where(split: str) -> str:
    return f"closed loop, {split}" if split else "closed loop"


def _at_most(split: str, rule: str, what: str, value: float | None, limit: float | None) -> Finding:
    if value is None:
        sentence = f"{_where(split)}: no replayed job has a figure for the {what}"
        return _finding(rule, split=split, limit=limit, passed=limit is None, sentence=sentence)
    passed = limit is None or value <= limit
    against = "(no limit)" if limit is None else f"is {'within' if passed else 'above'} the limit {limit:g} %"
    sentence = f"{_where(split)}: {what} {value:.1f} % {against}"
    return _finding(rule, split=split, value=value, limit=limit, passed=passed, sentence=sentence)


def _splits_within(report: ClosedLoopReport, limits: ClosedLoopLimits) -> Iterator[Finding]:
    by_name = {summary.split: summary for summary in report.splits}
    for split in limits.splits:
        if split in by_name:
            yield from _enough_jobs(report, split, limits)
            yield from _within(by_name[split], limits)
        else:
            sentence = f"closed loop, {split}: no job was replayed on a fold of this split"
            yield _finding("required", split=split, passed=False, sentence=sentence)


def _replayed(report: ClosedLoopReport, limits: ClosedLoopLimits) -> Finding:
    lost, most = report.lost, limits.max_not_replayed
    named = "; ".join(f"{one.job_id}: {one.reason}" for one in lost)
    sentence = (
        f"closed loop: {len(lost)} job(s) could not be replayed, {most} tolerated{f' ({named})' if named else ''}"
    )
    return _finding("max_not_replayed", value=len(lost), limit=most, passed=len(lost) <= most, sentence=sentence)


def _covered(report: ClosedLoopReport | None, baseline: ClosedLoopReport) -> Iterator[Finding]:
    """Yield what the baseline replayed and the report does not; all of it, where none was made."""
    now = {replay.place for replay in nearest(report.replays if report else ())}
    for place in sorted({replay.place for replay in nearest(baseline.replays)} - now):
        sentence = f"closed loop: {place}: replayed in the baseline, missing now"
        yield _finding("lost_coverage", passed=False, sentence=sentence)


def _against(
    report: ClosedLoopReport | None, baseline: ClosedLoopReport, limits: ClosedLoopLimits
) -> Iterator[Finding]:
    if report is None or report.headline is None or baseline.headline is None:
        return
    for metric, name in _JUDGED.items():
        before, after = baseline.headline.median_pct(metric), report.headline.median_pct(metric)
        if before is not None and after is not None:
            surely = _sure_rise(baseline, report, metric)
            yield _regression(metric, name, (before, after), surely, limits.max_regression_pct_points)


def _regression(metric: Metric, name: str, medians: tuple[float, float], surely: float | None, most: float) -> Finding:
    before, after = medians
    rise = after - before
    certainty = "" if surely is None else f", at least {surely:+.2f} points on the jobs of both"
    return _finding(
        f"baseline_regression of {metric}",
        value=rise,
        limit=most,
        passed=rise <= most or (surely is not None and surely <= 0),
        sentence=(
            f"closed loop: median error of {name} {before:.1f} -> {after:.1f} % ({rise:+.2f} points{certainty});"
            f" {most:g} points are tolerated"
        ),
    )


def _sure_rise(baseline: ClosedLoopReport, report: ClosedLoopReport, metric: Metric) -> float | None:
    """Return the lower end of the mean rise over the jobs both replayed; None where they share fewer than two."""
    before = {one.job_id: one.error_pct(metric) for one in nearest(baseline.replays)}
    rises = [
        abs(after) - abs(then)
        for one in nearest(report.replays)
        if (after := one.error_pct(metric)) is not None and (then := before.get(one.job_id)) is not None
    ]
    interval = mean_interval(rises, [1.0] * len(rises))
    return interval.low if interval else None


def _finding(
    rule: str, *, passed: bool, sentence: str, split: str = "", value: float | None = None, limit: float | None = None
) -> Finding:
    """Put the rule's name where a split's rules have the group."""
    return finding_of("closed_loop", split, rule, passed=passed, sentence=sentence, value=value, limit=limit)
