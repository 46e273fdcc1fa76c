"""Damped Gauss-Newton steps within bounds: few passes over many steps, where each pass is what costs.

Source: Levenberg and Marquardt, with the damping scaled by the diagonal (Marquardt, SIAM J. Appl. Math. 11, 1963).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import Bounds, lsq_linear

from srfa.ragged import FloatArray

_FIRST_DAMPING: Final = 1e-3
_LARGEST_DAMPING: Final = 100.0
"""Where even shorter steps keep no promise the objective has a kink (a factor meets its bound): left to others."""
_FARTHEST: Final = 1.0
"""No parameter moves more in one step: the quadratic says nothing of what is farther."""
_LEAST_GAIN: Final = 1e-10
"""A step that promises less than this share of the objective is not worth its pass."""


@dataclass(frozen=True, slots=True)
class Model:
    """An objective around a point: its value, gradient, shape ``(n,)``, and positive definite matrix ``(n, n)``."""

    value: float
    gradient: FloatArray
    curvature: FloatArray


def descend(
    model_at: Callable[[FloatArray], Model], start: FloatArray, bounds: Bounds, *, max_steps: int
) -> tuple[FloatArray, int]:
    """Return the lowest point found and the evaluations that it took; the objective never grows on the way.

    Parameters
    ----------
    start
        Is brought within the bounds first.
    """
    point = np.clip(start, bounds.lb, bounds.ub)
    model, damping = model_at(point), _FIRST_DAMPING
    for evaluation in range(1, max_steps):
        step, gain = _bounded_step(model, damping, bounds.lb - point, bounds.ub - point)
        if gain <= _LEAST_GAIN * abs(model.value) or damping > _LARGEST_DAMPING:
            return point, evaluation
        moved = np.clip(point + step, bounds.lb, bounds.ub)
        found = model_at(moved)
        kept = (model.value - found.value) / gain
        damping *= 0.2 if kept > 0.5 else 5.0 if kept < 0.1 else 1.0
        if kept > 0.0:
            point, model = moved, found
    return point, max_steps


def _bounded_step(model: Model, damping: float, least: FloatArray, most: FloatArray) -> tuple[FloatArray, float]:
    """Return the step that minimises the damped quadratic within the bounds, and the decrease that it promises."""
    damped = model.curvature + damping * np.diag(np.diag(model.curvature))
    root = np.linalg.cholesky(damped)
    within = (np.maximum(least, -_FARTHEST), np.minimum(most, _FARTHEST))
    step = np.asarray(lsq_linear(root.T, -np.linalg.solve(root, model.gradient), within, method="bvls").x)
    return step, -float(model.gradient @ step + 0.5 * step @ model.curvature @ step)
