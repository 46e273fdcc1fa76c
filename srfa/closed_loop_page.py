"""A closed loop as tables of text, for the command line and for reports: the headline, then every job, worst first."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from srfa.closed_loop_report import ClosedLoopReport, Metric, NotReplayed, Pair, Replay, Summary, nearest
from srfa.fallback_file import Fallback
from srfa.page import Grid, Section
from srfa.request_models_page import request_models_section
from srfa.units import US_PER_MS

SUMMARY_HEADS = ("split", "jobs", "metric", "median %", "bias %", "P50 %", "P90 %", "P99 %", "requests %")
JOB_HEADS = (
    "job",
    "configuration, workload",
    "held out",
    "requests",
    "TTFT",
    "TPOT",
    "E2E",
    "tokens/s",
    "step time",
    "wall/label",
    "steps",
)
ERROR_HEADS = (
    "job",
    "configuration, workload",
    "TTFT %",
    "TPOT %",
    "E2E %",
    "tokens/s %",
    "step time %",
    "wall/label %",
)
LOST_HEADS = ("job", "split", "reason")
LEGEND = (
    "median %: median over jobs of the absolute error of a job's mean; bias %: mean of the signed ones (negative: too"
    " fast); P50, P90, P99 %: the same medians of the percentiles, of jobs with 1, 10, 100 requests; requests %: median"
    " over jobs of the median error of single requests."
)
JOB_LEGEND = (
    "Means, milliseconds: measured -> predicted (signed error). step time: the same coefficients asked for each"
    " measured batch by itself; where it is right and E2E is not, the loop is off and not the clock. wall/label: where"
    " labels are CPU time, the host's other work, which no clock can know. steps: that the engine took -> the"
    " simulator. Worst E2E first."
)
ERROR_LEGEND = (
    "Signed errors of means, worst E2E first (negative: predicted too fast). step time: the same coefficients asked for"
    " each measured batch by itself; where it is right and E2E is not, the loop is off and not the clock. wall/label:"
    " where labels are CPU time, the host's other work, which no clock can know. --out has what was measured."
)
_NEAREST = "nearest fold"
_SHOWN: tuple[tuple[Metric, float], ...] = (
    ("ttft", US_PER_MS),
    ("tpot", US_PER_MS),
    ("e2e", US_PER_MS),
    ("throughput", 1.0),
)
_NAMES: dict[Metric, str] = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E", "throughput": "tokens/s"}


def headline(report: ClosedLoopReport) -> str:
    """Return the outcome in one sentence."""
    if report.headline is None:
        return f"No job was replayed on coefficients that never saw it: {report.impossible or 'all of them were seen'}."
    found = report.headline
    errors = [
        f"{_NAMES[metric]} {found.metrics[metric].median_pct:.1f} % (bias {found.metrics[metric].bias_pct:+.1f} %)"
        for metric in ("e2e", "ttft", "tpot")
        if metric in found.metrics
    ]
    lost = f"; {len(report.lost)} could not be replayed" if report.lost else ""
    return (
        f"{found.n_jobs} jobs replayed on coefficients that never saw them: median error of {', '.join(errors)}{lost}."
    )


def loop_sentence(report: ClosedLoopReport) -> str:
    """Return how much of the error of E2E is the loop's own; empty where no step time is known."""
    own = [abs(one.loop_pct) for one in nearest(report.replays) if one.loop_pct is not None]
    if not own:
        return ""
    return f"With each job's own mean step time taken as measured, the median error of E2E is {median(own):.1f} %."


def noise_sentence(report: ClosedLoopReport) -> str:
    """Return what repeats of a job say of each other."""
    if report.noise is None:
        return "No cell was measured twice, so the noise floor is not known."
    spread = ", ".join(f"{_NAMES[metric]} {pct:.1f} %" for metric, pct in report.noise.spread_pct.items())
    of = f"{report.noise.n_jobs} jobs of {report.noise.n_cells} cells"
    return f"Noise floor, a repeat as the prediction of another ({of}): {spread}."


def summary_rows(report: ClosedLoopReport) -> tuple[tuple[str, ...], ...]:
    """Return one row a split and metric, under :data:`SUMMARY_HEADS`; the headline first."""
    summaries = (*((report.headline,) if report.headline else ()), *report.splits)
    return tuple(row for summary in summaries for row in _summary_rows(summary))


def job_rows(report: ClosedLoopReport) -> tuple[tuple[str, ...], ...]:
    """Return one row a job on its nearest fold, under :data:`JOB_HEADS`, the worst first, those that were seen last."""
    return tuple(_job_row(one) for one in _worst_first(report))


