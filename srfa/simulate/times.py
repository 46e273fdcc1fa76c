"""Compiled: the time of a step from its totals, by a clock that needs nothing from outside."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from srfa.compiled import compiled_part
from srfa.operator_kernels import StepTotals
from srfa.ragged import FloatArray, IntArray
from srfa.step_kernel import step_us

OUTSIDE, LINEAR, OPERATORS = range(3)
"""Kinds of clocks: asked from outside; linear in the totals; the formula of ``srfa``."""
N_TOTALS: Final = len(StepTotals._fields)
N_WEIGHTS: Final = N_TOTALS + 2
"""Weights of a linear clock: of each total, the constant, the least time."""


class CompiledClock(NamedTuple):
    """What compiled code needs to tell a step's time; what another kind of clock needs is empty.

    Parameters
    ----------
    kind
        One of :data:`OUTSIDE`, :data:`LINEAR`, :data:`OPERATORS`.
    per_total
        Microseconds of each field of :class:`srfa.operator_kernels.StepTotals`, then the constant, then the least time.
    constants, operator_kind, factors, scratch
        The arguments of :func:`srfa.step_kernel.step_us`.
    """

    kind: int
    per_total: FloatArray
    constants: Any
    operator_kind: IntArray
    factors: tuple[FloatArray, FloatArray, FloatArray]
    scratch: tuple[FloatArray, FloatArray, FloatArray]


@compiled_part
def is_compiled(clock: Any) -> bool:
    """Whether :func:`time_of` has an answer."""
    return bool(clock.kind != OUTSIDE)


@compiled_part
def time_of(totals: Any, clock: Any) -> float:
    """Return a step's time, microseconds."""
    if clock.kind == OPERATORS:
        return step_us(totals, clock.constants, clock.operator_kind, clock.factors, clock.scratch)
    per = clock.per_total
    time_us = per[N_TOTALS]
    time_us += totals.prefill_tokens * per[0] + totals.decode_tokens * per[1]
    time_us += totals.prefills * per[2] + totals.decodes * per[3]
    time_us += totals.prefill_pairs * per[4] + totals.prefill_context * per[5] + totals.decode_context * per[6]
    time_us += totals.offloaded_bytes * per[7] + totals.is_measured * per[8]
    return float(max(time_us, per[N_TOTALS + 1]))
