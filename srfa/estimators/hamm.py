"""``hamm``: Hybrid Additive-Multiplicative Model (Idea 3 of the research document), fitted in two stages.

``step = gamma . F_fixed + exp(beta . F_compute)``: overheads add, compute multiplies. Repaired as its reviewers ask:
the first stage learns overheads from the steps with the fewest tokens (not from every step with little prefill, which
may decode 200 requests) and keeps them below every label, so that the second stage has a positive rest to take
logarithms of; and one MoE correction is shared by all models, where one a model would know none of a new model.
Without MoE steps in the fit it is 0: a MoE model is then predicted as if it were dense.
"""

from __future__ import annotations

from dataclasses import dataclass

import cvxpy as cp
import numpy as np

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, FitConfig
from srfa.estimators.protocol import refuse_prior
from srfa.estimators.quantities import StepQuantities
from srfa.features import Block, Columns, FeatureMatrix, feature_matrix
from srfa.fit.convex import stratified_rows
from srfa.fit.learned import NON_NEGATIVE, contribution, learned_block
from srfa.fit.objective import column_scale
from srfa.fit.preparation import prepared
from srfa.fit.ridge import exp_us, fit_log_ridge
from srfa.fit.search import first_setting
from srfa.observations import Observations
from srfa.ragged import FloatArray
from srfa.roofline import flops_per_token, flops_per_us

_LOW_COMPUTE_SHARE = 0.25
"""The first stage learns from this share of the steps, those with the fewest tokens."""
_LARGEST_OVERHEAD = 0.95
"""Overheads are at most this share of a step: the rest is what the second stage takes the logarithm of."""
_NOTHING = 1e-6
"""Share of a step below which the solver's answer is zero."""
_KIBITOKEN = 1024.0


@dataclass(frozen=True, slots=True)
class _Overheads:
    """The first stage: coefficients in the columns' own units, the columns' scale, and how the solve ended."""

    gamma: FloatArray
    scale: FloatArray
    converged: bool
    message: str


class HammEstimator:
    """Overheads ``gamma >= 0`` first, then a ridge of the logarithm of what they leave."""

    name = "hamm"

    def features(self, observations: Observations, catalog: Catalog) -> FeatureMatrix:
        """Compute the blocks ``fixed`` (4), ``compute`` (8) and ``size`` (tokens, which choose the first stage)."""
        step = StepQuantities.of(observations, catalog)
        size = Block.of({("tokens", "tokens"): step.tokens}, step.n_steps)
        return feature_matrix(observations, {"fixed": _fixed(step), "compute": _compute(step), "size": size})

    def fit(self, features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> Coefficients:
        """Fit overheads to the steps with the fewest tokens, then compute to what all steps have left.

        Raises
        ------
        FitError
            Fewer than 20 steps are left.
        """
        refuse_prior(self.name, prior)
        kept = prepared(features, config)
        labels, fixed = kept.step_time_us, kept.blocks["fixed"]
        found = _overheads(kept, config)
        rest = np.maximum(labels - fixed.values @ found.gamma, (1.0 - _LARGEST_OVERHEAD) * labels)
        compute = fit_log_ridge(kept.blocks["compute"], rest, groups=kept.job_index, config=config)
        return Coefficients(
            estimator=self.name,
            blocks={
                "fixed": learned_block(fixed, found.gamma, found.scale, bounds=NON_NEGATIVE),
                "compute": compute.block,
            },
            chosen={"lambda_beta": compute.strength, "lambda_gamma": first_setting(config).lambda_gamma},
            converged=found.converged,
            message=found.message,
            config=config,
        )

    def predict(self, coefficients: Coefficients, features: FeatureMatrix) -> FloatArray:
        """Return the predicted step time in microseconds; the exponential ends at an hour."""
        fixed = contribution(coefficients, features, "fixed")
        return np.asarray(fixed + exp_us(contribution(coefficients, features, "compute")))


def _overheads(features: FeatureMatrix, config: FitConfig) -> _Overheads:
    """Robust non-negative overheads of the smallest steps, below every step's label: a small convex program."""
    labels, columns, setting = features.step_time_us, features.blocks["fixed"].values, first_setting(config)
    tokens = features.blocks["size"].values[:, 0]
    small = np.flatnonzero(tokens <= np.quantile(tokens, _LOW_COMPUTE_SHARE))
    small = small[stratified_rows(labels[small], config.convex_max_rows, config.seed)]
    scale = column_scale(columns, labels)
    gamma = cp.Variable(scale.size)
    residual = (columns[small] / scale / labels[small, None]) @ gamma - 1.0
    loss = cp.sum(0.5 * cp.huber(residual, setting.huber_delta)) / len(small)
    ridge = setting.lambda_gamma * cp.sum_squares(gamma)
    limits = [gamma >= 0, (_shares_of_shortest(columns, labels) / scale) @ gamma <= _LARGEST_OVERHEAD]
    program = cp.Problem(cp.Minimize(loss + ridge), limits)
    try:
        program.solve(solver=cp.CLARABEL)
    except cp.SolverError as error:
        return _Overheads(np.zeros(scale.size), scale, False, f"overheads: {error}; raise lambda_gamma")
    values = np.zeros(scale.size) if gamma.value is None else np.asarray(gamma.value)
    values = np.where(values > _NOTHING, values, 0.0)
    return _Overheads(values / scale, scale, program.status == cp.OPTIMAL, f"overheads: {program.status}")


def _shares_of_shortest(columns: FloatArray, labels: FloatArray) -> FloatArray:
    """Return each distinct row of ``columns`` over the shortest label it goes with.

    Overheads depend on the configuration alone, so there are few, and a bound on these bounds every step.
    """
    distinct, index = np.unique(columns, axis=0, return_inverse=True)
    shortest = np.full(len(distinct), np.inf)
    np.minimum.at(shortest, index.reshape(-1), labels)
    return np.asarray(distinct / shortest[:, None])


def _fixed(step: StepQuantities) -> Block:
    columns: Columns = {
        ("intercept", "us"): 1.0,
        ("tp_communication", "us"): step.tp_us,
        ("ep_communication", "us"): step.ep_us,
        ("cpu_offload", "us"): step.offload_us,
    }
    return Block.of(columns, step.n_steps)


def _compute(step: StepQuantities) -> Block:
    """KV bytes are those of one decoded token, as operations are those of one prefilled token: the mean of the step."""
    token_us = step.fact(lambda place: flops_per_token(place) / flops_per_us(place))
    kv_us = step.work.decode_kv_bytes / np.maximum(step.decode_tokens, 1.0) / step.peak_bytes_per_us
    is_moe = step.fact(lambda place: float(place.model.is_moe))
    columns: Columns = {
        ("intercept", "log(us)"): 1.0,
        ("prefill", "us log(1 + tokens)"): np.log1p(step.prefill_tokens) * token_us,
        ("longest_prefill", "sqrt(1024 tokens)"): np.sqrt(step.longest_prefill / _KIBITOKEN),
        ("decode", "us log(1 + tokens)"): np.log1p(step.decode_tokens) * kv_us,
        ("log_batch", "log(1 + requests)"): np.log1p(step.batch),
        ("kv_usage", "1"): step.kv_usage,
        ("moe_log_tokens", "log(1 + tokens)"): is_moe * np.log1p(step.tokens),
        ("moe", "1"): is_moe,
    }
    return Block.of(columns, step.n_steps)
