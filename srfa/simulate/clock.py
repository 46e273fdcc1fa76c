"""Any estimator as the clock of a simulation: the time of a step from what is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients
from srfa.errors import CoefficientsError, UsageError
from srfa.estimators import estimator_named
from srfa.estimators.srfa import StepClock
from srfa.observations import Configuration
from srfa.operator_kernels import LINEAR as LINEAR_TERMS
from srfa.operator_kernels import StepTotals
from srfa.operators import FACTS_DTYPE, GEMM_DTYPE
from srfa.ragged import FloatArray
from srfa.roofline import place_of
from srfa.routing import TOKENS
from srfa.simulate.times import LINEAR, N_TOTALS, OPERATORS, OUTSIDE, CompiledClock

AskedStep = tuple[StepTotals, FloatArray, FloatArray, FloatArray]


@dataclass(frozen=True, slots=True)
class Clock:
    """The time of a step on one configuration.

    Parameters
    ----------
    estimator
        Whose answers these are.
    kernel
        What compiled code needs; of kind ``OUTSIDE`` where it has to ask.
    ask
        Asked then: totals in, microseconds out.
    kv_token_bytes
        KV bytes of a token on one GPU, for KV blocks that come from host memory.
    """

    estimator: str
    kernel: CompiledClock
    ask: Callable[[StepTotals], float] | None = None
    kv_token_bytes: float = 0.0


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
