"""``jams``: Joint Optimization with Architecture-Derived MoE Scaling (Idea 4 of the research document).

``step = max(gamma . F_fixed + beta . F_compute, floor)``, all coefficients fitted together, ``gamma >= 0`` and
``beta_0 >= 0``, the rest free. Repaired as its reviewers ask: both vectors have a ridge, strengths and Huber
threshold chosen by held-out jobs; the loss is robust and labels are winsorised; operations are those of the batch,
not a constant a token; the imbalance formula has a learned weight, shared by all models. A sum with free coefficients
can still turn negative: the floor is the design's own, ``srfa-seed`` replaces it by a softplus.
"""

from __future__ import annotations

from math import ceil, inf, log2

import numpy as np

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, FitConfig
from srfa.estimators.floor import FLOOR, floored, floored_share
from srfa.estimators.protocol import refuse_prior
from srfa.estimators.quantities import (
    StepQuantities,
    architecture_imbalance,
    ep_latency_us,
    router_flops_per_token,
)
from srfa.features import Block, Columns, FeatureMatrix, feature_matrix
from srfa.fit.explosion import WITHOUT_WEIGHTS, refuse_explosion
from srfa.fit.learned import FREE, NON_NEGATIVE, contribution, learned_block
from srfa.fit.linear import LinearProblem, fit_linear
from srfa.fit.objective import Penalty
from srfa.fit.preparation import prepared
from srfa.fit.search import choose_setting, first_setting, interquartile_range, settings
from srfa.fit.softplus import Solution
from srfa.observations import Observations
from srfa.ragged import FloatArray, IntArray
from srfa.roofline import Place, flops_per_us

_PRESSURE = 0.9
"""KV usage above which a large batch is expected to suffer."""
_LARGEST = WITHOUT_WEIGHTS | {f"compute.{name}": inf for name in ("mixed_batch", "batch_under_pressure")}
"""The design's interactions have no physical size: their features are fractions far below one."""


