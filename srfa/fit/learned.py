"""From a fit's numbers to named coefficients, and from named coefficients back to a prediction's terms."""

from __future__ import annotations

import numpy as np

from srfa.coefficients import CoefficientBlock, Coefficients
from srfa.errors import CoefficientsError
from srfa.features import Block, FeatureMatrix
from srfa.ragged import FloatArray

Bounds = tuple[float | None, float | None]
FREE: Bounds = (None, None)
NON_NEGATIVE: Bounds = (0.0, None)


def learned_block(
    block: Block, values: FloatArray, scale: FloatArray, *, bounds: Bounds | list[Bounds] = FREE
) -> CoefficientBlock:
    """Name the coefficients of a block.

    Parameters
    ----------
    values
        One a column, in the column's own unit, shape ``(n_columns,)``.
    scale
        Divisors the columns had while fitting.
    bounds
        ``(lower, upper)`` of all coefficients, or one pair each.
    """
    pairs = bounds if isinstance(bounds, list) else [bounds] * len(values)
    return CoefficientBlock(
        names=block.names,
        units=block.units,
        values=tuple(float(value) for value in values),
        lower=tuple(lower for lower, _ in pairs),
        upper=tuple(upper for _, upper in pairs),
        at_bound=tuple(_at_bound(float(value), pair) for value, pair in zip(values, pairs, strict=True)),
        scales=tuple(float(entry) for entry in scale),
    )


def contribution(coefficients: Coefficients, features: FeatureMatrix, name: str) -> FloatArray:
    """Return the dot product of a block's features and its coefficients, shape ``(n_steps,)``.

    Raises
    ------
    CoefficientsError
        The coefficients were fitted to other features than these.
    """
    block = features.blocks[name]
    return np.asarray(block.values @ learned_values(coefficients, name, block.names))


def learned_values(coefficients: Coefficients, name: str, features: tuple[str, ...]) -> FloatArray:
    """Return the values of a block that was fitted to exactly these features.

    Raises
    ------
    CoefficientsError
        The coefficients were fitted to other features than these.
    """
    learned = coefficients.blocks.get(name)
    if learned is None or learned.names != features:
        raise CoefficientsError(
            f"coefficients of {coefficients.estimator}: block {name!r} has {learned.names if learned else 'no'}"
            f" features, expected {features}; they were fitted by another version, fit again"
        )
    return np.array(learned.values)


def _at_bound(value: float, bounds: Bounds) -> bool:
    return any(bound is not None and bool(np.isclose(value, bound, rtol=1e-9)) for bound in bounds)
