"""``roofline``: nothing fitted; the slower of compute and memory at datasheet rates and stock efficiencies.

The yardstick: an estimator that does not beat it on held-out hardware has learned nothing that transfers.
"""

from __future__ import annotations

import numpy as np

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, FitConfig
from srfa.features import Block, Columns, FeatureMatrix, feature_matrix
from srfa.observations import Observations
from srfa.ragged import FloatArray
from srfa.roofline import Place, bytes_per_us, flops_per_us, per_step, places, step_work


class RooflineEstimator:
    """``max(compute, memory) + overheads``, with efficiencies and latencies from ``hardware/`` only."""

    name = "roofline"

    def features(self, observations: Observations, catalog: Catalog) -> FeatureMatrix:
        """Compute the block ``roofline``: compute time, memory time and overheads of every step."""
        where = places(observations, catalog)
        work = step_work(observations, where)
        peak = per_step(observations, where, flops_per_us)
        prefill_rate = peak * per_step(observations, where, lambda place: place.gpu.calibration.mfu_prefill)
        decode_rate = peak * per_step(observations, where, lambda place: place.gpu.calibration.mfu_decode)
        moved = work.weight_bytes + work.decode_kv_bytes + work.prefill_kv_bytes
        columns: Columns = {
            ("compute_time", "us"): work.prefill_flops / prefill_rate + work.decode_flops / decode_rate,
            ("memory_time", "us"): moved / per_step(observations, where, _bandwidth),
            ("overhead", "us"): per_step(observations, where, _overhead_us),
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


def _bandwidth(place: Place) -> float:
    return bytes_per_us(place) * place.gpu.calibration.bandwidth_efficiency


def _overhead_us(place: Place) -> float:
    """Launch and scheduling once a step, two all-reduces a layer, one all-to-all pair a MoE layer."""
    facts, configuration = place.gpu.calibration, place.configuration
    overhead = facts.launch_overhead_us + facts.scheduler_overhead_us
    if configuration.tensor_parallel_size > 1:
        overhead += 2 * place.model.num_hidden_layers * facts.allreduce_latency_us
    if configuration.expert_parallel_size > 1:
        overhead += 2 * place.model.moe_layers * facts.alltoall_latency_us
    return overhead
