"""Loss and gradient of the SRFA fit: relative Huber loss with two ridges, one pure function.

``J(theta) = mean_i huber_delta(p_i(theta) / y_i - 1) + lambda_gamma |gamma - gamma0|^2 + lambda_beta |beta - beta0|^2``

with ``p = A gamma + s softplus(C beta / s)`` and all coefficient vectors in scaled units; ``gamma0`` and ``beta0`` are
those of a prior fit, or 0. The residual is relative because the gate speaks MAPE. Cost: two matrix-vector products and
two transposed ones, ``O(n_steps n_features)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srfa.model import softplus_slope, softplus_us
from srfa.ragged import FloatArray


@dataclass(frozen=True, slots=True)
class Problem:
    """A fit in scaled units.

    Parameters
    ----------
    linear
        Columns outside the softplus, divided by ``linear_scale``, shape ``(n_steps, n_linear)``.
    compute
        Columns inside the softplus, divided by ``compute_scale``, shape ``(n_steps, n_compute)``.
    step_time_us
        The label, shape ``(n_steps,)``.
    linear_lower, linear_upper
        Bounds of the linear coefficients in scaled units.
    softplus_scale_us
        Width of the softplus's bend.
    prior
        Scaled parameters that the ridges pull towards, shape ``(n_linear + n_compute,)``; None pulls towards 0.
    """

    linear: FloatArray
    compute: FloatArray
    step_time_us: FloatArray
    linear_scale: FloatArray
    compute_scale: FloatArray
    linear_lower: FloatArray
    linear_upper: FloatArray
    softplus_scale_us: float
    prior: FloatArray | None = None

    @property
    def target(self) -> FloatArray:
        """What the ridges pull towards, shape ``(n_linear + n_compute,)``."""
        return np.zeros(self.n_linear + self.compute.shape[1]) if self.prior is None else self.prior

    @property
    def n_linear(self) -> int:
        """Coefficients outside the softplus; they come first in a parameter vector."""
        return int(self.linear.shape[1])


@dataclass(frozen=True, slots=True)
class Penalty:
    """One setting of the search: two ridges and the Huber threshold (relative error)."""

    lambda_gamma: float
    lambda_beta: float
    huber_delta: float


def column_scale(columns: FloatArray, step_time_us: FloatArray) -> FloatArray:
    """Return each column's root mean square relative to the label; 1 for a column of zeros.

    In units of its scale every coefficient is about the share of a step it explains, so one ridge fits all.
    """
    rms = np.sqrt(np.mean((columns / step_time_us[:, None]) ** 2, axis=0))
    return np.where(rms > 0, rms, 1.0)


def huber(residual: FloatArray, delta: float) -> FloatArray:
    """Return ``r^2 / 2`` inside ``delta`` and ``delta (|r| - delta / 2)`` outside.

    >>> huber(np.array([0.5, 3.0]), 1.0).tolist()
    [0.125, 2.5]
    """
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def predicted_us(theta: FloatArray, problem: Problem) -> FloatArray:
    """Return the prediction of scaled parameters, microseconds, shape ``(n_steps,)``."""
    gamma, beta = theta[: problem.n_linear], theta[problem.n_linear :]
    return problem.linear @ gamma + softplus_us(problem.compute @ beta, problem.softplus_scale_us)


def loss_and_gradient(theta: FloatArray, problem: Problem, penalty: Penalty) -> tuple[float, FloatArray]:
    """Return ``J`` and its gradient with respect to the scaled parameters.

    With ``psi = clip(r, -delta, delta) / (n y)``: ``dJ/dgamma = A' psi + 2 lambda_gamma gamma`` and
    ``dJ/dbeta = C' (psi * expit(C beta / s)) + 2 lambda_beta beta``; with a prior, its entries are taken off first.
    """
    gamma, beta = theta[: problem.n_linear], theta[problem.n_linear :]
    inner = problem.compute @ beta
    predicted = problem.linear @ gamma + softplus_us(inner, problem.softplus_scale_us)
    residual = predicted / problem.step_time_us - 1.0
    off = theta - problem.target
    off_gamma, off_beta = off[: problem.n_linear], off[problem.n_linear :]
    ridge = penalty.lambda_gamma * off_gamma @ off_gamma + penalty.lambda_beta * off_beta @ off_beta
    loss = float(np.mean(huber(residual, penalty.huber_delta)) + ridge)
    psi = np.clip(residual, -penalty.huber_delta, penalty.huber_delta) / (residual.size * problem.step_time_us)
    by_gamma = problem.linear.T @ psi + 2.0 * penalty.lambda_gamma * off_gamma
    slope = psi * softplus_slope(inner, problem.softplus_scale_us)
    by_beta = problem.compute.T @ slope + 2.0 * penalty.lambda_beta * off_beta
    return loss, np.concatenate([by_gamma, by_beta])
