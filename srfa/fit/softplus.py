"""The refinement: L-BFGS-B on the full loss with its analytic gradient and bounds, from the convex start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, minimize
from threadpoolctl import threadpool_limits

from srfa.fit.objective import Penalty, Problem, loss_and_gradient
from srfa.ragged import FloatArray


@dataclass(frozen=True, slots=True)
class Solution:
    """How a solve ended, as data; a fit that did not converge is refused by the gate, not hidden.

    Parameters
    ----------
    theta
        Scaled parameters, shape ``(n_linear + n_compute,)``.
    message
        The solver's own words, with what to try where it failed.
    """

    theta: FloatArray
    loss: float
    start_loss: float
    converged: bool
    n_iterations: int
    message: str


_SHIFTS = (0.0, -0.5, -1.0, -2.0, -4.0, -8.0)
"""Candidates for the intercept inside the softplus, in units of its width."""


def softened(problem: Problem, penalty: Penalty, start: FloatArray) -> FloatArray:
    """Return the convex start with the softplus's intercept lowered to where the loss is least.

    The convex problem has ``x`` where the model has ``softplus(x) >= x``; without a shift a step that is all overhead
    would start ``s log 2`` too slow. The first compute column is the intercept.
    """
    position = problem.n_linear
    candidates = [start.copy() for _ in _SHIFTS]
    for candidate, shift in zip(candidates, _SHIFTS, strict=True):
        candidate[position] += shift * problem.softplus_scale_us * problem.compute_scale[0]
    losses = [loss_and_gradient(candidate, problem, penalty)[0] for candidate in candidates]
    return candidates[int(np.argmin(losses))]


def refine(problem: Problem, penalty: Penalty, start: FloatArray, *, max_iterations: int) -> Solution:
    """Minimise the loss within the bounds (compute parameters are free), from the convex ``start`` softened."""
    start = softened(problem, penalty, start)
    free = np.full(problem.compute.shape[1], np.inf)
    bounds = Bounds(np.append(problem.linear_lower, -free), np.append(problem.linear_upper, free))
    start_loss, _ = loss_and_gradient(start, problem, penalty)
    with threadpool_limits(limits=1):  # a dozen columns: more BLAS threads wait for each other, 14 times slower
        result = minimize(
            loss_and_gradient,
            start,
            args=(problem, penalty),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": max_iterations, "maxfun": 4 * max_iterations, "ftol": 1e-11, "gtol": 1e-8},
        )
    message = str(result.message)
    if not result.success:
        message += f" after {result.nit} iterations; raise max_iterations or the ridges"
    return Solution(np.asarray(result.x), float(result.fun), start_loss, bool(result.success), int(result.nit), message)
