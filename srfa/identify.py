"""What the data say of each coefficient, and which jobs would say more.

All is read off the Jacobian ``J = d log(predicted) / d log(parameter)`` at the fit, shape ``(n_steps, n_params)``: with
step errors of spread ``sigma`` the information on the parameters' logarithms is ``J'J / sigma^2``. Totals identify
sums of operators, not operators: two columns that move together cannot be told apart however many steps there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from srfa.coefficients import Coefficients
from srfa.errors import UsageError
from srfa.estimators.protocol import Estimator
from srfa.features import FeatureMatrix
from srfa.fit.outside import OUTSIDE_BLOCKS
from srfa.identification import Correlated, Helpful, Identification, Parameter
from srfa.observations import Observations
from srfa.ragged import FloatArray, IntArray

CORRELATED: Final = 0.95
"""Two estimates that move together more than this are one figure, not two."""
WEAK_LOG_SD: Final = 0.3
"""A parameter known no better than to a factor of e^0.3 = 1.35 is weakly identified."""
PRIOR_LOG_SD: Final = 1.0
"""Before any data a parameter is known to a factor of e: it bounds the variance of one that no step depends on."""
_RELATIVE_STEP: Final = 1e-4
_RESAMPLES: Final = 500
_SMALLEST_EIGENVALUE: Final = 1e-10
"""Below this share of the largest, an eigenvalue of the scaled ``J'J`` is rounding: VIFs end at its inverse."""
_OUTLIER_IN_SPREADS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Jacobian:
    """Derivatives of the log prediction by the log parameters.

    Parameters
    ----------
    names
        ``block.name`` of each parameter.
    values
        Shape ``(n_steps, n_params)``. For a parameter of 0, which has no logarithm, the derivative by the parameter in
        units of its scale.
    log_residual
        ``log(measured / predicted)``, shape ``(n_steps,)``.
    """

    names: tuple[str, ...]
    values: FloatArray
    log_residual: FloatArray


def jacobian(
    estimator: Estimator, coefficients: Coefficients, features: FeatureMatrix, *, relative_step: float = _RELATIVE_STEP
) -> Jacobian:
    """Return the Jacobian of any estimator by central differences over the values of its coefficient blocks.

    Cost: two predictions a coefficient. At a value of 0 the difference is forward: what is physical lies above.

    Raises
    ------
    UsageError
        The estimator has no named coefficients of a step's time, or predicts a time that is not positive.
    """
    places = [
        (block, position)
        for block, one in coefficients.blocks.items()
        if block not in OUTSIDE_BLOCKS
        for position in range(len(one.names))
    ]
    if not places:
        raise UsageError(f"{coefficients.estimator} has no named coefficients; there is nothing to identify")

    def log_predicted(changed: Coefficients) -> FloatArray:
        predicted = estimator.predict(changed, features)
        if not (predicted > 0).all():
            raise UsageError(f"{coefficients.estimator} predicts times that are not positive; run 'srfa physics'")
        return np.log(predicted)

    base = log_predicted(coefficients)
    columns = [_derivative(log_predicted, coefficients, place, base, relative_step) for place in places]
    names = tuple(f"{block}.{coefficients.blocks[block].names[position]}" for block, position in places)
    return Jacobian(names, np.stack(columns, axis=1), np.log(features.step_time_us) - base)


def _derivative(
    log_predicted: Callable[[Coefficients], FloatArray],
    coefficients: Coefficients,
    place: tuple[str, int],
    base: FloatArray,
    relative_step: float,
) -> FloatArray:
    block = coefficients.blocks[place[0]]
    value, scale = block.values[place[1]], block.scales[place[1]]
    step = relative_step * (abs(value) or 1.0 / scale)
    above = log_predicted(_changed(coefficients, place, value + step))
    if value == 0.0:
        return (above - base) / relative_step
    below = log_predicted(_changed(coefficients, place, value - step))
    return np.asarray(np.sign(value) * (above - below) / (2.0 * relative_step))


def _changed(coefficients: Coefficients, place: tuple[str, int], value: float) -> Coefficients:
    name, position = place
    block = coefficients.blocks[name]
    values = (*block.values[:position], value, *block.values[position + 1 :])
    return coefficients.model_copy(
        update={"blocks": {**coefficients.blocks, name: block.model_copy(update={"values": values})}}
    )


