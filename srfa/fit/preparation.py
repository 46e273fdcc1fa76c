"""What is done to labels before any fit: warm-up dropped, outliers cut down, too little data refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from srfa.coefficients import Coefficients, FitConfig
from srfa.errors import FitError
from srfa.features import FeatureMatrix
from srfa.ragged import FloatArray

_MIN_STEPS = 20
_JOBS_NAMED = 3
_MIN_STEPS_WITH_PRIOR = 10
"""Fewer, as a prior holds what the steps do not tell; refits to 10 steps have been seen to harm nothing."""


def prepared(features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> FeatureMatrix:
    """Drop warm-up steps and cut each job's labels down to their quantile (winsorising).

    Raises
    ------
    FitError
        Fewer than 20 steps are left, or 10 with a prior.
    """
    kept = warmed_up(features, config, prior=prior)
    return replace(kept, step_time_us=_winsorised(kept, config.winsorise_quantile))


def warmed_up(features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> FeatureMatrix:
    """Drop warm-up steps alone: for a loss that outliers do not move.

    Raises
    ------
    FitError
        Fewer than 20 steps are left, or 10 with a prior.
    """
    warm = features.step_index >= config.warmup_steps
    kept = features if warm.all() else features.take(np.flatnonzero(warm))
    least = _MIN_STEPS_WITH_PRIOR if prior else _MIN_STEPS
    if kept.n_steps < least:
        jobs = ", ".join(features.jobs[:_JOBS_NAMED]) + (", ..." if len(features.jobs) > _JOBS_NAMED else "")
        raise FitError(
            f"job {jobs}: {kept.n_steps} steps are left to fit ({features.n_steps} before dropping"
            f" {config.warmup_steps} warm-up steps a job); at least {least} are needed; measure longer, or add"
            " observation files"
        )
    return kept


def _winsorised(features: FeatureMatrix, quantile: float) -> FloatArray:
    labels = features.step_time_us.copy()
    if quantile >= 1.0:
        return labels
    for job in np.unique(features.job_index):
        rows = features.job_index == job
        labels[rows] = np.minimum(labels[rows], np.quantile(labels[rows], quantile))
    return labels
