"""Ridge regression with its strength chosen by groups that are held out whole: scikit-learn's, on scaled columns.

Two uses: of logarithms (predictions are an exponential, so they are positive), and of times with relative weights. A
strength of :class:`~srfa.coefficients.FitConfig` is per mean loss; scikit-learn's ``alpha`` is ``2 n_rows`` times it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.preprocessing import StandardScaler

from srfa.coefficients import CoefficientBlock, FitConfig
from srfa.features import Block
from srfa.fit.learned import learned_block
from srfa.fit.search import grouped_folds
from srfa.ragged import FloatArray, IntArray
from srfa.units import US_PER_S

LOG_US_LIMITS = (0.0, float(np.log(3600 * US_PER_S)))
"""An exponent stays within these: no step and no wait is shorter than a microsecond or longer than an hour."""


@dataclass(frozen=True, slots=True)
class RidgeFit:
    """Named coefficients and the strength that was chosen for them."""

    block: CoefficientBlock
    strength: float


def exp_us(log_us: FloatArray) -> FloatArray:
    """Return microseconds of a logarithm, cut to :data:`LOG_US_LIMITS`: finite and positive whatever was extrapolated.

    >>> exp_us(np.array([0.0, 1e9])).round().tolist()
    [1.0, 3600000000.0]
    """
    return np.asarray(np.exp(np.clip(log_us, *LOG_US_LIMITS)))


def fit_log_ridge(block: Block, target_us: FloatArray, *, groups: IntArray, config: FitConfig) -> RidgeFit:
    """Fit ``log target = block . x``; coefficients are free, a negative one only divides.

    Parameters
    ----------
    target_us
        Positive microseconds, shape ``(n_rows,)``.
    groups
        The group of each row; the strength is the one with the lowest absolute error of the logarithm on held-out ones.
    """
    weights = np.ones(len(target_us))
    return _fit(block, np.log(target_us), weights, groups, config, scoring="neg_mean_absolute_error")


def fit_relative_ridge(block: Block, target_us: FloatArray, *, groups: IntArray, config: FitConfig) -> RidgeFit:
    """Fit ``target = block . x`` with weights ``1 / target^2``: the squares of relative errors.

    The strength is the one with the lowest MAPE on held-out groups.
    """
    weights = target_us**-2.0
    scoring = "neg_mean_absolute_percentage_error"
    return _fit(block, target_us, weights / weights.mean(), groups, config, scoring=scoring)


def _fit(
    block: Block, target: FloatArray, weights: FloatArray, groups: IntArray, config: FitConfig, *, scoring: str
) -> RidgeFit:
    """Fit all columns but the first, which is the constant and goes unpenalised; return them in their own units."""
    scaler = StandardScaler().fit(block.values[:, 1:], sample_weight=weights)
    columns = scaler.transform(block.values[:, 1:])
    alphas = 2.0 * len(target) * np.array(config.lambda_beta)
    model = _model(alphas, groups, config, scoring).fit(columns, target, sample_weight=weights)
    slopes = model.coef_ / scaler.scale_
    values = np.concatenate([[model.intercept_ - scaler.mean_ @ slopes], slopes])
    alpha = float(model.alpha_ if isinstance(model, RidgeCV) else model.alpha)
    scale = np.concatenate([[1.0], scaler.scale_])
    return RidgeFit(learned_block(block, values, scale), alpha / (2.0 * len(target)))


def _model(alphas: FloatArray, groups: IntArray, config: FitConfig, scoring: str) -> Ridge | RidgeCV:
    """Return a search over the strengths; with one of them, or one group, the middle one unsearched."""
    folds = min(config.folds, len(np.unique(groups)))
    if len(alphas) == 1 or folds < 2:
        return Ridge(alpha=float(alphas[len(alphas) // 2]))
    return RidgeCV(alphas=alphas, cv=list(grouped_folds(groups, folds)), scoring=scoring)
