"""The formula of ``srfa``, once: every operator a smooth roofline of its memory and compute time, plus linear terms.

``step = sum_o R(a_o memory_o, b_o compute_o) + sum_l c_l linear_l`` with ``R(m, c) = m + s softplus((c - m) / s)`` and
``s = 0.7 m``. R has no constant in microseconds, is jointly convex, homogeneous of degree one, grows in both, and is
never under the hard roofline ``max(m, c)``; the width 0.7 says how far memory and compute fail to overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from srfa.compiled import compiled
from srfa.ragged import FloatArray, IntArray

WIDTH: Final = 0.7
"""Width of the bend as a share of the memory time. Chosen by the study that this project started from."""


@dataclass(frozen=True, slots=True)
class Work:
    """What ``n_steps`` steps do, and which group's factors each takes.

    Parameters
    ----------
    memory_us, compute_us
        Datasheet times, shape ``(n_steps, n_operators)``.
    linear
        Shape ``(n_steps, n_linear)``.
    kind
        Kind of each operator column, shape ``(n_operators,)``.
    gpu, software
        Group of each step, shape ``(n_steps,)``.
    """

    memory_us: FloatArray
    compute_us: FloatArray
    linear: FloatArray
    kind: IntArray
    gpu: IntArray
    software: IntArray

    @property
    def n_steps(self) -> int:
        """How many steps there are."""
        return len(self.gpu)

    def take(self, rows: IntArray) -> Work:
        """Return the given steps, in that order."""
        return replace(
            self,
            memory_us=self.memory_us[rows],
            compute_us=self.compute_us[rows],
            linear=self.linear[rows],
            gpu=self.gpu[rows],
            software=self.software[rows],
        )


@dataclass(frozen=True, slots=True)
class Factors:
    """What datasheet times and counts are multiplied with; all positive.

    Parameters
    ----------
    memory, compute
        Of each GPU and kind of operator, shape ``(n_gpus, n_kinds)``.
    linear
        Of each software and linear term, shape ``(n_softwares, n_linear)``.
    """

    memory: FloatArray
    compute: FloatArray
    linear: FloatArray


def smooth_roofline(memory_us: FloatArray, compute_us: FloatArray) -> FloatArray:
    """Return ``R(m, c)`` of arrays of one shape; an operator without memory time takes no part in the step: 0.

    Examples
    --------
    >>> smooth_roofline(np.array([100.0, 100.0, 0.0]), np.array([0.0, 1e6, 5.0])).round(1).tolist()
    [115.0, 1000000.0, 0.0]
    """
    flat = np.empty(memory_us.size)
    _rooflines(memory_us.ravel(), compute_us.ravel(), flat)
    return flat.reshape(memory_us.shape)


def predicted_us(work: Work, factors: Factors) -> FloatArray:
    """Return the predicted step times, microseconds, shape ``(n_steps,)``."""
    predicted = np.empty(work.n_steps)
    _predict(*_arrays(work), *_matrices(factors), predicted)
    return predicted


def loss_and_slopes(
    work: Work, factors: Factors, step_time_us: FloatArray, huber_delta: float
) -> tuple[float, Factors]:
    """Return the mean Huber loss of relative errors and its derivative by every factor.

    One pass over the steps that keeps nothing a step, so that memory does not grow with them.
    """
    slopes = Factors(*(np.zeros_like(matrix) for matrix in _matrices(factors)))
    loss = _loss(*_arrays(work), *_matrices(factors), step_time_us, huber_delta, *_matrices(slopes))
    return loss, slopes


def loss_and_curvature(
    work: Work, factors: Factors, step_time_us: FloatArray, huber_delta: float
) -> tuple[float, Factors, FloatArray]:
    """Return what :func:`loss_and_slopes` does, and the Gauss-Newton matrix of each pair of groups.

    Returns
    -------
    FloatArray
        Mean of ``J J^T`` over the steps within the threshold, ``J`` the derivative of a step's relative error by its
        memory, compute and linear factors; shape ``(n_gpus, n_softwares, n_factors, n_factors)``.
    """
    slopes = Factors(*(np.zeros_like(matrix) for matrix in _matrices(factors)))
    n_factors = 2 * factors.memory.shape[1] + factors.linear.shape[1]
    products = np.zeros((len(factors.memory), len(factors.linear), n_factors, n_factors))
    loss = _curvature(*_arrays(work), *_matrices(factors), step_time_us, huber_delta, *_matrices(slopes), products)
    return loss, slopes, products + np.triu(products, 1).swapaxes(2, 3)


def tangents(work: Work, factors: Factors) -> tuple[FloatArray, FloatArray]:
    """Return ``dR/da`` and ``dR/db`` summed by kind at ``factors``, shape ``(n_steps, n_kinds)`` each.

    R is homogeneous of degree one, so the tangent plane goes through the origin: a linear model without intercept that
    is exact at ``factors`` and, R being convex, never above R elsewhere.
    """
    n_kinds, n_linear = factors.memory.shape[1], factors.linear.shape[1]
    slopes = np.zeros((work.n_steps, 2 * n_kinds + n_linear))
    _tangents(*_arrays(work), *_matrices(factors), slopes)
    return slopes[:, :n_kinds], slopes[:, n_kinds : 2 * n_kinds]


def _arrays(work: Work) -> tuple[FloatArray, FloatArray, FloatArray, IntArray, IntArray, IntArray]:
    return work.memory_us, work.compute_us, work.linear, work.kind, work.gpu, work.software


def _matrices(factors: Factors) -> tuple[FloatArray, FloatArray, FloatArray]:
    return factors.memory, factors.compute, factors.linear


@compiled
def _bend(memory_us: float, compute_us: float) -> tuple[float, float, float]:
    """Return R and its derivatives by memory and compute time, for a positive memory time."""
    ratio = compute_us / memory_us
    u = (ratio - 1.0) / WIDTH
    small = np.exp(-abs(u))
    softplus = max(u, 0.0) + np.log(1.0 + small)  # log1p takes thrice as long and differs by 1e-16 of R
    slope = 1.0 / (1.0 + small) if u >= 0.0 else small / (1.0 + small)
    return memory_us * (1.0 + WIDTH * softplus), 1.0 + WIDTH * softplus - slope * ratio, slope


@compiled
def _rooflines(memory: FloatArray, compute: FloatArray, out: FloatArray) -> None:
    for at in range(memory.size):
        out[at] = _bend(memory[at], compute[at])[0] if memory[at] > 0.0 else 0.0


@compiled
def sum_us(
    memory: FloatArray, compute: FloatArray, linear: FloatArray, kind: IntArray, factors: tuple[FloatArray, ...]
) -> float:
    """Return the time of one step: its rooflines and linear terms, microseconds."""
    by_memory, by_compute, by_linear = factors
    total = 0.0
    for column in range(kind.size):
        if memory[column] > 0.0:
            of = kind[column]
            total += _bend(memory[column] * by_memory[of], compute[column] * by_compute[of])[0]
    for term in range(linear.size):
        total += linear[term] * by_linear[term]
    return total


@compiled
def _predict(  # noqa: PLR0913, PLR0917 - arrays of a compiled loop
    memory: FloatArray,
    compute: FloatArray,
    linear: FloatArray,
    kind: IntArray,
    gpu: IntArray,
    software: IntArray,
    by_memory: FloatArray,
    by_compute: FloatArray,
    by_linear: FloatArray,
    out: FloatArray,
) -> None:
    for row in range(gpu.size):
        factors = (by_memory[gpu[row]], by_compute[gpu[row]], by_linear[software[row]])
        out[row] = sum_us(memory[row], compute[row], linear[row], kind, factors)


@compiled
def _loss(  # noqa: PLR0913, PLR0917 - arrays of a compiled loop
    memory: FloatArray,
    compute: FloatArray,
    linear: FloatArray,
    kind: IntArray,
    gpu: IntArray,
    software: IntArray,
    by_memory: FloatArray,
    by_compute: FloatArray,
    by_linear: FloatArray,
    step_time_us: FloatArray,
    huber_delta: float,
    memory_slope: FloatArray,
    compute_slope: FloatArray,
    linear_slope: FloatArray,
) -> float:
    # The loop of _row_slopes once more, without views and a vector a row: half the time of the busiest function here.
    n_operators, n_linear, n_steps = kind.size, linear.shape[1], gpu.size
    of_memory, of_compute = np.zeros(n_operators), np.zeros(n_operators)
    loss = 0.0
    for row in range(n_steps):
        g, s, predicted = gpu[row], software[row], 0.0
        for column in range(n_operators):
            m, c = memory[row, column], compute[row, column]
            if m > 0.0:
                value, dm, dc = _bend(m * by_memory[g, kind[column]], c * by_compute[g, kind[column]])
                predicted += value
                of_memory[column], of_compute[column] = dm * m, dc * c
        for term in range(n_linear):
            predicted += linear[row, term] * by_linear[s, term]
        residual = predicted / step_time_us[row] - 1.0
        clipped = min(max(residual, -huber_delta), huber_delta)
        loss += clipped * (residual - 0.5 * clipped)
        psi = clipped / step_time_us[row]
        for column in range(n_operators):
            if memory[row, column] > 0.0:
                memory_slope[g, kind[column]] += psi * of_memory[column]
                compute_slope[g, kind[column]] += psi * of_compute[column]
        for term in range(n_linear):
            linear_slope[s, term] += psi * linear[row, term]
    memory_slope /= n_steps
    compute_slope /= n_steps
    linear_slope /= n_steps
    return loss / n_steps


@compiled
def _curvature(  # noqa: PLR0913, PLR0917 - arrays of a compiled loop
    memory: FloatArray,
    compute: FloatArray,
    linear: FloatArray,
    kind: IntArray,
    gpu: IntArray,
    software: IntArray,
    by_memory: FloatArray,
    by_compute: FloatArray,
    by_linear: FloatArray,
    step_time_us: FloatArray,
    huber_delta: float,
    memory_slope: FloatArray,
    compute_slope: FloatArray,
    linear_slope: FloatArray,
    products: FloatArray,
) -> float:
    n_kinds, n_linear, n_steps = by_memory.shape[1], linear.shape[1], gpu.size
    row_slope = np.zeros(2 * n_kinds + n_linear)
    loss = 0.0
    for row in range(n_steps):
        g, s = gpu[row], software[row]
        row_slope[:] = 0.0
        predicted = _row_slopes(
            memory[row], compute[row], linear[row], kind, (by_memory[g], by_compute[g], by_linear[s]), row_slope
        )
        per_label = 1.0 / step_time_us[row]
        residual = predicted * per_label - 1.0
        clipped = min(max(residual, -huber_delta), huber_delta)
        loss += clipped * (residual - 0.5 * clipped)
        row_slope *= per_label
        memory_slope[g] += clipped * row_slope[:n_kinds]
        compute_slope[g] += clipped * row_slope[n_kinds : 2 * n_kinds]
        linear_slope[s] += clipped * row_slope[2 * n_kinds :]
        if clipped == residual:
            _add_products(row_slope, products[g, s])
    memory_slope /= n_steps
    compute_slope /= n_steps
    linear_slope /= n_steps
    products /= n_steps
    return loss / n_steps


@compiled
def _row_slopes(
    memory: FloatArray,
    compute: FloatArray,
    linear: FloatArray,
    kind: IntArray,
    factors: tuple[FloatArray, FloatArray, FloatArray],
    slope: FloatArray,
) -> float:
    """Return a step's time and add its derivative by each factor to ``slope``."""
    by_memory, by_compute, by_linear = factors
    n_kinds = by_memory.size
    predicted = 0.0
    for column in range(kind.size):
        m, c, of = memory[column], compute[column], kind[column]
        if m > 0.0:
            value, dm, dc = _bend(m * by_memory[of], c * by_compute[of])
            predicted += value
            slope[of] += dm * m
            slope[n_kinds + of] += dc * c
    for term in range(linear.size):
        predicted += linear[term] * by_linear[term]
        slope[2 * n_kinds + term] = linear[term]
    return predicted


@compiled
def _add_products(slope: FloatArray, products: FloatArray) -> None:
    """Add the upper triangle of ``slope slope^T``."""
    for at in range(slope.size):
        if slope[at] != 0.0:
            for other in range(at, slope.size):
                products[at, other] += slope[at] * slope[other]


@compiled
def _tangents(  # noqa: PLR0913, PLR0917 - arrays of a compiled loop
    memory: FloatArray,
    compute: FloatArray,
    linear: FloatArray,
    kind: IntArray,
    gpu: IntArray,
    software: IntArray,
    by_memory: FloatArray,
    by_compute: FloatArray,
    by_linear: FloatArray,
    slopes: FloatArray,
) -> None:
    for row in range(gpu.size):
        factors = (by_memory[gpu[row]], by_compute[gpu[row]], by_linear[software[row]])
        _row_slopes(memory[row], compute[row], linear[row], kind, factors, slopes[row])
