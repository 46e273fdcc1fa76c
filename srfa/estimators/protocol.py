"""What every estimator of a step's time can do. Three pure functions: featurise, fit, predict.

Features of a step depend on that step alone, so a validation computes them once and takes rows for each fold.
"""

from __future__ import annotations

from typing import Protocol

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, FitConfig
from srfa.errors import UsageError
from srfa.features import FeatureMatrix
from srfa.observations import Observations
from srfa.ragged import FloatArray


class Estimator(Protocol):
    """An estimator without state: what it learned is in its ``Coefficients``."""

    @property
    def name(self) -> str:
        """The name users type."""
        ...

    def features(self, observations: Observations, catalog: Catalog) -> FeatureMatrix:
        """Compute this estimator's features of every step.

        Raises
        ------
        CatalogError
            A GPU or model of the observations is unknown.
        """
        ...

    def fit(self, features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> Coefficients:
        """Learn coefficients. A fit that did not converge says so in its result; the gate refuses it.

        Parameters
        ----------
        prior
            A fit of this estimator to other data. The ridges then pull towards it instead of towards nothing known, so
            that few steps suffice; what the steps do not tell stays as it is there.

        Raises
        ------
        FitError
            The data cannot carry the fit, with the reason.
        CoefficientsError
            The prior has other coefficients than this estimator.
        """
        ...

    def predict(self, coefficients: Coefficients, features: FeatureMatrix) -> FloatArray:
        """Return the predicted step time in microseconds, shape ``(n_steps,)``.

        Raises
        ------
        UnknownConfigurationError
            The estimator learns by configuration and a step's was not among those it was fitted to.
        """
        ...


def refuse_prior(name: str, prior: Coefficients | None) -> None:
    """Do nothing without a prior.

    Raises
    ------
    UsageError
        There is one: the estimator's design has no few-shot form, and an ignored prior would be a label that lies.
    """
    if prior is not None:
        raise UsageError(f"{name} cannot be refitted from a prior; leave --prior out, or use srfa or srfa-seed")
