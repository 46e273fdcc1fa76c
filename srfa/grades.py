"""How far a step lies from what a fit saw, as a grade, and what a grade means for its prediction; as data.

====  ===========================================================================================
 0    in the domain of the fit
 1    an unseen TP or EP size, or a batch beyond those the fit saw
 2    an unseen model
 3    an unseen GPU, another version of the engine, or an unseen dtype, quantisation or dtype of the KV cache
 4    an unseen GPU and an unseen model, or farther away than anything the fit could be tried on
====  ===========================================================================================

Both travel in ``coefficients.json``; :mod:`srfa.domain` and :mod:`srfa.intervals` make and use them.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from pydantic import Field

from srfa.ragged import FloatArray, IntArray
from srfa.specs import Spec

N_GRADES: Final = 5
NOMINAL_LEVEL: Final = 0.9
"""Share of steps that lie between p05 and p95."""

Method = Literal["group-conformal", "random-effects", "prior"]


class GradeInterval(Spec):
    """The prediction interval of a grade, as offsets of ``log(measured / predicted)``.

    Parameters
    ----------
    p05, p95
        Offsets: a step of this grade takes ``predicted x exp(p05)`` to ``predicted x exp(p95)``.
    n_groups
        Held-out groups it was measured on; 0 where it rests on a prior width.
    source
        The splits it was measured on, or ``prior``.
    """

    grade: int = Field(ge=0, lt=N_GRADES)
    p05: float
    p95: float
    n_groups: int
    source: str
    method: Method


class Intervals(Spec):
    """One interval a grade, none narrower than that of the grade before."""

    level: float = NOMINAL_LEVEL
    grades: tuple[GradeInterval, ...] = Field(min_length=N_GRADES, max_length=N_GRADES)

    def bounds_us(self, predicted_us: FloatArray, grade: IntArray) -> tuple[FloatArray, FloatArray]:
        """Return the lower and upper end of each step's interval in microseconds, shape ``(n_steps,)`` each."""
        low = np.array([one.p05 for one in self.grades])[grade]
        high = np.array([one.p95 for one in self.grades])[grade]
        return predicted_us * np.exp(low), predicted_us * np.exp(high)


class TrainingDomain(Spec):
    """What a fit saw: names and sizes, and the spread of its steps over a few physical descriptors.

    Parameters
    ----------
    dtypes, quantizations, kv_cache_dtypes
        As the engine resolved them; empty in fits that did not record them, and then nothing counts as unseen.
    descriptors, centre, scale
        Names of the descriptors, and what each is shifted and divided by.
    inverse_covariance
        Inverse of the covariance (with a ridge) of the shifted and scaled descriptors, shape ``(n, n)``.
    leverage_limit
        99 % quantile of the leverage over the training steps: the unit of ``leverage_ratio``.
    bridged_ratio
        The largest leverage ratio of a group of training steps as seen from all others: distances up to it were tried.
    """

    gpus: tuple[str, ...]
    models: tuple[str, ...]
    software_versions: tuple[str, ...]
    tensor_parallel_sizes: tuple[int, ...]
    expert_parallel_sizes: tuple[int, ...]
    dtypes: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()
    kv_cache_dtypes: tuple[str, ...] = ()
    descriptors: tuple[str, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    inverse_covariance: tuple[tuple[float, ...], ...]
    leverage_limit: float = Field(gt=0)
    bridged_ratio: float
