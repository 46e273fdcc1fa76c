"""``roofline``: nothing fitted; the slower of compute and memory at datasheet rates and stock efficiencies.

The yardstick: an estimator that does not beat it on held-out hardware has learned nothing that transfers.
"""

from __future__ import annotations

import numpy as np

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, FitConfig
from srfa.estimators.quantities import StepQuantities, base_overhead_us
from srfa.features import Block, Columns, FeatureMatrix, feature_matrix
from srfa.observations import Observations
from srfa.ragged import FloatArray


class RooflineEstimator:
    """``max(compute, memory) + overheads``, with efficiencies and latencies from ``hardware/`` only."""

    name = "roofline"

    def features(self, observations: Observations, catalog: Catalog) -> FeatureMatrix:
        """Compute the block ``roofline``: compute time, memory time and overheads of every step.

        Overheads: launch and scheduling once a step, two all-reduces a layer, one pair of all-to-alls a MoE layer.
        """
        step = StepQuantities.of(observations, catalog)
        work = step.work
        moved = work.weight_bytes + work.decode_kv_bytes + work.prefill_kv_bytes
        columns: Columns = {
            ("compute_time", "us"): step.prefill_us + step.decode_us,
            ("memory_time", "us"): moved / step.bytes_per_us,
            ("overhead", "us"): step.fact(base_overhead_us) + 2 * step.tp_us + 2 * step.ep_us,
        }
        return feature_matrix(observations, {"roofline": Block.of(columns, observations.n_steps)})

    def fit(self, features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> Coefficients:
        """Learn nothing, from a prior neither: the datasheet is the model."""
        del features, prior
        return Coefficients(estimator=self.name, blocks={}, converged=True, message="nothing is fitted", config=config)

    def predict(self, coefficients: Coefficients, features: FeatureMatrix) -> FloatArray:
        """Return ``max(compute, memory) + overhead`` in microseconds, shape ``(n_steps,)``."""
        del coefficients
        compute, memory, overhead = features.blocks["roofline"].values.T
        return np.asarray(np.maximum(compute, memory) + overhead)
