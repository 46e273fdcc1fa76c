"""The guard against a fit that exploded: a term whose size no hardware can have fails it, by name.

It has happened elsewhere: a missing layer multiplier made a coefficient 46,800 times too large, and the fit went on.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from srfa.coefficients import Coefficients
from srfa.errors import FitError

LARGEST_RATIO: Final = 100.0
"""A coefficient of a physical time (unit us) beyond a hundred times its datasheet time is no efficiency."""
LARGEST_CYCLES: Final = 10_000_000.0
"""A latency beyond ten million clock cycles, some milliseconds a kernel, is none."""
LARGEST_US: Final = 1_000_000.0
"""A coefficient in microseconds beyond a second a step is no overhead."""
WITHOUT_WEIGHTS: Final = MappingProxyType(
    {"us": 10_000.0, **{f"{block}.intercept": LARGEST_US for block in ("fixed", "compute")}}
)
"""Limits of designs with free coefficients and no term for reading weights.

They put that time into others, so that short KV reads get hundreds of their datasheet time; that is wrong and no
explosion. The feature of their intercepts is one microsecond: the coefficient is no ratio.
"""


def explosive(coefficients: Coefficients, *, largest: Mapping[str, float] | None = None) -> tuple[str, ...]:
    """Return the terms whose value no hardware can have, each as ``block.name=value unit, at most limit``.

    A coefficient of a time (feature in ``us``) is a ratio to its datasheet time; any other is microseconds per unit of
    its feature. Both may be negative where the estimator's form allows it; what counts is the size.

    Parameters
    ----------
    largest
        Limits that go before the general ones, by ``block.name`` or by the unit of the feature.
    """
    limits = {"us": LARGEST_RATIO, **(largest or {})}
    return tuple(
        f"{name}.{term}={value:.4g} (feature in {unit}), at most {limit:g} is physical"
        for name, block in coefficients.blocks.items()
        for term, unit, value in zip(block.names, block.units, block.values, strict=True)
        if not abs(value) <= (limit := limits.get(f"{name}.{term}", limits.get(unit, LARGEST_US)))
    )


def refuse_explosion(coefficients: Coefficients, *, largest: Mapping[str, float] | None = None) -> Coefficients:
    """Return the coefficients where every term has a physical size.

    Raises
    ------
    FitError
        A term has exploded; the text names each with its value and limit.
    """
    if terms := explosive(coefficients, largest=largest):
        raise FitError(
            f"{coefficients.estimator}: the fit exploded: {'; '.join(terms)}; suspect a unit or a missing multiplier of"
            " a feature, or a term the data do not identify ('srfa identify' names those)"
        )
    return coefficients
