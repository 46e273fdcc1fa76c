"""Estimators of a step's time, all of one protocol."""

from __future__ import annotations

from srfa.errors import UsageError
from srfa.estimators.blackbox import BlackboxEstimator
from srfa.estimators.forest import ForestEstimator
from srfa.estimators.hamm import HammEstimator
from srfa.estimators.jams import JamsEstimator
from srfa.estimators.lacm import LacmEstimator
from srfa.estimators.nrrl import NrrlEstimator
from srfa.estimators.protocol import Estimator
from srfa.estimators.roofline import RooflineEstimator
from srfa.estimators.srfa import SrfaEstimator
from srfa.estimators.srfa_seed import SrfaSeedEstimator
from srfa.wording import unknown

__all__ = ["ESTIMATORS", "Estimator", "estimator_named"]

ESTIMATORS: dict[str, Estimator] = {
    "srfa": SrfaEstimator(),
    "srfa-seed": SrfaSeedEstimator(),
    "jams": JamsEstimator(),
    "hamm": HammEstimator(),
    "lacm": LacmEstimator(),
    "nrrl": NrrlEstimator(),
    "forest": ForestEstimator(),
    "roofline": RooflineEstimator(),
    "blackbox": BlackboxEstimator(),
}


def estimator_named(name: str) -> Estimator:
    """Return the estimator users call ``name``.

    Raises
    ------
    UsageError
        There is none of that name.
    """
    if name in ESTIMATORS:
        return ESTIMATORS[name]
    raise UsageError(unknown("estimator", name, ESTIMATORS))
