"""A linear step model within bounds: relative Huber loss and a ridge, by L-BFGS-B with the analytic gradient.

``J(theta) = mean_i huber_delta(x_i . theta / y_i - 1) + sum_k ridge_k theta_k^2`` with columns in scaled units. It is
convex: where the solver converges it found the minimum, whatever it started from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, minimize
from threadpoolctl import threadpool_limits

from srfa.fit.objective import column_scale, huber
from srfa.fit.softplus import Solution
from srfa.ragged import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class LinearProblem:
    """A linear fit in scaled units.

    Parameters
    ----------
    relative
        Columns divided by ``scale`` and by the label, shape ``(n_steps, n_columns)``.
    scale
        Root mean square of each column relative to the label, shape ``(n_columns,)``.
    lower
        Least value of each coefficient, ``-inf`` where it is free.
    """

    relative: FloatArray
    scale: FloatArray
    lower: FloatArray

    @classmethod
    def of(cls, columns: FloatArray, step_time_us: FloatArray, *, lower: FloatArray) -> LinearProblem:
        """Scale the columns, shape ``(n_steps, n_columns)``, by their size relative to the labels."""
        scale = column_scale(columns, step_time_us)
        return cls(columns / scale / step_time_us[:, None], scale, lower)

    def take(self, rows: IntArray) -> LinearProblem:
        """Return the problem restricted to the given steps; the scale stays."""
        return LinearProblem(self.relative[rows], self.scale, self.lower)


def linear_loss(theta: FloatArray, problem: LinearProblem, ridge: FloatArray, delta: float) -> tuple[float, FloatArray]:
    """Return ``J`` and its gradient ``X' clip(r, -delta, delta) / n + 2 ridge theta``, with ``r = X theta - 1``."""
    residual = problem.relative @ theta - 1.0
    loss = float(np.mean(huber(residual, delta)) + ridge @ theta**2)
    slope = np.clip(residual, -delta, delta) / residual.size
    return loss, problem.relative.T @ slope + 2.0 * ridge * theta


def fit_linear(
    problem: LinearProblem, ridge: FloatArray, delta: float, *, start: FloatArray, max_iterations: int
) -> Solution:
    """Minimise the loss within the bounds.

    Parameters
    ----------
    ridge
        Strength on each scaled coefficient, shape ``(n_columns,)``.
    start
        Scaled coefficients to begin with.
    """
    start = np.maximum(start, problem.lower)
    start_loss, _ = linear_loss(start, problem, ridge, delta)
    with threadpool_limits(limits=1):
        result = minimize(
            linear_loss,
            start,
            args=(problem, ridge, delta),
            jac=True,
            method="L-BFGS-B",
            bounds=Bounds(problem.lower, np.inf),
            options={"maxiter": max_iterations, "maxfun": 4 * max_iterations, "ftol": 1e-13, "gtol": 1e-9},
        )
    message = str(result.message)
    if not result.success:
        message += f" after {result.nit} iterations; raise max_iterations or the ridges"
    return Solution(np.asarray(result.x), float(result.fun), start_loss, bool(result.success), int(result.nit), message)
