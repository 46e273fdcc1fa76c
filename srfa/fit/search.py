"""The search over settings: ridges and Huber threshold by cross-validation grouped by job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
from sklearn.model_selection import GroupKFold

from srfa.coefficients import FitConfig
from srfa.fit.convex import convex_start, stratified_rows
from srfa.fit.objective import Penalty, Problem, predicted_us
from srfa.fit.softplus import refine
from srfa.ragged import FloatArray, IntArray

_SEARCH_ROWS = 2000


def settings(config: FitConfig) -> tuple[Penalty, ...]:
    """Every combination of the configuration's ridges and thresholds."""
    grid = product(config.lambda_gamma, config.lambda_beta, config.huber_delta)
    return tuple(Penalty(gamma, beta, delta) for gamma, beta, delta in grid)


def choose_penalty(problem: Problem, job_index: IntArray, config: FitConfig) -> Penalty:
    """Return the setting with the lowest MAPE on held-out jobs.

    With one setting, or too few jobs to hold any out, the middle of the grid is taken unsearched.
    """
    grid = settings(config)
    folds = min(config.folds, len(np.unique(job_index)))
    if len(grid) == 1 or folds < 2:
        return grid[len(grid) // 2]
    rows = stratified_rows(problem.step_time_us, _SEARCH_ROWS, config.seed)
    small, groups = rows_of(problem, rows), job_index[rows]
    scores = sum(_scores(small, train, test, grid, config) for train, test in _split(groups, folds))
    return grid[int(np.argmin(scores))]


def rows_of(problem: Problem, rows: IntArray) -> Problem:
    """Return the problem restricted to the given steps; scales and bounds stay."""
    return replace(
        problem,
        linear=problem.linear[rows],
        compute=problem.compute[rows],
        step_time_us=problem.step_time_us[rows],
    )


def _split(groups: IntArray, folds: int) -> Iterator[tuple[IntArray, IntArray]]:
    count = min(folds, len(np.unique(groups)))
    yield from GroupKFold(n_splits=count).split(groups, groups=groups)


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