def error_rows(report: ClosedLoopReport) -> tuple[tuple[str, ...], ...]:
    """Return the same as signed errors alone, under :data:`ERROR_HEADS`."""
    return tuple(_error_row(one) for one in _worst_first(report))


def lost_rows(report: ClosedLoopReport) -> tuple[tuple[str, ...], ...]:
    """Return one row a job and split that could not be replayed, under :data:`LOST_HEADS`."""
    return tuple((_job(one), one.split, one.reason) for one in report.not_replayed)


def closed_loop_sections(
    report: ClosedLoopReport, figure: str = "", fallbacks: tuple[Fallback, ...] = ()
) -> tuple[Section, ...]:
    """Return the headline with the picture ``figure``, the jobs, and what stands in for the estimator, as sections."""
    if not report.replays and not report.not_replayed:
        return (Section("Closed loop", (f"Not possible: {report.impossible}.",)),)
    lost = [f"not replayed: {': '.join(part for part in row if part)}" for row in lost_rows(report)]
    bare = [one for one in report.replays if one.without_outside]
    lost += [f"{one.job_id}: replayed without what lies outside the steps: {one.without_outside}" for one in bare]
    summary = Section(
        "Closed loop",
        tuple(filter(None, (headline(report), loop_sentence(report), noise_sentence(report), LEGEND))),
        tuple(lost),
        Grid(SUMMARY_HEADS, summary_rows(report)),
        figure,
    )
    jobs = Section("Closed loop: jobs", (JOB_LEGEND,), grid=Grid(JOB_HEADS, job_rows(report)))
    models = (request_models_section(report.request_models),) if report.request_models else ()
    return summary, jobs, *models, *fallback_sections(fallbacks)


def fallback_sections(fallbacks: tuple[Fallback, ...]) -> Iterator[Section]:
    """Yield what is to be known of the fallbacks; nothing where there are none."""
    if fallbacks:
        sentence = (
            "On these configurations the estimator misses the closed loop's limit and coefficients of their own do"
            " better (fallbacks.json). They hold there and nowhere else, and nothing takes them unless it is asked to."
        )
        yield Section("Closed loop: fallbacks", (sentence,), tuple(one.sentence for one in fallbacks))


def _summary_rows(summary: Summary) -> Iterator[tuple[str, ...]]:
    for metric, found in summary.metrics.items():
        tails = (found.median_pct, found.bias_pct, found.p50_pct, found.p90_pct, found.p99_pct, found.request_pct)
        texts = ["-" if value is None else f"{value:.1f}" for value in tails]
        texts[1] = f"{found.bias_pct:+.1f}"
        yield summary.split or _NEAREST, str(found.n_jobs), _NAMES[metric], *texts


def _job_row(one: Replay) -> tuple[str, ...]:
    held_out = "SEEN by the fit" if one.seen else ": ".join(part for part in (one.split, one.held_out) if part)
    metrics = (_pair(one.metrics[name].mean if name in one.metrics else None, unit) for name, unit in _SHOWN)
    further = (_pair(one.step_time_us, US_PER_MS), _pair(one.wall_ratio, 1.0), _pair(one.n_steps, 1.0))
    return one.job_id, one.place, held_out, str(one.n_requests), *metrics, *further


def _error_row(one: Replay) -> tuple[str, ...]:
    means = [one.metrics[name].mean if name in one.metrics else None for name, _ in _SHOWN]
    errors = ("-" if pair is None else f"{pair.error_pct:+.1f}" for pair in (*means, one.step_time_us, one.wall_ratio))
    return one.job_id, f"{one.place} (SEEN by the fit)" if one.seen else one.place, *errors


def _worst_first(report: ClosedLoopReport) -> Iterator[Replay]:
    unseen = nearest(report.replays)
    seen = tuple(replay for replay in report.replays if replay.seen)
    for group in (unseen, seen):
        yield from sorted(group, key=_badness, reverse=True)


def _pair(pair: Pair | None, unit: float) -> str:
    if pair is None:
        return "-"
    return f"{pair.measured / unit:.4g} -> {pair.predicted / unit:.4g} ({pair.error_pct:+.1f} %)"


def _badness(one: Replay) -> float:
    return abs(one.error_pct("e2e") or 0.0)


def _job(one: NotReplayed) -> str:
    return f"{one.job_id} ({one.place})" if one.place else one.job_id
