"""Errors of predicted step times, with intervals by bootstrap over jobs.

Steps of one job are not independent; resampling whole jobs gives intervals that mean something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat

from srfa.ragged import FloatArray
from srfa.specs import Spec

PERCENT = 100.0
RESAMPLES = 2000
CONFIDENCE = 0.95

_Count = Annotated[int, Field(ge=0)]
_AtLeastNothing = Annotated[FiniteFloat, Field(ge=0)]


class Interval(Spec):
    """A confidence interval, in the unit of what it is about."""

    low: FiniteFloat
    high: FiniteFloat


class Errors(Spec):
    """How far predictions are from measurements, over the steps of some jobs; impossible figures are refused.

    Parameters
    ----------
    mape_pct, median_ape_pct, p90_ape_pct
        Mean, median and 90th percentile of ``|predicted - measured| / measured``, percent.
    mae_us
        Mean absolute error, microseconds.
    bias_pct
        Mean of ``(predicted - measured) / measured``, percent; negative where predictions are too fast.
    mape_interval_pct
        95 % interval of the MAPE by bootstrap over jobs; None where there are fewer than two jobs.
    """

    n_steps: _Count
    n_jobs: _Count
    mape_pct: _AtLeastNothing
    median_ape_pct: _AtLeastNothing
    p90_ape_pct: _AtLeastNothing
    mae_us: _AtLeastNothing
    bias_pct: FiniteFloat
    mape_interval_pct: Interval | None


class JobError(Spec):
    """The errors of one job's held-out steps, for comparing two reports job by job."""

    job_id: str
    n_steps: _Count
    mape_pct: _AtLeastNothing
    bias_pct: FiniteFloat


@dataclass(frozen=True, slots=True)
class Scored:
    """Measured and predicted times side by side; every array has one entry a step."""

    measured_us: FloatArray
    predicted_us: FloatArray
    job_ids: NDArray[np.str_]

    @property
    def relative(self) -> FloatArray:
        """Signed relative error ``(predicted - measured) / measured``, shape ``(n_steps,)``."""
        return self.predicted_us / self.measured_us - 1.0

    def where(self, rows: NDArray[np.bool_]) -> Scored:
        """Return the steps for which ``rows`` is true."""
        return Scored(self.measured_us[rows], self.predicted_us[rows], self.job_ids[rows])


def errors(scored: Scored, *, seed: int = 0) -> Errors:
    """Summarise the errors of some steps.

    Examples
    --------
    >>> jobs = np.array(["a", "a", "b", "b"])
    >>> errors(Scored(np.array([10.0, 10, 10, 10]), np.array([11.0, 9, 12, 12]), jobs)).mape_pct
    15.0
    """
    relative = scored.relative
    ape = PERCENT * np.abs(relative)
    by_job = job_errors(scored)
    return Errors(
        n_steps=len(ape),
        n_jobs=len(by_job),
        mape_pct=_rounded(ape.mean()),
        median_ape_pct=_rounded(np.median(ape)),
        p90_ape_pct=_rounded(np.quantile(ape, 0.9)),
        mae_us=_rounded(np.abs(scored.predicted_us - scored.measured_us).mean()),
        bias_pct=_rounded(PERCENT * relative.mean()),
        mape_interval_pct=mean_interval([job.mape_pct for job in by_job], [job.n_steps for job in by_job], seed=seed),
    )


def job_errors(scored: Scored) -> tuple[JobError, ...]:
    """Return the errors of each job, ordered by its id."""
    jobs, index = np.unique(scored.job_ids, return_inverse=True)
    counts = np.bincount(index)
    mape = PERCENT * np.bincount(index, np.abs(scored.relative)) / counts
    bias = PERCENT * np.bincount(index, scored.relative) / counts
    return tuple(
        JobError(job_id=str(job), n_steps=int(n), mape_pct=_rounded(m), bias_pct=_rounded(b))
        for job, n, m, b in zip(jobs, counts, mape, bias, strict=True)
    )


def mean_interval(
    means: Sequence[float], weights: Sequence[float], *, seed: int = 0, confidence: float = CONFIDENCE
) -> Interval | None:
    """Return the bootstrap interval of ``sum(weights x means) / sum(weights)``, jobs drawn with replacement.

    Every one of 2,000 resamples is a row of how often each job was drawn, so that one matrix product does them all:
    O(resamples x jobs) time, O(jobs) memory a resample. None where there are fewer than two jobs.

    Examples
    --------
    >>> mean_interval([5.0, 5.0, 5.0], [10, 20, 30])
    Interval(low=5.0, high=5.0)
    """
    n_jobs = len(means)
    if n_jobs < 2:
        return None
    weight = np.asarray(weights, dtype=np.float64)
    drawn = np.random.default_rng(seed).multinomial(n_jobs, np.full(n_jobs, 1.0 / n_jobs), size=RESAMPLES)
    resampled = (drawn @ (weight * np.asarray(means))) / (drawn @ weight)
    low, high = np.quantile(resampled, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(low=_rounded(low), high=_rounded(high))


def _rounded(value: float | np.floating) -> float:
    """Ten significant digits: what is beyond depends on the order of a sum."""
    return float(f"{value:.10g}")
