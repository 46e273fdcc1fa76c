"""``srfa-seed``: SRFA as the research document designs it (Idea 5 with the recommended changes).

Its feature set has no weight-read term, which is what limits it; it is kept as the baseline that the completed
``srfa`` is measured against.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, FitConfig
from srfa.estimators.quantities import (
    StepQuantities,
    base_overhead_us,
    routed_bytes_per_token,
    router_flops_per_token,
)
from srfa.features import Block, Columns, FeatureMatrix, feature_matrix
from srfa.fit.convex import convex_start
from srfa.fit.explosion import WITHOUT_WEIGHTS, refuse_explosion
from srfa.fit.learned import FREE, NON_NEGATIVE, Bounds, contribution, learned_block, learned_values
from srfa.fit.objective import Penalty, Problem, column_scale
from srfa.fit.preparation import prepared
from srfa.fit.search import choose_penalty
from srfa.fit.softplus import Solution, refine
from srfa.model import step_time_us
from srfa.observations import Observations
from srfa.ragged import FloatArray
from srfa.roofline import Place, bytes_per_us, flops_per_us
from srfa.units import BYTES_PER_US_PER_GBPS

IMBALANCE_BOUNDS: tuple[float, float] = (1.0, 4.0)
"""Busiest expert over mean: 1 is balanced; the research document expects 1.2 to 2, more than 4 is another effect."""
_SHORTEST_US = 1.0
"""A softplus is positive, but far below zero its digits run out; no step is shorter than a microsecond."""
_SOFTPLUS_QUANTILE = 0.05
"""The bend's width is this quantile of the labels: short against most steps, so the form stays near linear there."""


