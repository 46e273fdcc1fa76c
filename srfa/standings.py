"""Estimators side by side: a leaderboard from validation reports.

Every figure is one of a :class:`srfa.validation_report.ValidationReport`; here they are only compared. Two estimators
are compared job by job on the same held-out steps, and the difference gets an interval by bootstrap over jobs, so that
a lead that is luck shows as a tie. Refusing is never rewarded: what covers fewer held-out groups ranks behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from srfa.errors import InputError
from srfa.folds import Split
from srfa.leaderboard import (
    DatasetBoard,
    Entry,
    Gap,
    HeldOutGroup,
    Leaderboard,
    Overall,
    Ranked,
    SplitBoard,
    Standing,
)
from srfa.metrics import Interval, mean_interval
from srfa.validation_report import FoldReport, ValidationReport

FEWEST_JOBS = 6
"""Jobs below which no difference is called sure. Where two estimators are of equal skill, all of ``n`` jobs favour the
same one with probability ``2^(1 - n)``: of five jobs in more than one case of twenty, whatever a bootstrap says."""


def leaderboard_of(
    reports: Mapping[str, Sequence[ValidationReport]], refused: Mapping[str, str] | None = None
) -> Leaderboard:
    """Compare estimators by their validation reports.

    Parameters
    ----------
    reports
        By the name of the data set, one report for every estimator and split, in any order.
    refused
        Data sets that could not be used, with the reason; they come last.

    Raises
    ------
    InputError
        Reports of one data set are not of the same steps and folds, or one is missing or there twice.
    """
    estimators = tuple(dict.fromkeys(report.estimator for some in reports.values() for report in some))
    boards = [_dataset_board(name, some, estimators) for name, some in reports.items()]
    boards += [DatasetBoard(name=name, refused=reason) for name, reason in (refused or {}).items()]
    splits = [split for board in boards for split in board.splits if not split.impossible]
    return Leaderboard(estimators=estimators, datasets=tuple(boards), overall=_overall(estimators, splits))


def _dataset_board(name: str, reports: Sequence[ValidationReport], estimators: Sequence[str]) -> DatasetBoard:
    by_split: dict[Split, list[ValidationReport]] = {}
    for report in reports:
        by_split.setdefault(report.split, []).append(report)
    for of_split in by_split.values():
        _check_comparable(name, of_split, estimators)
    first = reports[0]
    return DatasetBoard(
        name=name,
        n_steps=first.n_steps,
        n_jobs=first.n_jobs,
        n_impossible_labels=first.n_impossible_labels,
        config=first.config,
        provenance=first.provenance,
        splits=tuple(_split_board(of_split, estimators) for of_split in by_split.values()),
    )


def _check_comparable(name: str, reports: Sequence[ValidationReport], estimators: Sequence[str]) -> None:
    where = f"{name}, {reports[0].split}"
    given = [report.estimator for report in reports]
    if sorted(given) != sorted(estimators):
        raise InputError(
            f"{where}: reports of {', '.join(sorted(given))}; expected one of each of {', '.join(sorted(estimators))}:"
            " validate every estimator once on every split"
        )
    first = reports[0]
    for report in reports[1:]:
        if _what_was_held_out(report) != _what_was_held_out(first):
            raise InputError(
                f"{where}: the reports of {first.estimator} and {report.estimator} are not of the same steps and"
                " folds; validate both on the same observations"
            )


def _what_was_held_out(report: ValidationReport) -> list[tuple[str, int, int]]:
    return [(fold.held_out, report.n_steps, fold.n_train_steps) for fold in report.folds]


def _split_board(reports: Sequence[ValidationReport], estimators: Sequence[str]) -> SplitBoard:
    by_estimator = {report.estimator: report for report in reports}
    ordered = [by_estimator[name] for name in estimators]
    return SplitBoard(
        split=ordered[0].split,
        impossible=ordered[0].impossible,
        groups=tuple(_group(ordered, place) for place in range(len(ordered[0].folds))),
        ranking=_ranking(ordered) if ordered[0].folds else (),
    )


def _group(reports: Sequence[ValidationReport], place: int) -> HeldOutGroup:
    folds = {report.estimator: report.folds[place] for report in reports}
    mape_pct = {name: fold.errors.mape_pct for name, fold in folds.items() if fold.errors}
    best = min(mape_pct, key=lambda name: mape_pct[name], default="")
    report, fold = reports[0], reports[0].folds[place]
    seed = report.config.seed
    return HeldOutGroup(
        held_out=fold.held_out,
        n_steps=report.n_steps - fold.n_train_steps,
        n_jobs=report.n_jobs - fold.n_train_jobs + fold.n_shared_jobs,
        best=best,
        entries=tuple(_entry(name, one, best, folds.get(best), seed) for name, one in folds.items()),
    )


def _entry(name: str, fold: FoldReport, best: str, of_best: FoldReport | None, seed: int) -> Entry:
    gap = _gap((fold,), (of_best,), seed) if of_best and name != best else None
    return Entry(
        estimator=name,
        errors=fold.errors,
        refused=fold.failure,
        converged=fold.converged,
        message=fold.message,
        standing=_standing(gap, is_best=name == best, predicts=fold.errors is not None),
        gap=gap,
    )


def _ranking(reports: Sequence[ValidationReport]) -> tuple[Ranked, ...]:
    keys = {report.estimator: _rank_key(report) for report in reports}
    ordered = sorted(reports, key=lambda report: keys[report.estimator])
    return tuple(
        _ranked(report, ordered[0], 1 + sum(key < keys[report.estimator] for key in keys.values()))
        for report in ordered
    )


def _rank_key(report: ValidationReport) -> tuple[int, float]:
    """Coverage first: who refuses the hard groups must not win by the easy ones."""
    mean = _mean_mape_pct(report)
    return -_n_predicted(report), float("inf") if mean is None else mean


def _ranked(report: ValidationReport, best: ValidationReport, rank: int) -> Ranked:
    is_best, n_predicted = report is best, _n_predicted(report)
    gap = None if is_best else _gap(report.folds, best.folds, report.config.seed)
    return Ranked(
        estimator=report.estimator,
        rank=rank,
        n_folds=len(report.folds),
        n_predicted=n_predicted,
        n_converged=sum(fold.converged for fold in report.folds),
        mean_mape_pct=_mean_mape_pct(report),
        standing=_standing(gap, is_best=is_best, predicts=n_predicted > 0),
        gap=gap,
    )


def _n_predicted(report: ValidationReport) -> int:
    return sum(fold.errors is not None for fold in report.folds)


def _mean_mape_pct(report: ValidationReport) -> float | None:
    found = [fold.errors.mape_pct for fold in report.folds if fold.errors]
    return _rounded(np.mean(found)) if found else None


def _gap(mine: Iterable[FoldReport], best: Iterable[FoldReport], seed: int) -> Gap | None:
    """Compare job by job on the groups that both predict; a job weighs by its share of its group's steps.

    With weights ``n_steps(job) / n_steps(group)`` the mean over all jobs of all groups is the mean over groups of the
    difference in MAPE. An imported job that spans several groups is drawn as one: its parts are not independent.
    """
    weights: dict[str, float] = {}
    rises: dict[str, float] = {}
    by_name = {fold.held_out: fold for fold in best if fold.errors}
    for fold in mine:
        other = by_name.get(fold.held_out)
        if fold.errors is None or other is None:
            continue
        for job, of_best in zip(fold.jobs, other.jobs, strict=True):
            weight = job.n_steps / fold.errors.n_steps
            weights[job.job_id] = weights.get(job.job_id, 0.0) + weight
            rises[job.job_id] = rises.get(job.job_id, 0.0) + weight * (job.mape_pct - of_best.mape_pct)
    if not rises:
        return None
    weight_of = list(weights.values())
    means = [rise / weight for rise, weight in zip(rises.values(), weight_of, strict=True)]
    return Gap(
        n_jobs=len(means),
        mape_pct_points=_rounded(np.average(means, weights=weight_of)),
        interval_pct_points=mean_interval(means, weight_of, seed=seed),
    )


def _standing(gap: Gap | None, *, is_best: bool, predicts: bool) -> Standing:
    if not predicts:
        return "refused"
    if is_best:
        return "best"
    if gap is None:
        return "untested"
    interval = gap.interval_pct_points or Interval(low=gap.mape_pct_points, high=gap.mape_pct_points)
    if interval.low <= 0.0 <= interval.high:
        return "tied"
    if gap.n_jobs < FEWEST_JOBS:
        return "untested"
    return "worse" if interval.low > 0.0 else "better"


def _overall(estimators: Iterable[str], splits: Sequence[SplitBoard]) -> tuple[Overall, ...]:
    if not splits:
        return ()
    found = []
    for name in estimators:
        rows = [row for split in splits for row in split.ranking if row.estimator == name]
        found.append(
            Overall(
                estimator=name,
                mean_rank=_rounded(np.mean([row.rank for row in rows])),
                n_splits=len(rows),
                n_folds=sum(row.n_folds for row in rows),
                n_predicted=sum(row.n_predicted for row in rows),
            )
        )
    return tuple(sorted(found, key=lambda row: row.mean_rank))


def _rounded(value: float | np.floating) -> float:
    """Ten significant digits, as in :mod:`srfa.metrics`."""
    return float(f"{value:.10g}")
