"""A robust linear fit with non-negative coefficients: what the queueing and token models are fitted by."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from srfa.coefficients import CoefficientBlock
from srfa.errors import FitError
from srfa.features import Block
from srfa.fit.learned import NON_NEGATIVE, learned_block
from srfa.ragged import FloatArray

_DELTA_IN_IQR = 1.5
_RIDGE = 1e-4


def fit_positive(block: Block, target_us: FloatArray, *, what: str) -> CoefficientBlock:
    """Minimise Huber loss of ``block . x - target`` over ``x >= 0``, with a weak ridge on scaled columns.

    The threshold adapts to the data: 1.5 interquartile ranges of the target around its median, at least a microsecond.

    Raises
    ------
    FitError
        Fewer finite targets than columns.
    """
    known = np.isfinite(target_us) & np.isfinite(block.values).all(axis=1)
    if known.sum() < len(block.names):
        raise FitError(f"{what}: {int(known.sum())} usable requests for {len(block.names)} coefficients; measure more")
    columns, target = block.values[known], target_us[known]
    scale = np.where(np.abs(columns).max(axis=0) > 0, np.abs(columns).max(axis=0), 1.0)
    spread = float(np.subtract(*np.quantile(target, [0.75, 0.25])))
    unit = max(float(np.mean(np.abs(target))), 1.0)
    solution = _solve(columns / scale, target / unit, max(_DELTA_IN_IQR * spread, 1.0) / unit)
    solution[~columns.any(axis=0)] = 0.0  # a feature that never occurred is not identified: it costs nothing
    return learned_block(block, solution * unit / scale, scale, bounds=NON_NEGATIVE)


def _solve(columns: FloatArray, target: FloatArray, delta: float) -> FloatArray:
    x = cp.Variable(columns.shape[1])
    loss = cp.sum(0.5 * cp.huber(columns @ x - target, delta)) / len(target) + _RIDGE * cp.sum_squares(x)
    cp.Problem(cp.Minimize(loss), [x >= 0]).solve(solver=cp.CLARABEL)
    values = np.zeros(columns.shape[1]) if x.value is None else np.asarray(x.value, dtype=np.float64)
    values[values < _RIDGE * _RIDGE] = 0.0
    return values
