"""Robust linear fits with non-negative coefficients: what the models of requests are fitted by."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
from scipy.optimize import linprog

from srfa.coefficients import CoefficientBlock
from srfa.errors import FitError
from srfa.features import Block
from srfa.fit.learned import NON_NEGATIVE, learned_block
from srfa.ragged import FloatArray, IntArray

_DELTA_IN_IQR = 1.5
_RIDGE = 1e-4
_NOTHING = 1e-6
"""A coefficient that adds less than this share of the typical target is 0: the solver's digits."""


def fit_positive(block: Block, target_us: FloatArray, *, what: str) -> CoefficientBlock:
    """Minimise Huber loss of ``block . x - target`` over ``x >= 0``, with a weak ridge on scaled columns.

    The threshold adapts to the data: 1.5 interquartile ranges of the target around its median, at least a microsecond.

    Raises
    ------
    FitError
        Fewer finite targets than columns, or the solver gave up.
    """
    known = _known(block, target_us, what)
    columns, target = block.values[known], target_us[known]
    scale = _scale(columns)
    spread = float(np.subtract(*np.quantile(target, [0.75, 0.25])))
    unit = max(float(np.mean(np.abs(target))), 1.0)
    solution = _solve(columns / scale, target / unit, max(_DELTA_IN_IQR * spread, 1.0) / unit, what)
    solution[~columns.any(axis=0)] = 0.0  # a feature that never occurred is not identified: it costs nothing
    return learned_block(block, solution * unit / scale, scale, bounds=NON_NEGATIVE)


def fit_between(
    block: Block, least_us: FloatArray, most_us: FloatArray, *, what: str, max_rows: int
) -> CoefficientBlock:
    r"""Minimise ``mean(max(0, least - block . x) + max(0, block . x - most))`` over ``x >= 0``.

    Where ``least`` equals ``most`` this is the regression of the median, which a half of outliers cannot move; where
    they differ, anything between is as good, so that what the data leave open ends at the smallest coefficients.

    Parameters
    ----------
    least_us, most_us
        Bounds of each target, microseconds, shape ``(n_rows,)``.
    max_rows
        Of more rows as many are taken, evenly spread.

    Raises
    ------
    FitError
        Fewer finite targets than columns, or the solver gave up.

    Examples
    --------
    >>> ones = Block.of({("intercept", "us"): 1.0}, 5)
    >>> times = np.array([10.0, 11.0, 12.0, 13.0, 9_000.0])
    >>> fit_between(ones, times, times, what="x", max_rows=100).values[0].__round__(1)
    12.0
    """
    known = _known(block, least_us + most_us, what)
    known = known[np.linspace(0, len(known) - 1, min(len(known), max_rows)).astype(np.int64)]
    columns, least, most = block.values[known], least_us[known], most_us[known]
    scale, unit = _scale(columns), max(float(np.median(np.abs(most))), 1.0)
    solution = _least_misses(columns / scale, least / unit, most / unit, what)
    solution[(solution < _NOTHING) | ~columns.any(axis=0)] = 0.0
    return learned_block(block, solution * unit / scale, scale, bounds=NON_NEGATIVE)


def _least_misses(columns: FloatArray, least: FloatArray, most: FloatArray, what: str) -> FloatArray:
    """Solve the linear program by its dual: two bounded variables a row, one constraint a column, whose prices are x.

    ``max least . a - most . b`` over ``columns' (a - b) <= ridge`` and ``0 <= a, b <= 1 / n_rows``.
    """
    n_rows, n_columns = columns.shape
    found = linprog(
        np.concatenate([-least, most]),
        A_ub=np.hstack([columns.T, -columns.T]),
        b_ub=np.full(n_columns, _RIDGE),
        bounds=(0.0, 1.0 / n_rows),
        method="highs",
    )
    if not found.success:
        raise FitError(f"{what}: the linear program of {n_rows} requests was not solved: {found.message}")
    return np.maximum(0.0, -found.ineqlin.marginals)


def _known(block: Block, target_us: FloatArray, what: str) -> IntArray:
    known = np.flatnonzero(np.isfinite(target_us) & np.isfinite(block.values).all(axis=1))
    if len(known) < len(block.names):
        raise FitError(f"{what}: {len(known)} usable requests for {len(block.names)} coefficients; measure more")
    return known


def _scale(columns: FloatArray) -> FloatArray:
    largest = np.abs(columns).max(axis=0)
    return np.where(largest > 0, largest, 1.0)


def _solve(columns: FloatArray, target: FloatArray, delta: float, what: str) -> FloatArray:
    x = cp.Variable(columns.shape[1])
    loss = cp.sum(0.5 * cp.huber(columns @ x - target, delta)) / len(target) + _RIDGE * cp.sum_squares(x)
    problem = cp.Problem(cp.Minimize(loss), [x >= 0])
    problem.solve(solver=cp.CLARABEL)
    if x.value is None:
        raise FitError(f"{what}: the fit to {len(target)} requests was not solved: {problem.status}")
    values = np.asarray(x.value, dtype=np.float64)
    values[values < _RIDGE * _RIDGE] = 0.0
    return values
