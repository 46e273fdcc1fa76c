"""The fit of the smooth rooflines: positive factors as logarithms, a ridge to a prior, groups that deviate.

Parameters are logarithms, in this order: memory and compute factor of each kind of operator, coefficient of each linear
term, then the deviations: of each GPU's memory and compute factors, and of each software's host terms. The objective is

``mean Huber(predicted / measured - 1) + (w / 2) (1 + 100 / n) sum ((log theta - log prior) / sd)^2``

for ``n`` steps: up to about a hundred each tells something new, beyond that they repeat each other within their jobs.
It is started at the convex fit of the tangent plane at the prior (cvxpy), brought near the optimum by damped
Gauss-Newton steps (:mod:`srfa.fit.descent`), then minimised by L-BFGS-B with its exact gradient. A factor below its
bound is held there: no fit predicts a step faster than memory and tensor cores are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.optimize import Bounds, minimize

from srfa.coefficients import FitConfig
from srfa.fit.convex import bounded_huber, stratified_rows
from srfa.fit.descent import Model, descend
from srfa.fit.objective import column_scale
from srfa.fit.softplus import Solution
from srfa.ragged import FloatArray, IntArray
from srfa.smooth_roofline import Factors, Work, loss_and_curvature, loss_and_slopes, tangents

LEAST_MEMORY: Final = 0.87
"""Bound of a memory factor: ``R(0.87 m, 0) = m``, the peak bandwidth."""
LEAST_COMPUTE: Final = 1.0
"""Bound of a compute factor: the dense peak."""
_FIRST_ROWS: Final = 10_000
"""A fit of more steps is first solved on this many, stratified by label; few passes over all of them remain then."""
_TELLING_STEPS: Final = 100.0
_ON_BOUND: Final = 1.0 - 1e-9
_LARGEST_LOG: Final = 25.0


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known before any step: a log-normal for each parameter.

    Parameters
    ----------
    log_mean, log_sd
        Shape ``(n_parameters,)``, in the order of the module's docstring.
    """

    log_mean: FloatArray
    log_sd: FloatArray


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parameters lie in the vector.

    Parameters
    ----------
    is_host
        Which linear terms belong to the host, shape ``(n_linear,)``.
    n_gpus, n_softwares
        Groups that deviate; one more of each, without deviation, stands for those that were never seen.
    """

    n_kinds: int
    is_host: FloatArray
    n_gpus: int
    n_softwares: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the parts of the vector."""
        return (self.n_kinds, self.n_kinds, len(self.is_host), self.n_gpus, self.n_gpus, self.n_softwares)

    def parts(self, vector: FloatArray) -> list[FloatArray]:
        """Cut a vector into memory, compute, linear, GPU memory, GPU compute, software."""
        return np.split(vector, np.cumsum(self.sizes)[:-1])

    def factors(self, log_theta: FloatArray) -> Factors:
        """Return the factors of every group; the last GPU and the last software deviate from nothing."""
        memory, compute, linear, gpu_memory, gpu_compute, software = self.parts(log_theta)
        return Factors(
            memory=np.maximum(np.exp(memory + _with_unseen(gpu_memory)), LEAST_MEMORY),
            compute=np.maximum(np.exp(compute + _with_unseen(gpu_compute)), LEAST_COMPUTE),
            linear=np.exp(linear + _with_unseen(software) * self.is_host),
        )

    def gradient(self, log_theta: FloatArray, slopes: Factors) -> FloatArray:
        """Return the derivative by the logarithms from that by the factors; one held at its bound does not move."""
        moving = self._moving(log_theta)
        memory, compute, linear = (
            slopes.memory * moving.memory,
            slopes.compute * moving.compute,
            slopes.linear * moving.linear,
        )
        shared = [memory.sum(axis=0), compute.sum(axis=0), linear.sum(axis=0)]
        own = [memory[:-1].sum(axis=1), compute[:-1].sum(axis=1), linear[:-1] @ self.is_host]
        return np.concatenate([*shared, *own])

    def curvature(self, log_theta: FloatArray, products: FloatArray) -> FloatArray:
        """Return the Gauss-Newton matrix by the logarithms from those by the factors of each pair of groups."""
        moving = self._moving(log_theta)
        total = np.zeros((sum(self.sizes), sum(self.sizes)))
        for gpu, software in np.argwhere(products.any(axis=(2, 3))):
            scale = np.concatenate([moving.memory[gpu], moving.compute[gpu], moving.linear[software]])
            chain = scale[:, None] * self._chain(int(gpu), int(software))
            total += chain.T @ products[gpu, software] @ chain
        return total

    def _moving(self, log_theta: FloatArray) -> Factors:
        """Return the factors, 0 where the parameters ask for less than the bound; on it they may still grow."""
        factors = self.factors(log_theta)
        memory, compute, _, gpu_memory, gpu_compute, _ = self.parts(log_theta)
        asked_memory, asked_compute = (
            np.exp(memory + _with_unseen(gpu_memory)),
            np.exp(compute + _with_unseen(gpu_compute)),
        )
        return Factors(
            memory=factors.memory * (asked_memory >= LEAST_MEMORY * _ON_BOUND),
            compute=factors.compute * (asked_compute >= LEAST_COMPUTE * _ON_BOUND),
            linear=factors.linear,
        )

    def _chain(self, gpu: int, software: int) -> FloatArray:
        """Which logarithms add up to the logarithm of each factor of a pair of groups."""
        n_shared = 2 * self.n_kinds + len(self.is_host)
        own = np.zeros((n_shared, 2 * self.n_gpus + self.n_softwares))
        if gpu < self.n_gpus:
            own[: self.n_kinds, gpu] = 1.0
            own[self.n_kinds : 2 * self.n_kinds, self.n_gpus + gpu] = 1.0
        if software < self.n_softwares:
            own[2 * self.n_kinds :, 2 * self.n_gpus + software] = self.is_host
        return np.hstack([np.eye(n_shared), own])


