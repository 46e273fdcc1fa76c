"""Any estimator as the clock of a simulation: the time of a step from what is in it.

``srfa`` and forms linear in a step's totals are compiled into the simulation. Every other estimator is asked from
outside, a step at a time: its features of the one step, then its prediction; steps of equal features are asked once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import pyarrow as pa

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, FitConfig
from srfa.errors import UsageError
from srfa.estimators import estimator_named
from srfa.estimators.blackbox import configurations_of
from srfa.estimators.floor import FLOOR
from srfa.estimators.protocol import Estimator
from srfa.estimators.srfa import StepClock
from srfa.features import FeatureMatrix
from srfa.observations import Configuration, Observations, Origin
from srfa.operator_kernels import StepTotals
from srfa.operators import FACTS_DTYPE, GEMM_DTYPE
from srfa.ragged import FloatArray, Ragged
from srfa.roofline import place_of
from srfa.routing import TOKENS
from srfa.schema import OBSERVATIONS
from srfa.simulate.server import Server
from srfa.simulate.times import LINEAR, N_WEIGHTS, OPERATORS, OUTSIDE, CompiledClock

_UNFITTED: Final = ("roofline",)
"""Estimators that predict without coefficients."""
_REMEMBERED_AT_MOST: Final = 1_000_000
_NO_NUMBERS: Final = np.zeros(0)


@dataclass(frozen=True, slots=True)
class AskedStep:
    """A step whose time is asked from outside.

    Parameters
    ----------
    prefill_new, prefill_context, decode_context
        Of each scheduled request: tokens computed in the step, before it, and KV length attended.
    kv_usage_ratio
        Share of the KV blocks in use.
    """

    totals: StepTotals
    prefill_new: FloatArray
    prefill_context: FloatArray
    decode_context: FloatArray
    kv_usage_ratio: float
    server: Server


_ONE_TOKEN: Final = AskedStep(
    StepTotals(decode_tokens=1.0, decodes=1.0, decode_context=1.0),
    _NO_NUMBERS,
    _NO_NUMBERS,
    np.ones(1),
    0.0,
    Server(max_num_batched_tokens=1, max_num_seqs=1, max_model_len=2, block_size=1, num_gpu_blocks=2),
)


@dataclass(frozen=True, slots=True)
class Clock:
    """The time of a step on one configuration. One simulation at a time: it has room for one step.

    Parameters
    ----------
    estimator
        Whose answers these are.
    kernel
        What compiled code needs; of kind ``OUTSIDE`` where it has to ask.
    ask
        Asked then; microseconds.
    kv_token_bytes
        KV bytes of a token on one GPU, for KV blocks that come from host memory.
    """

    estimator: str
    kernel: CompiledClock
    ask: Callable[[AskedStep], float] | None = None
    kv_token_bytes: float = 0.0


def clock_of(
    coefficients: Coefficients | None, configuration: Configuration, catalog: Catalog, *, estimator: str | None = None
) -> Clock:
    """Return the clock of an estimator on one configuration.

    Parameters
    ----------
    coefficients
        Its fit; None for ``roofline``, which has none.
    estimator
        Its name; by default the one whose coefficients these are.

    Raises
    ------
    UsageError
        The name is unknown, other coefficients were given for it, or none where it needs some.
    UnknownConfigurationError
        The estimator learns by configuration, and this one was not among those it was fitted to.
    CatalogError
        The GPU or the model is unknown.
    """
    chosen = clock_estimator(coefficients, estimator)
    place = place_of(configuration, catalog)
    kv_token_bytes = float(place.shard.kv_bytes_per_token)
    if chosen.name == "srfa" and coefficients is not None:
        return Clock(chosen.name, _of_operators(StepClock(coefficients, configuration, catalog)), None, kv_token_bytes)
    outside = _Outside(chosen, coefficients or _nothing_fitted(chosen), configuration, catalog)
    if chosen.name == "blackbox":
        return Clock(chosen.name, _of_tokens(outside), None, kv_token_bytes)
    outside(_ONE_TOKEN)  # what is unknown is refused now
    return Clock(chosen.name, _without_operators(OUTSIDE, np.zeros(N_WEIGHTS)), outside, kv_token_bytes)


def clock_estimator(coefficients: Coefficients | None, estimator: str | None) -> Estimator:
    """Return the estimator that a clock of these coefficients asks.

    Raises
    ------
    UsageError
        As of :func:`clock_of`.
    """
    return estimator_named(_name(coefficients, estimator))


def _name(coefficients: Coefficients | None, estimator: str | None) -> str:
    if coefficients is None:
        if estimator in _UNFITTED:
            return str(estimator)
        raise UsageError(f"{estimator or 'a clock'} needs coefficients; fit some with 'srfa fit', or take roofline")
    if estimator not in {None, coefficients.estimator, *_UNFITTED}:
        raise UsageError(f"coefficients of {coefficients.estimator} cannot serve {estimator}; name its own")
    return estimator or coefficients.estimator


def _nothing_fitted(estimator: Estimator) -> Coefficients:
    return Coefficients(
        estimator=estimator.name, blocks={}, converged=True, message="nothing is fitted", config=FitConfig()
    )


def _of_operators(clock: StepClock) -> CompiledClock:
    return CompiledClock(OPERATORS, np.zeros(N_WEIGHTS), *clock.compiled_arguments)


def _of_tokens(outside: _Outside) -> CompiledClock:
    """Turn ``blackbox`` into weights: its features are the totals, and its prediction is linear above its floor."""
    floor_us = outside.coefficients.constants[FLOOR]
    features = outside.features(_ONE_TOKEN)
    outside.estimator.predict(outside.coefficients, features)  # refuses what it was not fitted to
    names, _ = configurations_of(features)
    constant, prefill, decode = outside.coefficients.blocks[names[0]].values
    totals = StepTotals(prefill_tokens=prefill, decode_tokens=decode, is_measured=0.0)
    return _without_operators(LINEAR, np.array([*totals, constant, floor_us]))


class _Outside:
    """Asks an estimator about single steps of one configuration, each distinct one once."""

    def __init__(
        self, estimator: Estimator, coefficients: Coefficients, configuration: Configuration, catalog: Catalog
    ) -> None:
        self.estimator, self.coefficients = estimator, coefficients
        self._configuration, self._catalog = configuration, catalog
        self._known: dict[tuple[float, ...], float] = {}
        self._columns = _empty_columns(configuration)

    def __call__(self, step: AskedStep) -> float:
        """Return the predicted time, microseconds."""
        longest = (step.prefill_new + step.prefill_context).max(initial=0.0)
        key = (*step.totals, float(longest), float(step.decode_context.max(initial=0.0)), step.kv_usage_ratio)
        if key not in self._known:
            if len(self._known) >= _REMEMBERED_AT_MOST:
                self._known.clear()
            self._known[key] = float(self.estimator.predict(self.coefficients, self.features(step))[0])
        return self._known[key]

    def features(self, step: AskedStep) -> FeatureMatrix:
        """Compute the estimator's features of one step."""
        return self.estimator.features(self._observations(step), self._catalog)

    def _observations(self, step: AskedStep) -> Observations:
        totals, server = step.totals, step.server
        values = {
            "num_prefill_reqs": totals.prefills,
            "num_decode_reqs": totals.decodes,
            "prefill_tokens": totals.prefill_tokens,
            "decode_tokens": totals.decode_tokens,
            "cpu_offload_bytes": totals.offloaded_bytes,
            "kv_usage_ratio": step.kv_usage_ratio,
            "max_model_len": server.max_model_len,
            "max_num_seqs": server.max_num_seqs,
            "max_num_batched_tokens": server.max_num_batched_tokens,
            "block_size": server.block_size,
        }
        columns = self._columns | {
            name: pa.array([int(value) if pa.types.is_integer(_TYPES[name]) else value], _TYPES[name])
            for name, value in values.items()
        }
        return Observations(
            pa.Table.from_arrays(list(columns.values()), schema=OBSERVATIONS),
            (self._configuration,),
            np.zeros(1, dtype=np.int64),
            _one_list(step.prefill_new),
            _one_list(step.prefill_context),
            _one_list(step.decode_context),
            _ORIGIN,
        )