class JamsEstimator:
    """A constrained linear fit of overheads and compute together, started at the roofline."""

    name = "jams"

    def features(self, observations: Observations, catalog: Catalog) -> FeatureMatrix:
        """Compute the blocks ``fixed`` (5) and ``compute`` (8)."""
        step = StepQuantities.of(observations, catalog)
        return feature_matrix(observations, {"fixed": _fixed(step), "compute": _compute(step)})

    def fit(self, features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> Coefficients:
        """Choose ridges and threshold by jobs, then minimise by L-BFGS-B from datasheet rates.

        Raises
        ------
        FitError
            Fewer than 20 steps are left, or a term has exploded, which the text names.
        """
        refuse_prior(self.name, prior)
        kept = prepared(features, config)
        problem, n_fixed = _problem(kept), len(kept.blocks["fixed"].names)
        start = _roofline_start(kept, problem)
        setting = _chosen_setting(kept, problem, start, config)
        solution = _solve(problem, n_fixed, setting, start, config)
        fitted = _coefficients(self.name, kept, problem, setting, solution, config)
        return refuse_explosion(fitted, largest=_LARGEST)

    def predict(self, coefficients: Coefficients, features: FeatureMatrix) -> FloatArray:
        """Return the predicted step time in microseconds, at least the shortest step of the fit."""
        total = contribution(coefficients, features, "fixed") + contribution(coefficients, features, "compute")
        return floored(total, coefficients)


def _fixed(step: StepQuantities) -> Block:
    columns: Columns = {
        ("intercept", "us"): 1.0,
        ("tp_communication", "us"): step.tp_us,
        ("moe_router_and_dispatch", "us"): step.tokens * step.fact(_router_us) + step.fact(_dispatch_us),
        ("moe_imbalance", "us"): step.fact(architecture_imbalance) * step.expert_us,
        ("cpu_offload", "us"): step.offload_us,
    }
    return Block.of(columns, step.n_steps)


def _router_us(place: Place) -> float:
    return router_flops_per_token(place) / flops_per_us(place)


def _dispatch_us(place: Place) -> float:
    """``all-to-all latency x ceil(log2 E)`` a MoE layer; without expert parallelism there is no all-to-all."""
    if not place.model.is_moe:
        return 0.0
    return ep_latency_us(place) * ceil(log2(place.model.num_experts))


def _compute(step: StepQuantities) -> Block:
    columns: Columns = {
        ("intercept", "us"): 1.0,
        ("prefill_time", "us"): step.prefill_us,
        ("decode_time", "us"): step.decode_us,
        ("kv_read_time", "us"): step.kv_read_us,
        ("batch", "requests"): step.batch,
        ("log_longest_sequence", "log(1 + tokens)"): np.log1p(step.longest_sequence),
        ("mixed_batch", "1"): step.prefill_tokens * step.decode_tokens / step.max_num_batched_tokens**2,
        ("batch_under_pressure", "requests"): step.batch * np.maximum(0.0, step.kv_usage - _PRESSURE),
    }
    return Block.of(columns, step.n_steps)


def _problem(features: FeatureMatrix) -> LinearProblem:
    fixed, compute = features.blocks["fixed"], features.blocks["compute"]
    lower = np.full(len(fixed.names) + len(compute.names), -np.inf)
    lower[: len(fixed.names) + 1] = 0.0
    return LinearProblem.of(np.hstack([fixed.values, compute.values]), features.step_time_us, lower=lower)


def _roofline_start(features: FeatureMatrix, problem: LinearProblem) -> FloatArray:
    """Return scaled coefficients with every time at its datasheet value and nothing else."""
    units = features.blocks["fixed"].units + features.blocks["compute"].units
    names = features.blocks["fixed"].names + features.blocks["compute"].names
    timed = [unit == "us" and name != "intercept" for unit, name in zip(units, names, strict=True)]
    return np.where(timed, problem.scale, 0.0)


def _solve(problem: LinearProblem, n_fixed: int, setting: Penalty, start: FloatArray, config: FitConfig) -> Solution:
    ridge = np.full(problem.scale.size, setting.lambda_beta)
    ridge[:n_fixed] = setting.lambda_gamma
    return fit_linear(problem, ridge, setting.huber_delta, start=start, max_iterations=config.max_iterations)


def _chosen_setting(features: FeatureMatrix, problem: LinearProblem, start: FloatArray, config: FitConfig) -> Penalty:
    n_fixed = len(features.blocks["fixed"].names)
    first = _solve(problem, n_fixed, first_setting(config), start, config)
    grid = settings(config, residual_iqr=interquartile_range(problem.relative @ first.theta - 1.0))

    def scores(train: IntArray, test: IntArray) -> FloatArray:
        seen, unseen = problem.take(train), problem.take(test)
        found = [_solve(seen, n_fixed, setting, first.theta, config).theta for setting in grid]
        return np.array([np.mean(np.abs(unseen.relative @ theta - 1.0)) for theta in found])

    return choose_setting(grid, features.step_time_us, features.job_index, config=config, scores=scores)


def _coefficients(
    name: str, features: FeatureMatrix, problem: LinearProblem, setting: Penalty, solution: Solution, config: FitConfig
) -> Coefficients:
    fixed, compute = features.blocks["fixed"], features.blocks["compute"]
    values, n_fixed = solution.theta / problem.scale, len(fixed.names)
    bounds = [NON_NEGATIVE, *[FREE] * (len(compute.names) - 1)]
    predicted = np.hstack([fixed.values, compute.values]) @ values
    return Coefficients(
        estimator=name,
        blocks={
            "fixed": learned_block(fixed, values[:n_fixed], problem.scale[:n_fixed], bounds=NON_NEGATIVE),
            "compute": learned_block(compute, values[n_fixed:], problem.scale[n_fixed:], bounds=bounds),
        },
        constants={FLOOR: float(features.step_time_us.min())},
        chosen={
            "lambda_gamma": setting.lambda_gamma,
            "lambda_beta": setting.lambda_beta,
            "huber_delta": setting.huber_delta,
            "loss": solution.loss,
            "start_loss": solution.start_loss,
            "n_iterations": float(solution.n_iterations),
            "floored_share": floored_share(predicted, features.step_time_us),
        },
        converged=solution.converged,
        message=solution.message,
        config=config,
    )
