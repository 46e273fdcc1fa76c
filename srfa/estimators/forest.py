"""``forest``: a random forest on what anybody can count: tokens, requests, contexts, sizes of the model, GPU figures.

No operation or byte is counted; what a step costs is left to the trees. Source: the method of Vidur (Agrawal et al.,
MLSys 2024), which predicts runtimes by random forests. Trees do not extrapolate: beyond its data the forest repeats
the nearest measured times. All nodes are in ``Coefficients.arrays``; predicting needs neither scikit-learn nor the
data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, FitConfig
from srfa.errors import CoefficientsError
from srfa.estimators.protocol import refuse_prior
from srfa.estimators.quantities import StepQuantities
from srfa.features import Block, Columns, FeatureMatrix, feature_matrix
from srfa.fit.learned import learned_block
from srfa.fit.preparation import prepared
from srfa.observations import Observations
from srfa.ragged import FloatArray, IntArray
from srfa.roofline import matrix_tflops

TREES = 100
_LEAST_SAMPLES_IN_LEAF = 5
_MOST_SAMPLES_IN_TREE = 10_000
"""Steps a tree is grown on; more would only lengthen the file."""
_ROWS_AT_ONCE = 4096
"""Steps that walk through all trees together: bounds the memory of a prediction."""


class ForestEstimator:
    """The mean of a hundred trees' logarithms."""

    name = "forest"

    def features(self, observations: Observations, catalog: Catalog) -> FeatureMatrix:
        """Compute the block ``step``: the batch, the model's sizes, the GPU's figures, how the model is cut."""
        step = StepQuantities.of(observations, catalog)
        columns = {**_batch(step), **_model(step), **_gpu(step), **_parallelism(step)}
        return feature_matrix(observations, {"step": Block.of(columns, step.n_steps)})

    def fit(self, features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> Coefficients:
        """Grow the trees on log step times, deterministic by the seed of ``config``.

        Raises
        ------
        FitError
            Fewer than 20 steps are left.
        """
        refuse_prior(self.name, prior)
        kept = prepared(features, config)
        block = kept.blocks["step"]
        forest = RandomForestRegressor(
            n_estimators=TREES,
            min_samples_leaf=_LEAST_SAMPLES_IN_LEAF,
            max_samples=min(kept.n_steps, _MOST_SAMPLES_IN_TREE),
            random_state=config.seed,
        ).fit(block.values, np.log(kept.step_time_us))
        return Coefficients(
            estimator=self.name,
            blocks={
                "importance": learned_block(
                    block, forest.feature_importances_, np.ones(len(block.names)), bounds=(0.0, 1.0)
                )
            },
            arrays=Trees.of(forest.estimators_).arrays(),
            chosen={"trees": float(TREES)},
            converged=True,
            message=f"{TREES} trees grown",
            config=config,
        )

    def predict(self, coefficients: Coefficients, features: FeatureMatrix) -> FloatArray:
        """Return the predicted step time in microseconds: the exponential of the trees' mean, shape ``(n_steps,)``.

        Raises
        ------
        CoefficientsError
            The trees were grown on other features than these, or are missing.
        """
        block, learned = features.blocks["step"], coefficients.blocks.get("importance")
        if learned is None or learned.names != block.names:
            raise CoefficientsError(
                f"coefficients of forest: grown on {learned.names if learned else 'no features'}, expected"
                f" {block.names}; they were fitted by another version, fit again"
            )
        return np.exp(Trees.from_arrays(coefficients.arrays).mean(block.values))


@dataclass(frozen=True, slots=True)
class Trees:
    """The nodes of all trees, one tree after another, each in depth-first order: a left child follows its parent.

    Parameters
    ----------
    root
        Where each tree begins, shape ``(n_trees,)``.
    feature
        The column a node compares, shape ``(n_nodes,)``; 0 in a leaf.
    threshold
        What it compares with (``<=`` goes left); in a leaf, the leaf's value.
    right
        The right child; 0 in a leaf.
    """

    root: IntArray
    feature: IntArray
    threshold: FloatArray
    right: IntArray

    @classmethod
    def of(cls, grown: list[DecisionTreeRegressor]) -> Trees:
        """Copy the nodes of scikit-learn's trees, which it grows depth first."""
        sizes = [one.tree_.node_count for one in grown]
        root = np.concatenate([[0], np.cumsum(sizes[:-1])]).astype(np.int64)
        leaf = np.concatenate([one.tree_.children_right < 0 for one in grown])
        right = np.concatenate([one.tree_.children_right + begin for one, begin in zip(grown, root, strict=True)])
        value = np.concatenate([one.tree_.value.reshape(-1) for one in grown])
        threshold = np.concatenate([one.tree_.threshold for one in grown])
        feature = np.concatenate([one.tree_.feature for one in grown])
        return cls(root, np.where(leaf, 0, feature), np.where(leaf, value, threshold), np.where(leaf, 0, right))

    @classmethod
    def from_arrays(cls, arrays: dict[str, tuple[float, ...]]) -> Trees:
        """Read what :meth:`arrays` wrote."""
        missing = [name for name in ("root", "feature", "threshold", "right") if name not in arrays]
        if missing:
            raise CoefficientsError(f"coefficients of forest: arrays {', '.join(missing)} missing; fit again")
        root, feature, right = (np.array(arrays[name], dtype=np.int64) for name in ("root", "feature", "right"))
        return cls(root, feature, np.array(arrays["threshold"]), right)

    def arrays(self) -> dict[str, tuple[float, ...]]:
        """Return the nodes as the flat arrays of a coefficients file."""
        return {name: tuple(getattr(self, name).tolist()) for name in ("root", "feature", "threshold", "right")}

    def mean(self, values: FloatArray) -> FloatArray:
        """Return the mean of the trees' values for each row of ``values``, shape ``(n_rows,)``.

        All rows of a block walk through all trees at once, one level at a time. Features are compared in single
        precision, as scikit-learn does.
        """
        single = values.astype(np.float32)
        blocks = [self._mean(single[begin : begin + _ROWS_AT_ONCE]) for begin in range(0, len(single), _ROWS_AT_ONCE)]
        return np.concatenate(blocks) if blocks else np.empty(0)

    def _mean(self, values: NDArray[np.float32]) -> FloatArray:
        node = np.tile(self.root, len(values))
        row = np.repeat(np.arange(len(values)), len(self.root))
        walking = np.flatnonzero(self.right[node])
        while walking.size:
            at = node[walking]
            goes_left = values[row[walking], self.feature[at]] <= self.threshold[at]
            node[walking] = np.where(goes_left, at + 1, self.right[at])
            walking = walking[self.right[node[walking]] > 0]
        return np.asarray(self.threshold[node].reshape(len(values), -1).mean(axis=1))


def _batch(step: StepQuantities) -> Columns:
    return {
        ("prefill_tokens", "tokens"): step.prefill_tokens,
        ("decode_tokens", "tokens"): step.decode_tokens,
        ("prefills", "requests"): step.prefills,
        ("decodes", "requests"): step.decodes,
        ("prefill_context", "tokens"): step.observations.prefill_context_tokens.sum(),
        ("decode_context", "tokens"): step.decode_context,
        ("longest_sequence", "tokens"): step.longest_sequence,
    }


def _model(step: StepQuantities) -> Columns:
    return {
        ("layers", "1"): step.fact(lambda place: place.model.num_hidden_layers),
        ("hidden_size", "1"): step.fact(lambda place: place.model.hidden_size),
        ("intermediate_size", "1"): step.fact(lambda place: place.model.intermediate_size),
        ("attention_heads", "1"): step.fact(lambda place: place.model.num_attention_heads),
        ("kv_heads", "1"): step.fact(lambda place: place.model.num_key_value_heads),
        ("vocabulary", "1"): step.fact(lambda place: place.model.vocab_size),
        ("experts", "1"): step.fact(lambda place: place.model.num_experts),
        ("experts_per_token", "1"): step.fact(lambda place: place.model.num_experts_per_tok),
        ("expert_intermediate_size", "1"): step.fact(lambda place: place.model.moe_intermediate_size),
        ("parameter_width", "bytes"): step.fact(lambda place: place.shard.stored.linear),
    }


def _gpu(step: StepQuantities) -> Columns:
    return {
        ("matrix_rate", "TFLOP/s"): step.fact(matrix_tflops),
        ("bandwidth", "TB/s"): step.fact(lambda place: place.gpu.datasheet.memory_bandwidth_tbps),
        ("link", "GB/s"): step.fact(lambda place: place.gpu.datasheet.link_gbps_per_direction),
        ("multiprocessors", "1"): step.fact(lambda place: place.gpu.datasheet.sm_count),
        ("clock", "MHz"): step.fact(lambda place: place.gpu.datasheet.boost_clock_mhz),
    }


def _parallelism(step: StepQuantities) -> Columns:
    return {
        ("tensor_parallel_size", "1"): step.fact(lambda place: place.configuration.tensor_parallel_size),
        ("expert_parallel_size", "1"): step.fact(lambda place: place.configuration.expert_parallel_size),
        ("data_parallel_size", "1"): step.fact(lambda place: place.configuration.data_parallel_size),
    }
