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
    """Return ``R(m, c)`` of arrays of one shape; where there is no memory time, the compute time.

    Examples
    --------
    >>> smooth_roofline(np.array([100.0, 100.0, 0.0]), np.array([0.0, 1e6, 5.0])).round(1).tolist()
    [115.0, 1000000.0, 5.0]
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


def tangents(work: Work, factors: Factors) -> tuple[FloatArray, FloatArray]:
    """Return ``dR/da`` and ``dR/db`` summed by kind at ``factors``, shape ``(n_steps, n_kinds)`` each.

    R is homogeneous of degree one, so the tangent plane goes through the origin: a linear model without intercept that
    is exact at ``factors`` and, R being convex, never above R elsewhere.
    """
    by_memory, by_compute = (np.zeros((work.n_steps, factors.memory.shape[1])) for _ in range(2))
    _tangents(*_arrays(work), *_matrices(factors), by_memory, by_compute)
    return by_memory, by_compute


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
    softplus = max(u, 0.0) + np.log1p(small)
    slope = 1.0 / (1.0 + small) if u >= 0.0 else small / (1.0 + small)
    return memory_us * (1.0 + WIDTH * softplus), 1.0 + WIDTH * softplus - slope * ratio, slope


@compiled
def _rooflines(memory: FloatArray, compute: FloatArray, out: FloatArray) -> None:
    for at in range(memory.size):
        out[at] = _bend(memory[at], compute[at])[0] if memory[at] > 0.0 else compute[at]


@compiled
def _step_us(
    memory: FloatArray, compute: FloatArray, linear: FloatArray, kind: IntArray, factors: tuple[FloatArray, ...]
) -> float:
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
        out[row] = _step_us(memory[row], compute[row], linear[row], kind, factors)


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
def _tangents(  # noqa: PLR0913, PLR0917 - arrays of a compiled loop
    memory: FloatArray,
    compute: FloatArray,
    linear: FloatArray,  # noqa: ARG001 - the arrays of a Work travel together
    kind: IntArray,
    gpu: IntArray,
    software: IntArray,  # noqa: ARG001
    by_memory: FloatArray,
    by_compute: FloatArray,
    by_linear: FloatArray,  # noqa: ARG001
    memory_slope: FloatArray,
    compute_slope: FloatArray,
) -> None:
    for row in range(gpu.size):
        g = gpu[row]
        for column in range(kind.size):
            m, c, of = memory[row, column], compute[row, column], kind[column]
            if m > 0.0:
                _, dm, dc = _bend(m * by_memory[g, of], c * by_compute[g, of])
                memory_slope[row, of] += dm * m
                compute_slope[row, of] += dc * c