def identify(
    found: Jacobian,
    coefficients: Coefficients,
    job_index: IntArray,
    *,
    candidates: Mapping[str, FloatArray] | None = None,
    seed: int = 0,
) -> Identification:
    """Say what the steps behind a Jacobian tell of each parameter.

    Parameters
    ----------
    job_index
        The job of each step: the bootstrap draws jobs.
    candidates
        Jacobians of the steps that kinds of jobs would bring, by name; see :mod:`srfa.candidate_jobs`.

    Returns
    -------
    Identification
        Condition number and variance inflation from ``J'J`` with columns scaled to length 1; correlations of the
        estimates; spread of the log parameters by bootstrap over jobs, linearised: one Gauss-Newton step from the fit
        for each resample; and for each weakly identified parameter the candidates by how far they reduce its variance.
    """
    known, sigma = _Known.of(found), _spread(found.log_residual)
    parameters = tuple(_parameters(found, known, _bootstrap_sd(found, job_index, sigma, seed), _bounded(coefficients)))
    pairs = tuple(_correlated(known))
    return Identification(
        estimator=coefficients.estimator,
        n_steps=len(found.values),
        n_jobs=len(np.unique(job_index)),
        residual_log_sd=sigma,
        condition_number=known.condition_number,
        parameters=parameters,
        correlated=pairs,
        groups=_groups(pairs),
        helpful=tuple(_helpful(parameters, found.values, candidates or {}, sigma)),
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """Names of the parameters that move any step, with the inverse of their scaled ``J'J``."""

    names: tuple[str, ...]
    inverse: FloatArray
    condition_number: float

    @classmethod
    def of(cls, found: Jacobian) -> _Known:
        length = np.linalg.norm(found.values, axis=0)
        scaled = found.values[:, length > 0] / length[length > 0]
        values, vectors = np.linalg.eigh(scaled.T @ scaled)
        kept = np.maximum(values, _SMALLEST_EIGENVALUE * values.max(initial=1.0))
        names = tuple(name for name, moves in zip(found.names, length > 0, strict=True) if moves)
        condition = float(kept.max(initial=1.0) / kept.min(initial=1.0))
        return cls(names, np.asarray((vectors / kept) @ vectors.T), condition)

    @property
    def inflation(self) -> dict[str, float]:
        """The variance inflation factor of each parameter."""
        return dict(zip(self.names, np.diag(self.inverse).tolist(), strict=True))


def _bounded(coefficients: Coefficients) -> frozenset[str]:
    return frozenset(
        f"{name}.{one}"
        for name, block in coefficients.blocks.items()
        for one, at_bound in zip(block.names, block.at_bound, strict=True)
        if at_bound
    )


def _parameters(found: Jacobian, known: _Known, log_sd: FloatArray, bounded: frozenset[str]) -> Iterator[Parameter]:
    influence, inflation = np.sqrt(np.mean(found.values**2, axis=0)), known.inflation
    for name, share, sd in zip(found.names, influence, log_sd, strict=True):
        yield Parameter(
            name=name,
            influence=float(share),
            variance_inflation=inflation.get(name, float("inf")),
            log_sd=float(sd),
            at_bound=name in bounded,
            weak=bool(sd > WEAK_LOG_SD or name not in inflation),
        )


def _spread(log_residual: FloatArray) -> float:
    """Robust standard deviation of the residuals, at least a tenth of a percent."""
    return max(float(1.4826 * np.median(np.abs(log_residual - np.median(log_residual)))), 1e-3)


def _bootstrap_sd(found: Jacobian, job_index: IntArray, sigma: float, seed: int) -> FloatArray:
    """Standard deviation of one Gauss-Newton step over resamples of jobs, towards a prior around the fit.

    Residuals are cut to three spreads, as the fits' Huber loss does. What rests on the prior alone does not move
    between resamples, so the share of the variance that the prior carries is added.
    """
    n_params = len(found.names)
    residual = np.clip(found.log_residual, -_OUTLIER_IN_SPREADS * sigma, _OUTLIER_IN_SPREADS * sigma)
    _, job = np.unique(job_index, return_inverse=True)
    n_jobs = int(job.max()) + 1
    order = np.argsort(job, kind="stable")
    starts = np.searchsorted(job[order], np.arange(n_jobs))
    rows, right = found.values[order], (found.values * residual[:, None])[order]
    of_job = np.stack([part.T @ part for part in np.split(rows, starts[1:])])
    right_of_job = np.add.reduceat(right, starts, axis=0)
    drawn = np.random.default_rng(seed).multinomial(n_jobs, np.full(n_jobs, 1.0 / n_jobs), size=_RESAMPLES)
    prior = np.eye(n_params) / PRIOR_LOG_SD**2
    left = (drawn @ of_job.reshape(n_jobs, -1)).reshape(-1, n_params, n_params) / sigma**2 + prior
    steps = np.linalg.solve(left, (drawn @ right_of_job)[:, :, None] / sigma**2)[:, :, 0]
    covariance = np.linalg.inv(of_job.sum(axis=0) / sigma**2 + prior)
    return np.asarray(np.sqrt(steps.var(axis=0) + np.diag(covariance @ prior @ covariance)))


def _correlated(known: _Known) -> Iterator[Correlated]:
    sd = np.sqrt(np.diag(known.inverse))
    correlation = known.inverse / np.outer(sd, sd)
    for row, column in np.argwhere(np.triu(np.abs(correlation) > CORRELATED, k=1)):
        together = float(correlation[row, column])
        yield Correlated(first=known.names[row], second=known.names[column], correlation=together)


def _groups(pairs: tuple[Correlated, ...]) -> tuple[tuple[str, ...], ...]:
    """Join pairs that share a parameter: only the sum of such a group's effects is known."""
    groups: list[set[str]] = []
    for pair in pairs:
        touched = [group for group in groups if group & {pair.first, pair.second}]
        groups = [group for group in groups if group not in touched]
        groups.append({pair.first, pair.second}.union(*touched))
    return tuple(tuple(sorted(group)) for group in groups)


def _helpful(
    parameters: tuple[Parameter, ...], values: FloatArray, candidates: Mapping[str, FloatArray], sigma: float
) -> Iterator[Helpful]:
    """Yield, for each weak parameter, each candidate with the variance it leaves, the best first."""
    information = values.T @ values / sigma**2 + np.eye(values.shape[1]) / PRIOR_LOG_SD**2
    before = np.diag(np.linalg.inv(information))
    after = {
        kind: np.diag(np.linalg.inv(information + columns.T @ columns / sigma**2))
        for kind, columns in candidates.items()
    }
    for row, parameter in enumerate(parameters):
        if not parameter.weak:
            continue
        for kind in sorted(after, key=lambda one: float(after[one][row])):
            left = float(after[kind][row] / before[row])
            yield Helpful(parameter=parameter.name, job=kind, variance_left=left)


def candidate_jacobians(
    jacobian_of: Callable[[Observations], Jacobian], candidates: Mapping[str, Observations]
) -> dict[str, FloatArray]:
    """Return the Jacobian of each candidate's steps, by its name."""
    return {kind: jacobian_of(steps).values for kind, steps in candidates.items()}
