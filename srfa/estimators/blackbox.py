"""``blackbox``: three coefficients a configuration, nothing shared between configurations.

``step = b0 + b1 x prefill tokens + b2 x decode tokens``; prefill tokens are those that missed the prefix cache.
Source: the blackbox mode of BLIS, whose search through the simulator is replaced by a fit to the measured steps:
robust, of relative errors, non-negative. It interpolates what was measured and refuses everything else.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import compress

import numpy as np

from srfa.catalog import Catalog
from srfa.coefficients import CoefficientBlock, Coefficients, FitConfig
from srfa.errors import FitError, UnknownConfigurationError
from srfa.estimators.floor import FLOOR, floored
from srfa.estimators.protocol import refuse_prior
from srfa.features import Block, Columns, FeatureMatrix, feature_matrix
from srfa.fit.learned import NON_NEGATIVE, learned_block
from srfa.fit.linear import LinearProblem, fit_linear
from srfa.fit.preparation import prepared
from srfa.fit.search import first_setting
from srfa.fit.softplus import Solution
from srfa.observations import Configuration, Observations
from srfa.ragged import FloatArray, IntArray

_LEAST_STEPS = 10
"""Fewer steps of a configuration carry no three coefficients that mean anything."""
_NAMED_AT_MOST = 3
"""A refusal names this many configurations and counts the rest."""


class BlackboxEstimator:
    """One block of coefficients a (model, GPU, parallelism, dtype, quantisation)."""

    name = "blackbox"

    def features(self, observations: Observations, catalog: Catalog) -> FeatureMatrix:
        """Compute the block ``step``: a constant and the tokens of each phase; configurations by catalogue names.

        Raises
        ------
        CatalogError
            A GPU or model of the observations is unknown.
        """
        columns: Columns = {
            ("intercept", "us"): 1.0,
            ("prefill_tokens", "tokens"): observations.numbers("prefill_tokens"),
            ("decode_tokens", "tokens"): observations.numbers("decode_tokens"),
        }
        matrix = feature_matrix(observations, {"step": Block.of(columns, observations.n_steps)})
        return replace(matrix, configurations=tuple(_named(one, catalog) for one in matrix.configurations))

    def fit(self, features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> Coefficients:
        """Fit each configuration by itself; those with fewer than 10 steps are left out and named.

        Raises
        ------
        FitError
            Fewer than 20 steps are left, or no configuration has 10.
        """
        refuse_prior(self.name, prior)
        kept = prepared(features, config)
        names, index = configurations_of(kept)
        enough = np.bincount(index, minlength=len(names)) >= _LEAST_STEPS
        if not enough.any():
            raise FitError(f"no configuration has {_LEAST_STEPS} steps ({_listed(names)}); measure longer")
        found = {
            names[code]: _fit_one(kept.take(np.flatnonzero(index == code)), config) for code in np.flatnonzero(enough)
        }
        left_out = list(compress(names, ~enough))
        solutions = [solution for _, solution in found.values()]
        return Coefficients(
            estimator=self.name,
            blocks={name: block for name, (block, _) in found.items()},
            constants={FLOOR: float(kept.step_time_us.min())},
            chosen={"huber_delta": first_setting(config).huber_delta, "n_configurations": float(len(found))},
            converged=all(solution.converged for solution in solutions),
            message=_message(solutions, left_out),
            config=config,
        )

    def predict(self, coefficients: Coefficients, features: FeatureMatrix) -> FloatArray:
        """Return the predicted step time in microseconds, at least the shortest step of the fit.

        Raises
        ------
        UnknownConfigurationError
            A step's configuration was not fitted; the text names it and those that were.
        """
        names, index = configurations_of(features)
        unknown = [name for name in names if name not in coefficients.blocks]
        if unknown:
            raise UnknownConfigurationError(
                f"blackbox has no coefficients for {_listed(unknown)}: it learns by configuration and does not"
                " transfer; measure it, or take an estimator that transfers. Fitted:"
                f" {_listed(list(coefficients.blocks))}"
            )
        values = np.array([coefficients.blocks[name].values for name in names])
        return floored(np.einsum("ij,ij->i", features.blocks["step"].values, values[index]), coefficients)


def configuration_name(one: Configuration) -> str:
    """Return the name of what a configuration's step time depends on.

    >>> configuration_name(Configuration("h100", "m", 4, 1, 1, "bfloat16", None, None, None, None, None, None))
    'm on h100, tp4 ep1 dp1, bfloat16'
    """
    parallel = f"tp{one.tensor_parallel_size} ep{one.expert_parallel_size} dp{one.data_parallel_size}"
    numbers = f"{one.dtype}, {one.quantization}" if one.quantization else one.dtype
    return f"{one.model} on {one.gpu}, {parallel}, {numbers}"


def configurations_of(features: FeatureMatrix) -> tuple[list[str], IntArray]:
    """Return the names of the configurations that have steps, sorted, and each step's index into them."""
    present, of_present = np.unique(features.configuration_index, return_inverse=True)
    of_each = [configuration_name(features.configurations[code]) for code in present]
    names = sorted(set(of_each))
    codes = np.array([names.index(name) for name in of_each], dtype=np.int64)
    return names, codes[of_present.reshape(-1)]


def _named(one: Configuration, catalog: Catalog) -> Configuration:
    return replace(one, model=catalog.resolve_model(one.model).name, gpu=catalog.resolve_gpu(one.gpu).name)


def _fit_one(features: FeatureMatrix, config: FitConfig) -> tuple[CoefficientBlock, Solution]:
    block, setting = features.blocks["step"], first_setting(config)
    problem = LinearProblem.of(block.values, features.step_time_us, lower=np.zeros(len(block.names)))
    solution = fit_linear(
        problem,
        np.zeros(len(block.names)),
        setting.huber_delta,
        start=np.zeros(len(block.names)),
        max_iterations=config.max_iterations,
    )
    return learned_block(block, solution.theta / problem.scale, problem.scale, bounds=NON_NEGATIVE), solution


def _message(solutions: list[Solution], left_out: list[str]) -> str:
    failed = [solution.message for solution in solutions if not solution.converged]
    message = failed[0] if failed else f"{len(solutions)} configuration(s) fitted"
    if left_out:
        message += f"; left out with fewer than {_LEAST_STEPS} steps: {_listed(left_out)}"
    return message


def _listed(names: list[str]) -> str:
    shown = "; ".join(names[:_NAMED_AT_MOST])
    return shown if len(names) <= _NAMED_AT_MOST else f"{shown}; and {len(names) - _NAMED_AT_MOST} more"
