"""The formula of SRFA, once: overheads plus softplus of compute, from features and parameters to microseconds.

``step = gamma . F_fixed + imbalance * F_moe + s softplus(beta . F_compute / s)``

Source: Idea 5 of the research document, with the recommended changes (imbalance >= 1 fitted jointly, softplus of
parameterised sharpness ``s``). ``s -> 0`` is the hard maximum ``max(0, beta . F_compute)``.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from srfa.ragged import FloatArray


def softplus_us(x_us: FloatArray, scale_us: float) -> FloatArray:
    """Return ``s log(1 + exp(x / s))``: positive, smooth, ``x`` where ``x`` is large against ``s``.

    Parameters
    ----------
    x_us
        Microseconds, any shape.
    scale_us
        Width of the bend in microseconds; 0 gives ``max(0, x)``.

    Examples
    --------
    >>> softplus_us(np.array([-1.0, 0.0, 50.0]), 0.0).tolist()
    [0.0, 0.0, 50.0]
    """
    if scale_us == 0.0:
        return np.maximum(x_us, 0.0)
    return np.asarray(scale_us * np.logaddexp(0.0, x_us / scale_us))


def softplus_slope(x_us: FloatArray, scale_us: float) -> FloatArray:
    """Return the derivative of :func:`softplus_us` with respect to ``x``: the logistic function of ``x / s``."""
    if scale_us == 0.0:
        return (x_us > 0).astype(np.float64)
    return np.asarray(expit(x_us / scale_us))


def step_time_us(fixed_us: FloatArray, compute_us: FloatArray, softplus_scale_us: float) -> FloatArray:
    """Return the predicted step time, shape ``(n_steps,)``: linear overheads plus softplus of the compute part."""
    return fixed_us + softplus_us(compute_us, softplus_scale_us)
