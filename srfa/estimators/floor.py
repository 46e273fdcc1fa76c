"""The least a linear form may predict: the shortest step it has seen.

A sum with a negative coefficient can leave the positive half-line far from its data. The designs that are such sums
have a floor (``minStepTime``); a fit says how much of its own data lies on it.
"""

from __future__ import annotations

import numpy as np

from srfa.coefficients import Coefficients
from srfa.ragged import FloatArray

FLOOR = "min_step_time_us"
"""Name of the constant: the shortest label of the fit, microseconds."""


def floored(predicted_us: FloatArray, coefficients: Coefficients) -> FloatArray:
    """Return the predictions, none below the shortest step the fit has seen, shape ``(n_steps,)``."""
    return np.maximum(predicted_us, coefficients.constants[FLOOR])


def floored_share(predicted_us: FloatArray, step_time_us: FloatArray) -> float:
    """Return the share of a fit's own steps that its formula puts below the floor."""
    return float(np.mean(predicted_us < step_time_us.min()))
