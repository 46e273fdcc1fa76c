"""Do prediction intervals hold what they promise? Measured on groups that neither the fit nor the interval has seen."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from srfa.catalog import Catalog
from srfa.coefficients import FitConfig
from srfa.estimators.protocol import Estimator
from srfa.folds import Fold, split_folds
from srfa.intervals import Residuals, group_interval, inside, prior_of
from srfa.observations import Observations
from srfa.speed_of_light import possible_steps
from srfa.validate import CrossPrediction, cross_predict
from srfa.validation_report import GroupCoverage


def coverage(
    estimator: Estimator,
    observations: Observations,
    catalog: Catalog,
    *,
    found: CrossPrediction,
    config: FitConfig,
    n_jobs: int = 1,
) -> tuple[GroupCoverage, ...]:
    """Return, for each held-out group, the share of its steps inside the interval that the rest gave.

    For each group: the rest is cross-validated by the same split, its held-out errors give an interval, and the group
    itself, predicted by a fit on the rest, either lies inside or not. Costs a cross-validation a group.

    Parameters
    ----------
    found
        The cross-validation of all groups by the same estimator and settings: how the groups were predicted.

    Returns
    -------
    tuple of GroupCoverage
        Ordered as the folds; groups that were not predicted are left out. A rest of fewer than two groups leaves the
        prior's width (``n_groups`` is 0).
    """
    steps, _ = possible_steps(observations, catalog)
    predicted = {fold.held_out for fold in found.report.folds if fold.errors}
    folds = [fold for fold in split_folds(steps, catalog, found.report.split) if fold.held_out in predicted]

    def inner(fold: Fold) -> CrossPrediction:
        rest, split = steps.take(fold.train), found.report.split
        return cross_predict(estimator, rest, catalog, split=split, config=config, n_jobs=n_jobs)

    return tuple(_covered(found, fold, inner(fold)) for fold in folds)


def _covered(found: CrossPrediction, fold: Fold, rest: CrossPrediction) -> GroupCoverage:
    split = found.report.split
    interval = group_interval(Residuals.of(rest.held_out, split), prior_log_sd=prior_of(split))
    rows = found.held_out.filter(pc.equal(found.held_out["held_out"], fold.held_out))
    residuals = Residuals.of(rows, split)
    return GroupCoverage(
        held_out=fold.held_out,
        n_steps=len(residuals.log_ratio),
        n_groups=interval.n_groups,
        p05=interval.low,
        p95=interval.high,
        share_inside=float(np.average(inside(residuals, interval), weights=residuals.sizes)),
    )
