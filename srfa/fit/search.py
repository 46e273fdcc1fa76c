"""The search over settings: ridges and Huber threshold by cross-validation grouped by job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import TypeVar

import numpy as np
from joblib import Parallel, delayed
from sklearn.model_selection import GroupKFold

from srfa.coefficients import FitConfig
from srfa.fit.convex import convex_start, stratified_rows
from srfa.fit.objective import Penalty, Problem, predicted_us
from srfa.fit.softplus import refine
from srfa.ragged import FloatArray, IntArray

_SEARCH_ROWS = 2000
_FIRST_DELTA = 0.1
"""Threshold of the fit whose residuals set the adaptive ones, where no fixed threshold is given."""
_SMALLEST_DELTA = 0.001
"""Below a tenth of a percent no measurement repeats: an adaptive threshold goes no lower."""

Setting = TypeVar("Setting")
Scores = Callable[[IntArray, IntArray], FloatArray]
"""From row numbers to learn from and row numbers held out to the MAPE of every setting there."""


def settings(config: FitConfig, *, residual_iqr: float = 0.0) -> tuple[Penalty, ...]:
    """Every combination of the configuration's ridges and thresholds.

    Parameters
    ----------
    residual_iqr
        Interquartile range of the relative residuals of a first fit: the unit of ``huber_delta_iqr``.
    """
    adaptive = tuple(max(times * residual_iqr, _SMALLEST_DELTA) for times in config.huber_delta_iqr)
    grid = product(config.lambda_gamma, config.lambda_beta, config.huber_delta + adaptive)
    return tuple(Penalty(gamma, beta, delta) for gamma, beta, delta in grid)


def first_setting(config: FitConfig) -> Penalty:
    """Return the middle of the ridges and fixed thresholds: what a first fit uses to see the noise of the data."""
    deltas = config.huber_delta or (_FIRST_DELTA,)
    return Penalty(_middle(config.lambda_gamma), _middle(config.lambda_beta), _middle(deltas))


def interquartile_range(residual: FloatArray) -> float:
    """Return the distance of the third quartile from the first.

    >>> interquartile_range(np.array([0.0, 1.0, 2.0, 3.0, 100.0]))
    2.0
    """
    low, high = np.quantile(residual, [0.25, 0.75])
    return float(high - low)


def choose_penalty(problem: Problem, job_index: IntArray, config: FitConfig) -> Penalty:
    """Return the setting with the lowest MAPE on held-out jobs; see :func:`choose_setting`."""
    grid = settings(config, residual_iqr=_residual_iqr(problem, config) if config.huber_delta_iqr else 0.0)

    def scores(train: IntArray, test: IntArray) -> FloatArray:
        return _scores(problem, train, test, grid, config)

    return choose_setting(grid, problem.step_time_us, job_index, config=config, scores=scores)


def choose_setting(
    grid: tuple[Setting, ...], step_time_us: FloatArray, job_index: IntArray, *, config: FitConfig, scores: Scores
) -> Setting:
    """Return the setting of ``grid`` with the lowest MAPE on held-out jobs.

    With one setting, or too few jobs to hold any out, the middle of the grid is taken unsearched. ``config.n_workers``
    folds are tried at a time, in threads: most of a fit is compiled. ``joblib.parallel_config`` around the call puts
    another backend in their place, such as Ray's. The result is the same with any number.
    """
    folds = min(config.folds, len(np.unique(job_index)))
    if len(grid) == 1 or folds < 2:
        return grid[len(grid) // 2]
    rows = stratified_rows(step_time_us, _SEARCH_ROWS, config.seed)
    parts = [(rows[train], rows[test]) for train, test in grouped_folds(job_index[rows], folds)]
    pool = Parallel(n_jobs=min(config.n_workers, len(parts)), prefer="threads")
    return grid[int(np.argmin(sum(pool(delayed(scores)(*part) for part in parts))))]


def grouped_folds(groups: IntArray, folds: int) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield row numbers to learn from and to hold out; no group is on both sides."""
    count = min(folds, len(np.unique(groups)))
    yield from GroupKFold(n_splits=count).split(groups, groups=groups)


def rows_of(problem: Problem, rows: IntArray) -> Problem:
    """Return the problem restricted to the given steps; scales and bounds stay."""
    return replace(
        problem,
        linear=problem.linear[rows],
        compute=problem.compute[rows],
        step_time_us=problem.step_time_us[rows],
    )


def _middle(entries: tuple[float, ...]) -> float:
    return entries[len(entries) // 2]


def _residual_iqr(problem: Problem, config: FitConfig) -> float:
    start = convex_start(problem, first_setting(config), max_rows=config.convex_max_rows, seed=config.seed)
    linear = problem.linear @ start[: problem.n_linear] + problem.compute @ start[problem.n_linear :]
    return interquartile_range(linear / problem.step_time_us - 1.0)


def _scores(
    problem: Problem, train: IntArray, test: IntArray, grid: tuple[Penalty, ...], config: FitConfig
) -> FloatArray:
    """MAPE of every setting on one fold; each setting starts from the convex start of the fold's middle setting."""
    seen, unseen = rows_of(problem, train), rows_of(problem, test)
    start = convex_start(seen, grid[len(grid) // 2], max_rows=config.convex_max_rows, seed=config.seed)
    scores = np.empty(len(grid))
    for position, penalty in enumerate(grid):
        solution = refine(seen, penalty, start, max_iterations=config.max_iterations)
        error = np.abs(predicted_us(solution.theta, unseen) / unseen.step_time_us - 1.0)
        scores[position] = float(np.mean(error))
    return scores
