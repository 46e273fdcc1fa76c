"""``lacm``: Log-Space Additive Component Model (Idea 2 of the research document).

``step = exp(beta . F)``: positive whatever is extrapolated, and every component multiplies, communication too; that
is the limit its reviewers see, and what ``hamm`` repairs. Coefficients are free: the design's non-negative ones
forbid that a larger batch uses the GPU better, and the exponential is positive without them. The imbalance of the
experts is the one expected under balanced routing, its weight is learned.
"""

from __future__ import annotations

import numpy as np

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, FitConfig
from srfa.estimators.protocol import refuse_prior
from srfa.estimators.quantities import StepQuantities, router_flops_per_token
from srfa.features import Block, Columns, FeatureMatrix, feature_matrix
from srfa.fit.learned import contribution
from srfa.fit.preparation import prepared
from srfa.fit.ridge import exp_us, fit_log_ridge
from srfa.observations import Observations
from srfa.ragged import FloatArray, IntArray
from srfa.roofline import flops_per_token, flops_per_us


class LacmEstimator:
    """A ridge of log step times, its strength chosen by held-out pairs of model and GPU."""

    name = "lacm"

    def features(self, observations: Observations, catalog: Catalog) -> FeatureMatrix:
        """Compute the block ``log_step``: six features, two of MoE, one each of EP and offloading to the host."""
        step = StepQuantities.of(observations, catalog)
        return feature_matrix(observations, {"log_step": _log_step(step)})

    def fit(self, features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> Coefficients:
        """Fit the logarithms; the labels are positive, so none needs an epsilon.

        Raises
        ------
        FitError
            Fewer than 20 steps are left.
        """
        refuse_prior(self.name, prior)
        kept = prepared(features, config)
        found = fit_log_ridge(kept.blocks["log_step"], kept.step_time_us, groups=model_and_gpu(kept), config=config)
        return Coefficients(
            estimator=self.name,
            blocks={"log_step": found.block},
            chosen={"lambda_beta": found.strength},
            converged=True,
            message="solved in closed form",
            config=config,
        )

    def predict(self, coefficients: Coefficients, features: FeatureMatrix) -> FloatArray:
        """Return the predicted step time in microseconds; extrapolation ends at an hour."""
        return exp_us(contribution(coefficients, features, "log_step"))


def model_and_gpu(features: FeatureMatrix) -> IntArray:
    """Return a number for each step's pair of model and GPU: the groups this design holds out, shape ``(n_steps,)``."""
    pairs = [(one.model, one.gpu) for one in features.configurations]
    codes = {pair: code for code, pair in enumerate(sorted(set(pairs)))}
    return np.array([codes[pair] for pair in pairs], dtype=np.int64)[features.configuration_index]


def _log_step(step: StepQuantities) -> Block:
    token_us = step.fact(lambda place: flops_per_token(place) / flops_per_us(place))
    router_us = step.fact(lambda place: router_flops_per_token(place) / flops_per_us(place))
    block_us = step.block_tokens * step.fact(lambda place: place.shard.kv_bytes_per_token) / step.peak_bytes_per_us
    is_moe = step.fact(lambda place: float(place.model.is_moe))
    columns: Columns = {
        ("intercept", "log(us)"): 1.0,
        ("prefill", "us log(1 + tokens)"): np.log1p(step.prefill_tokens) * token_us,
        ("decode", "us log(1 + tokens)"): np.log1p(step.decode_tokens) * token_us,
        ("kv_blocks", "us log(1 + blocks)"): np.log1p(step.kv_tokens / step.block_tokens) * block_us,
        ("log_batch", "log(1 + requests)"): np.log1p(step.batch),
        ("tp_communication", "us"): step.tp_us,
        ("router", "us log(1 + tokens)"): np.log1p(step.tokens) * router_us,
        ("expert_imbalance", "1"): is_moe * (1.0 + step.expert_spread),
        ("ep_communication", "us"): step.ep_us,
        ("cpu_offload", "us"): step.offload_us,
    }
    return Block.of(columns, step.n_steps)