class SrfaSeedEstimator:
    """Overheads ``gamma >= 0``, MoE overhead times an imbalance ``>= 1``, softplus of seven compute features."""

    name = "srfa-seed"

    def features(self, observations: Observations, catalog: Catalog) -> FeatureMatrix:
        """Compute the blocks ``fixed`` (4), ``moe`` (1) and ``compute`` (7) of the alignment table."""
        step = StepQuantities.of(observations, catalog)
        blocks = {"fixed": _fixed(step), "moe": _moe(step), "compute": _compute(step)}
        return feature_matrix(observations, blocks)

    def fit(self, features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> Coefficients:
        """Search the settings by jobs, start convex, refine by L-BFGS-B; with a prior, all ridges pull towards it.

        Raises
        ------
        FitError
            Fewer than 20 steps are left, with a prior 10; or a term has exploded, which the text names.
        CoefficientsError
            The prior's features are not those of this version.
        """
        features = prepared(features, config, prior=prior)
        problem = problem_of(features)
        if prior:
            problem = _towards(problem, features, prior)
        penalty = choose_penalty(problem, features.job_index, config)
        start = convex_start(problem, penalty, max_rows=config.convex_max_rows, seed=config.seed)
        solution = refine(problem, penalty, start, max_iterations=config.max_iterations)
        fitted = _coefficients(self.name, features, problem, penalty, solution, config)
        return refuse_explosion(fitted, largest=WITHOUT_WEIGHTS)

    def predict(self, coefficients: Coefficients, features: FeatureMatrix) -> FloatArray:
        """Return the predicted step time in microseconds, shape ``(n_steps,)``, at least one."""
        linear = sum(contribution(coefficients, features, name) for name in ("fixed", "moe"))
        compute = contribution(coefficients, features, "compute")
        predicted = step_time_us(np.asarray(linear), compute, coefficients.constants["softplus_scale_us"])
        return np.maximum(predicted, _SHORTEST_US)


def _fixed(step: StepQuantities) -> Block:
    columns: Columns = {
        ("intercept", "us"): 1.0,
        ("tp_communication", "us"): step.tp_us,
        ("ep_communication", "us"): step.ep_us,
        ("base_overhead", "us"): step.fact(base_overhead_us),
    }
    return Block.of(columns, step.n_steps)


def _moe(step: StepQuantities) -> Block:
    """Router and dispatch time of the MoE layers at datasheet rates; its coefficient is the learned imbalance."""
    return Block.of({("router_and_dispatch", "us"): step.tokens * step.fact(_moe_us_per_token)}, step.n_steps)


def _moe_us_per_token(place: Place) -> float:
    router = router_flops_per_token(place) / flops_per_us(place)
    link = place.gpu.datasheet.link_gbps_per_direction * BYTES_PER_US_PER_GBPS
    rate = link if place.configuration.expert_parallel_size > 1 else bytes_per_us(place)
    return router / place.gpu.calibration.mfu_decode + routed_bytes_per_token(place) / rate


def _compute(step: StepQuantities) -> Block:
    columns: Columns = {
        ("intercept", "us"): 1.0,
        ("prefill_time", "us"): step.prefill_us,
        ("decode_time", "us"): step.decode_us,
        ("kv_read_time", "us"): step.kv_read_us,
        ("log_batch", "log(1 + requests)"): np.log1p(step.batch),
        ("log_longest_sequence", "log(1 + tokens)"): np.log1p(step.longest_sequence),
        ("mixed_batch", "1"): step.prefills * step.decodes / step.batch**2,
    }
    return Block.of(columns, step.n_steps)


def problem_of(features: FeatureMatrix) -> Problem:
    """Scale the features into the problem that the solvers see; the imbalance is the last linear column."""
    y = features.step_time_us
    linear = np.hstack([features.blocks["fixed"].values, features.blocks["moe"].values])
    compute = features.blocks["compute"].values
    linear_scale, compute_scale = column_scale(linear, y), column_scale(compute, y)
    lower, upper = np.zeros(linear.shape[1]), np.full(linear.shape[1], np.inf)
    if linear[:, -1].any():
        lower[-1], upper[-1] = linear_scale[-1] * np.array(IMBALANCE_BOUNDS)
    return Problem(
        linear=linear / linear_scale,
        compute=compute / compute_scale,
        step_time_us=y,
        linear_scale=linear_scale,
        compute_scale=compute_scale,
        linear_lower=lower,
        linear_upper=upper,
        softplus_scale_us=float(np.quantile(y, _SOFTPLUS_QUANTILE)),
    )


def _towards(problem: Problem, features: FeatureMatrix, prior: Coefficients) -> Problem:
    """Return the problem with the prior as what its ridges pull towards.

    In the scales of these steps, and with the prior's bend: the strongest ridge then leaves the prior as it was.
    """
    names = ("fixed", "moe", "compute")
    values = np.concatenate([learned_values(prior, name, features.blocks[name].names) for name in names])
    scale = np.concatenate([problem.linear_scale, problem.compute_scale])
    return replace(problem, prior=values * scale, softplus_scale_us=prior.constants["softplus_scale_us"])


def _coefficients(
    name: str, features: FeatureMatrix, problem: Problem, penalty: Penalty, solution: Solution, config: FitConfig
) -> Coefficients:
    scale = np.concatenate([problem.linear_scale, problem.compute_scale])
    values = solution.theta / scale
    n_fixed, n_linear = len(features.blocks["fixed"].names), problem.n_linear
    if not features.blocks["moe"].values.any():
        # without MoE data it is unidentified: the prior's, or the neutral value
        neutral = IMBALANCE_BOUNDS[0] if problem.prior is None else problem.prior[n_fixed:n_linear]
        values[n_fixed:n_linear] = neutral
    parts: dict[str, tuple[slice, Bounds]] = {
        "fixed": (slice(0, n_fixed), NON_NEGATIVE),
        "moe": (slice(n_fixed, n_linear), IMBALANCE_BOUNDS),
        "compute": (slice(n_linear, None), FREE),
    }
    blocks = {
        part: learned_block(features.blocks[part], values[place], scale[place], bounds=bounds)
        for part, (place, bounds) in parts.items()
    }
    return Coefficients(
        estimator=name,
        blocks=blocks,
        constants={"softplus_scale_us": problem.softplus_scale_us},
        chosen=_chosen(penalty, solution),
        converged=solution.converged,
        message=solution.message,
        config=config,
    )


def _chosen(penalty: Penalty, solution: Solution) -> dict[str, float]:
    return {
        "lambda_gamma": penalty.lambda_gamma,
        "lambda_beta": penalty.lambda_beta,
        "huber_delta": penalty.huber_delta,
        "loss": solution.loss,
        "start_loss": solution.start_loss,
        "n_iterations": float(solution.n_iterations),
    }
