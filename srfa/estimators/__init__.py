"""Estimators of a step's time, all of one protocol."""

from __future__ import annotations

from difflib import get_close_matches

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
    close = get_close_matches(name, ESTIMATORS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"unknown estimator {name!r}{hint} Known: {', '.join(ESTIMATORS)}")
