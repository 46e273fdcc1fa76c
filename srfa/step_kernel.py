"""Compiled: one step from its totals to its time, the same functions that serve whole tables."""

from __future__ import annotations

from typing import Any

from srfa.compiled import compiled
from srfa.operator_kernels import StepTotals, one_step
from srfa.ragged import FloatArray, IntArray
from srfa.smooth_roofline import sum_us


@compiled
def step_us(
    totals: StepTotals,
    constants: Any,
    kind: IntArray,
    factors: tuple[FloatArray, FloatArray, FloatArray],
    scratch: tuple[FloatArray, FloatArray, FloatArray],
) -> float:
    """Return the step's time, microseconds; ``scratch`` has room for its operators and linear terms."""
    memory, compute, linear = scratch
    memory[:] = 0.0
    compute[:] = 0.0
    linear[:] = 0.0
    one_step(totals, constants, memory, compute, linear)
    return sum_us(memory, compute, linear, kind, factors)