@dataclass(frozen=True, slots=True)
class Task:
    """A fit: steps, labels, and what is known before."""

    work: Work
    step_time_us: FloatArray
    layout: Layout
    prior: Prior

    def take(self, rows: IntArray) -> Task:
        """Return the task on the given steps alone."""
        return replace(self, work=self.work.take(rows), step_time_us=self.step_time_us[rows])


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the search: weight of the prior, and where Huber's loss turns linear (relative error)."""

    prior_weight: float
    huber_delta: float


def objective(log_theta: FloatArray, task: Task, setting: Setting) -> tuple[float, FloatArray]:
    """Return the objective and its gradient with respect to the logarithms."""
    factors = task.layout.factors(log_theta)
    loss, slopes = loss_and_slopes(task.work, factors, task.step_time_us, setting.huber_delta)
    penalty, pull = _penalty(log_theta, task, setting)
    return loss + penalty, task.layout.gradient(log_theta, slopes) + pull


def local_model(log_theta: FloatArray, task: Task, setting: Setting) -> Model:
    """Return the objective, its gradient and its Gauss-Newton matrix with respect to the logarithms."""
    factors = task.layout.factors(log_theta)
    loss, slopes, products = loss_and_curvature(task.work, factors, task.step_time_us, setting.huber_delta)
    slope, (penalty, pull) = task.layout.gradient(log_theta, slopes), _penalty(log_theta, task, setting)
    bend = np.maximum(slope, 0.0)  # of the logarithm: what a factor that tends to zero feels
    diagonal = np.diag(bend + _weight(task, setting) / task.prior.log_sd**2)
    return Model(loss + penalty, slope + pull, task.layout.curvature(log_theta, products) + diagonal)


def _penalty(log_theta: FloatArray, task: Task, setting: Setting) -> tuple[float, FloatArray]:
    distance = (log_theta - task.prior.log_mean) / task.prior.log_sd
    weight = _weight(task, setting)
    return 0.5 * weight * float(distance @ distance), weight * distance / task.prior.log_sd


