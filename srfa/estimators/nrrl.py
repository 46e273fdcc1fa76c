"""``nrrl``: Normalized Roofline Residual Learning (Idea 1 of the research document), a ridge on twelve features.

``step = beta . F``, features being times at datasheet peaks and ratios. Repaired as its reviewers ask: the circular
communication share is taken of the roofline's compute time instead of the step time it predicts, expert activation
and imbalance are those expected under balanced routing instead of observed, and predictions have a floor. The squares
are of relative errors: unweighted ones would be spent on the few longest prefills.
"""

from __future__ import annotations

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, FitConfig
from srfa.estimators.floor import FLOOR, floored, floored_share
from srfa.estimators.protocol import refuse_prior
from srfa.estimators.quantities import StepQuantities
from srfa.features import Block, Columns, FeatureMatrix, feature_matrix
from srfa.fit.learned import contribution
from srfa.fit.preparation import prepared
from srfa.fit.ridge import fit_relative_ridge
from srfa.observations import Observations
from srfa.ragged import FloatArray


class NrrlEstimator:
    """A ridge with its strength chosen by held-out jobs; free coefficients, a floor under the predictions."""

    name = "nrrl"

    def features(self, observations: Observations, catalog: Catalog) -> FeatureMatrix:
        """Compute the block ``step`` of twelve features."""
        step = StepQuantities.of(observations, catalog)
        return feature_matrix(observations, {"step": _step(step)})

    def fit(self, features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> Coefficients:
        """Fit the ridge to relative errors, its strength by cross-validation grouped by job.

        Raises
        ------
        FitError
            Fewer than 20 steps are left.
        """
        refuse_prior(self.name, prior)
        kept = prepared(features, config)
        labels = kept.step_time_us
        found = fit_relative_ridge(kept.blocks["step"], labels, groups=kept.job_index, config=config)
        fitted = Coefficients(
            estimator=self.name,
            blocks={"step": found.block},
            constants={FLOOR: float(labels.min())},
            chosen={"lambda_beta": found.strength},
            converged=True,
            message="solved in closed form",
            config=config,
        )
        share = floored_share(contribution(fitted, kept, "step"), labels)
        return fitted.model_copy(update={"chosen": {**fitted.chosen, "floored_share": share}})

    def predict(self, coefficients: Coefficients, features: FeatureMatrix) -> FloatArray:
        """Return the predicted step time in microseconds, at least the shortest step of the fit."""
        return floored(contribution(coefficients, features, "step"), coefficients)


def _step(step: StepQuantities) -> Block:
    work, flops, bandwidth = step.work, step.peak_flops_per_us, step.peak_bytes_per_us
    written = step.tokens * step.fact(lambda place: place.shard.kv_bytes_per_token)
    columns: Columns = {
        ("intercept", "us"): 1.0,
        ("prefill_matrix_time", "us"): (work.prefill_flops - work.prefill_attention_flops) / flops,
        ("decode_matrix_time", "us"): (work.decode_flops - work.decode_attention_flops) / flops,
        ("attention_time", "us"): (work.prefill_attention_flops + work.decode_attention_flops) / flops,
        ("kv_read_time", "us"): (work.decode_kv_bytes + work.prefill_kv_bytes) / bandwidth,
        ("kv_write_time", "us"): written / bandwidth,
        ("weight_read_time", "us"): work.weight_bytes / bandwidth,
        ("prefill_share", "1"): step.prefills / step.batch,
        ("longest_sequence_share", "1"): step.longest_sequence / step.max_model_len,
        ("activated_experts_share", "1"): step.activated_share,
        ("expert_imbalance", "1"): step.expert_spread,
        ("communication_over_compute", "1"): 2.0 * step.tp_us / (step.prefill_us + step.decode_us),
    }
    return Block.of(columns, step.n_steps)