_TYPES: Final = {field.name: field.type for field in OBSERVATIONS}
_ORIGIN: Final = Origin.of(["simulation"], [1])


def _empty_columns(configuration: Configuration) -> dict[str, pa.Array]:
    known = {field.name: getattr(configuration, field.name) for field in fields(Configuration)}
    known |= {"job_id": "simulation", "step_time_us": 1.0}
    return {name: pa.array([known.get(name)], kind) for name, kind in _TYPES.items()}


def _one_list(values: FloatArray) -> Ragged:
    return Ragged(values, np.array([0, len(values)], dtype=np.int64))


def linear_clock(
    constant_us: float, per_total_us: StepTotals | None = None, *, least_us: float = 0.0, estimator: str = "linear"
) -> Clock:
    """Return a clock that is linear in a step's totals.

    Parameters
    ----------
    constant_us
        Of every step.
    per_total_us
        Of each unit of each total; ``is_measured`` counts 1 in every simulated step.
    least_us
        No step is shorter.

    Examples
    --------
    >>> linear_clock(100.0, StepTotals(decode_tokens=2.0, is_measured=0.0)).kernel.per_total[[1, 9]].tolist()
    [2.0, 100.0]
    """
    weights = per_total_us or StepTotals(is_measured=0.0)
    return Clock(estimator, _without_operators(LINEAR, np.array([*weights, constant_us, least_us])))


def _without_operators(kind: int, per_total: FloatArray) -> CompiledClock:
    nothing = np.zeros(0)
    constants = (np.zeros(0, GEMM_DTYPE), np.zeros(1, FACTS_DTYPE)[0], np.zeros((2, len(TOKENS))))
    nothings = (nothing, nothing, nothing)
    return CompiledClock(kind, per_total, constants, np.zeros(0, dtype=np.int64), nothings, nothings)
