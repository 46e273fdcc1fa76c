"""The convex start: the same loss with the softplus replaced by its argument, solved by cvxpy.

Where compute dominates, ``softplus(x) = x``; so the non-negative linear Huber fit is close to the optimum and cannot be
caught in a bad local minimum. Without ridge and with a large delta it is non-negative least squares of relative errors.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from srfa.fit.objective import Penalty, Problem
from srfa.ragged import FloatArray, IntArray


def convex_start(problem: Problem, penalty: Penalty, *, max_rows: int, seed: int) -> FloatArray:
    """Return start parameters in scaled units: linear ones at or above their bounds, compute ones non-negative.

    A problem with a prior starts there, within the bounds: where the fit ends that the data do not move.

    Parameters
    ----------
    max_rows
        More steps than this are thinned to a sample stratified by label size; the start need not see all of them.

    Returns
    -------
    FloatArray
        Shape ``(n_linear + n_compute,)``. If no solver finds an optimum, the bounds themselves: a feasible start.
    """
    if problem.prior is not None:
        free = np.full(problem.compute.shape[1], np.inf)
        return np.clip(problem.prior, np.append(problem.linear_lower, -free), np.append(problem.linear_upper, free))
    rows = stratified_rows(problem.step_time_us, max_rows, seed)
    relative = np.hstack([problem.linear, problem.compute])[rows] / problem.step_time_us[rows, None]
    lower: FloatArray = np.concatenate([problem.linear_lower, np.zeros(problem.compute.shape[1])])
    theta = cp.Variable(lower.size)
    loss = cp.sum(0.5 * cp.huber(relative @ theta - 1.0, penalty.huber_delta)) / len(rows)
    gamma, beta = theta[: problem.n_linear], theta[problem.n_linear :]
    ridge = penalty.lambda_gamma * cp.sum_squares(gamma) + penalty.lambda_beta * cp.sum_squares(beta)
    bounded = np.isfinite(problem.linear_upper)
    limits = [theta >= lower, gamma[bounded] <= problem.linear_upper[bounded]]
    program = cp.Problem(cp.Minimize(loss + ridge), limits)
    try:
        program.solve(solver=cp.CLARABEL)
    except cp.SolverError:
        return lower
    if theta.value is None:
        return lower
    upper = np.append(problem.linear_upper, np.full(problem.compute.shape[1], np.inf))
    return np.clip(np.asarray(theta.value, dtype=np.float64), lower, upper)


def stratified_rows(step_time_us: FloatArray, max_rows: int, seed: int) -> IntArray:
    """Return at most ``max_rows`` row numbers, one at random from each stretch of the sorted labels."""
    n_rows = len(step_time_us)
    if n_rows <= max_rows:
        return np.arange(n_rows)
    edges = np.linspace(0, n_rows, max_rows + 1).astype(np.int64)
    picks = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    return np.argsort(step_time_us, kind="stable")[picks]
