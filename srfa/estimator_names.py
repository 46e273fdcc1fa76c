"""Names of the estimators, for option texts and defaults: :mod:`srfa.estimators` itself loads cvxpy and scipy."""

from __future__ import annotations

from typing import Final

DEFAULT_ESTIMATOR: Final = "srfa"
"""What a fit, a validation and a campaign take unless told otherwise."""
ESTIMATOR_NAMES: Final = ("srfa", "srfa-seed", "jams", "hamm", "lacm", "nrrl", "forest", "roofline", "blackbox")
"""All of them, in the order of :data:`srfa.estimators.ESTIMATORS`."""