def _weight(task: Task, setting: Setting) -> float:
    return setting.prior_weight * (1.0 + _TELLING_STEPS / task.work.n_steps)


def tangent_start(task: Task, setting: Setting, config: FitConfig) -> FloatArray:
    """Return the start: the non-negative Huber fit of the tangent plane at the prior, found by cvxpy.

    Rooflines are convex and homogeneous, so the plane is a linear model of positive factors that is exact at the prior.
    Deviations of groups start at their prior. Without a ridge and with a large threshold it is non-negative least
    squares of relative errors.
    """
    part = task.take(stratified_rows(task.step_time_us, config.convex_max_rows, config.seed))
    layout, mean = part.layout, part.prior.log_mean
    work, factors = part.work, layout.factors(mean)
    by_memory, by_compute = tangents(work, factors)
    memory, compute, linear = (np.exp(shared) for shared in layout.parts(mean)[:3])
    columns = np.hstack(
        [
            by_memory * factors.memory[work.gpu] / memory,
            by_compute * factors.compute[work.gpu] / compute,
            work.linear * factors.linear[work.software] / linear,
        ]
    )
    at_prior = np.concatenate([memory, compute, linear])
    scale = column_scale(columns, part.step_time_us)
    bounds = np.repeat([LEAST_MEMORY, LEAST_COMPUTE, 0.0], [layout.n_kinds, layout.n_kinds, len(layout.is_host)])
    found = bounded_huber(
        columns / scale / part.step_time_us[:, None],
        lower=bounds * scale,
        upper=np.full(len(scale), np.inf),
        ridge=np.full(len(scale), setting.prior_weight),
        towards=at_prior * scale,
        huber_delta=setting.huber_delta,
    )
    if found is None:
        return mean
    shared = np.log(np.maximum(found / scale, 0.1 * at_prior))
    return np.concatenate([shared, mean[len(shared) :]])


def solve(task: Task, setting: Setting, config: FitConfig) -> Solution:
    """Minimise the objective from the convex start; of many steps first a stratified part is solved."""
    start = tangent_start(task, setting, config)
    start_loss = objective(start, task, setting)[0]
    if task.work.n_steps > 2 * _FIRST_ROWS:
        part = task.take(stratified_rows(task.step_time_us, _FIRST_ROWS, config.seed))
        start, _ = _descended(start, part, setting, config)
    near, n_steps = _descended(start, task, setting, config)
    result = minimize(
        objective,
        near,
        args=(task, setting),
        jac=True,
        method="L-BFGS-B",
        bounds=_bounds(task.layout),
        options={"maxiter": config.max_iterations, "maxfun": 2 * config.max_iterations, "ftol": 1e-12, "gtol": 1e-8},
    )
    message = str(result.message)
    if not result.success:
        message += f" after {result.nit} iterations; raise max_iterations or prior_weight"
    iterations = n_steps + int(result.nit)
    return Solution(np.asarray(result.x), float(result.fun), start_loss, bool(result.success), iterations, message)


def _descended(start: FloatArray, task: Task, setting: Setting, config: FitConfig) -> tuple[FloatArray, int]:
    return descend(
        lambda at: local_model(at, task, setting), start, _bounds(task.layout), max_steps=config.max_iterations
    )


def _bounds(layout: Layout) -> Bounds:
    lower = np.full(sum(layout.sizes), -_LARGEST_LOG)
    lower[: layout.n_kinds] = np.log(LEAST_MEMORY)
    lower[layout.n_kinds : 2 * layout.n_kinds] = np.log(LEAST_COMPUTE)
    return Bounds(lower, np.full(len(lower), _LARGEST_LOG))


def _with_unseen(deviations: FloatArray) -> FloatArray:
    """Append the group without deviation, as a column."""
    return np.append(deviations, 0.0)[:, None]
