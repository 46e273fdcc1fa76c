"""The formula of :mod:`srfa.smooth_roofline` in numpy, where chosen kinds of operators have a hard roofline.

``max(1.15 m, c)`` takes the place of ``R(m, c)``: the same where nothing is computed, without the bend.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srfa.ragged import FloatArray
from srfa.smooth_roofline import WIDTH, Factors, Work

_IDLE = 1.0 + WIDTH * float(np.log1p(np.exp(-1.0 / WIDTH)))


@dataclass(frozen=True, slots=True)
class HardRooflines:
    """Stand-ins for the functions of :mod:`srfa.smooth_roofline`; ``hard`` holds the kinds without a bend."""

    hard: frozenset[int]

    def predicted_us(self, work: Work, factors: Factors) -> FloatArray:
        """Return predicted step times."""
        return self._evaluate(work, factors)[0]

    def tangents(self, work: Work, factors: Factors) -> tuple[FloatArray, FloatArray]:
        """Return the derivatives by memory and compute factor, by kind."""
        n_kinds = factors.memory.shape[1]
        _, slopes = self._evaluate(work, factors)
        return slopes[:, :n_kinds], slopes[:, n_kinds : 2 * n_kinds]

    def loss_and_slopes(self, work: Work, factors: Factors, y: FloatArray, delta: float) -> tuple[float, Factors]:
        """Return mean Huber loss and derivatives."""
        return self.loss_and_curvature(work, factors, y, delta)[:2]

    def loss_and_curvature(
        self, work: Work, factors: Factors, y: FloatArray, delta: float
    ) -> tuple[float, Factors, FloatArray]:
        """Return the same and the Gauss-Newton matrices."""
        predicted, slopes = self._evaluate(work, factors)
        residual, slopes = predicted / y - 1.0, slopes / y[:, None]
        clipped = np.clip(residual, -delta, delta)
        n_kinds, n = factors.memory.shape[1], work.n_steps
        by_factor = Factors(*(np.zeros_like(one) for one in (factors.memory, factors.compute, factors.linear)))
        products = np.zeros((len(factors.memory), len(factors.linear), slopes.shape[1], slopes.shape[1]))
        for g, s in {*zip(work.gpu.tolist(), work.software.tolist(), strict=True)}:
            rows = (work.gpu == g) & (work.software == s)
            total = clipped[rows] @ slopes[rows] / n
            by_factor.memory[g] += total[:n_kinds]
            by_factor.compute[g] += total[n_kinds : 2 * n_kinds]
            by_factor.linear[s] += total[2 * n_kinds :]
            inside = slopes[rows & (clipped == residual)]
            products[g, s] = inside.T @ inside / n
        return float(np.mean(clipped * (residual - 0.5 * clipped))), by_factor, products

    def _evaluate(self, work: Work, factors: Factors) -> tuple[FloatArray, FloatArray]:
        """Return predictions, and their derivative by each factor of the step's own groups."""
        m = work.memory_us * factors.memory[work.gpu][:, work.kind]
        c = work.compute_us * factors.compute[work.gpu][:, work.kind]
        u = (np.divide(c, m, out=np.zeros_like(c), where=m > 0) - 1.0) / WIDTH
        softplus, slope = np.logaddexp(0.0, u), 1.0 / (1.0 + np.exp(-np.maximum(u, -50.0)))
        smooth = (m * (1.0 + WIDTH * softplus), 1.0 + WIDTH * softplus - slope * (1.0 + WIDTH * u), slope)
        computing = c > _IDLE * m
        sharp = (np.maximum(_IDLE * m, c), np.where(computing, 0.0, _IDLE), computing.astype(np.float64))
        is_hard = np.isin(work.kind, list(self.hard))
        value, by_memory, by_compute = (np.where(is_hard, b, a) for a, b in zip(smooth, sharp, strict=True))
        of_kind = np.eye(factors.memory.shape[1])[work.kind]
        linear = work.linear * factors.linear[work.software]
        slopes = np.hstack(
            [(by_memory * work.memory_us) @ of_kind, (by_compute * work.compute_us) @ of_kind, work.linear]
        )
        return value.sum(axis=1) + linear.sum(axis=1), slopes
