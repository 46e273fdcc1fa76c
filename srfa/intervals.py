r"""Prediction intervals from held-out groups: what ``log(measured / predicted)`` was where the fit had not looked.

Steps of one group (a GPU, a model, a job) share an error, so a step is exchangeable with those of other groups only
through its group. Every held-out group counts equally, whatever its number of steps:

``group-conformal``
    The weighted quantiles of all residuals, a step of group ``g`` weighing ``1 / ((G + 1) n_g)`` and the missing
    ``1 / (G + 1)`` lying at infinity (Dunn, Wasserman, Ramdas, "Distribution-free prediction sets for two-layer
    hierarchical models", JASA 2022). It assumes nothing of the distribution, and has finite ends only from
    ``G >= 2 / (1 - level) - 1`` groups: 19 for 90 %.
``random-effects``
    With fewer, the spread between groups has to be extrapolated. ``r = mean + between_g + within``: the group means
    give ``mean`` and their standard deviation ``s``; a new group's mean is ``mean + s sqrt(1 + 1/G) t``, Student's t
    with ``G - 1`` degrees of freedom; the steps around their group's mean give ``within``. The interval holds the
    quantiles of the sum of both. Two groups leave one degree of freedom (t = 6.3) and often a spread of about nothing
    by luck: there ``s`` is pooled with the prior of the grade, which counts as three degrees of freedom.

Which to use was decided by the share of a new group's steps inside a 90 % interval, over 400 draws each of groups with
normal and with skewed effects, 0.4 to 4 times as wide as the spread within them (the tests repeat it in small):

==========  =====  =====  =====  =====  ======  ======  ======
 groups       2      3      4      6      10      19      40
==========  =====  =====  =====  =====  ======  ======  ======
quantiles   52-85  62-87  69-87  78-88  84-89   86-90   90-91
random      84-99  88-93  87-91  87-92  90-91   89-90   90-95
conformal                                       96-100  94-95
==========  =====  =====  =====  =====  ======  ======  ======

Plain quantiles promise too much; conformal ends are the extreme groups at 19 and settle only with twice as many.
Conformal is therefore used from ``2 x 20 - 1 = 39`` groups, random effects below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from scipy.special import ndtri, stdtrit

from srfa.folds import Split
from srfa.grades import N_GRADES, NOMINAL_LEVEL, GradeInterval, Intervals, Method
from srfa.ragged import FloatArray, IntArray

PRIOR_LOG_SD: Final = (0.05, 0.06, 0.07, 0.08)
"""Spread of a group's mean log error where no split measured it, by grade 0 to 3. From ``srfa`` on A100 and H100 steps:
the mean error of a held-out GPU was -3 and +5 %, of a held-out model -6 to +5 %, a spread of 0.05; a Student t of three
degrees of freedom is put on the rounded-up figures. An estimator that transfers worse needs its splits measured."""
PRIOR_WITHIN_LOG_SD: Final = 0.05
"""Spread of steps around their group's mean where nothing was measured: what a fit misses in known places."""
PRIOR_DEGREES_OF_FREEDOM: Final = 3
FEWEST_GROUPS: Final = 3
"""Groups from which their spread is taken at its word."""
_GRADE_SOURCES: Final[tuple[tuple[Split, ...], ...]] = (
    ("leave-one-job-out", "time"),
    ("leave-one-workload-out", "leave-one-tp-out"),
    ("leave-one-model-out",),
    ("leave-one-gpu-out",),
)
GRADED_SPLITS: Final[tuple[Split, ...]] = tuple(splits[0] for splits in _GRADE_SOURCES[:1]) + tuple(
    split for splits in _GRADE_SOURCES[1:] for split in splits
)
"""What has to be validated so that every grade has its best source."""
_GROUPED_BY: Final[dict[Split, str]] = {"time": "job_id"}
"""The split ``time`` holds out one set of jobs; each of them is a group."""
_GRID: Final = 401
"""Points of each of the two distributions whose sum is taken."""


@dataclass(frozen=True, slots=True)
class Residuals:
    """Held-out log errors with their groups.

    Parameters
    ----------
    log_ratio
        ``log(measured / predicted)``, shape ``(n_steps,)``.
    group
        The group of each step, ``0`` to ``n_groups - 1``, shape ``(n_steps,)``.
    """

    log_ratio: FloatArray
    group: IntArray

    @classmethod
    def of(cls, held_out: pa.Table, split: Split) -> Residuals:
        """Read the held-out predictions of a split (:attr:`srfa.validate.CrossPrediction.held_out`)."""
        measured, predicted = (held_out[name].to_numpy() for name in ("step_time_us", "predicted_step_time_us"))
        names = np.array(held_out[_GROUPED_BY.get(split, "held_out")].to_pylist(), dtype=np.str_)
        possible = predicted > 0
        _, group = np.unique(names[possible], return_inverse=True)
        return cls(np.log(measured[possible] / predicted[possible]), np.asarray(group, dtype=np.int64))

    @property
    def n_groups(self) -> int:
        """How many groups there are."""
        return int(self.group.max(initial=-1)) + 1

    @property
    def sizes(self) -> IntArray:
        """Steps of each group."""
        return np.bincount(self.group)

    @property
    def means(self) -> FloatArray:
        """Mean log error of each group."""
        return np.asarray(np.bincount(self.group, self.log_ratio) / self.sizes)

    @property
    def within(self) -> FloatArray:
        """Equally likely deviations of a step from its group's mean, every group counting equally."""
        return _weighted_grid(self.log_ratio - self.means[self.group], 1.0 / self.sizes[self.group])


@dataclass(frozen=True, slots=True)
class LogInterval:
    """Ends of an interval of the log error, and how they were found."""

    low: float
    high: float
    n_groups: int
    method: Method


def group_interval(residuals: Residuals, *, prior_log_sd: float, level: float = NOMINAL_LEVEL) -> LogInterval:
    """Return the interval that a step of a new group falls into with probability ``level``.

    Parameters
    ----------
    prior_log_sd
        Spread of group means to lean on where there are fewer than three groups.

    Examples
    --------
    >>> found = group_interval(Residuals(np.linspace(-0.1, 0.1, 400), np.repeat(np.arange(40), 10)), prior_log_sd=0.1)
    >>> found.method, found.n_groups, found.low < 0 < found.high
    ('group-conformal', 40, True)
    """
    if residuals.n_groups + 1 >= 2 * 2.0 / (1.0 - level) - 1e-9:
        return group_conformal(residuals, level=level)
    return random_effects(residuals, prior_log_sd=prior_log_sd, level=level)


def group_conformal(residuals: Residuals, *, level: float = NOMINAL_LEVEL) -> LogInterval:
    """Return the group-conformal interval; an end is infinite where there are too few groups for it."""
    weight = 1.0 / ((residuals.n_groups + 1) * residuals.sizes[residuals.group])
    order = np.argsort(residuals.log_ratio, kind="stable")
    values, tail = residuals.log_ratio[order], (1.0 - level) / 2.0
    high = _first_at_least(values, np.cumsum(weight[order]), 1.0 - tail)
    low = -_first_at_least(-values[::-1], np.cumsum(weight[order][::-1]), 1.0 - tail)
    return LogInterval(low, high, residuals.n_groups, "group-conformal")


def random_effects(residuals: Residuals, *, prior_log_sd: float, level: float = NOMINAL_LEVEL) -> LogInterval:
    """Return the interval from the spread of group means (Student's t) and the spread of steps around them."""
    n_groups = residuals.n_groups
    if n_groups == 0:
        return prior_interval(prior_log_sd, level=level)
    means = residuals.means
    freedom = n_groups - 1
    squares = float(np.sum((means - means.mean()) ** 2))
    if n_groups < FEWEST_GROUPS:
        squares += PRIOR_DEGREES_OF_FREEDOM * prior_log_sd**2
        freedom += PRIOR_DEGREES_OF_FREEDOM
    spread = np.sqrt(squares / freedom * (1.0 + 1.0 / n_groups))
    low, high = _ends_of_sum(spread * stdtrit(freedom, _midpoints()), residuals.within, level)
    centre = float(means.mean())
    return LogInterval(centre + low, centre + high, n_groups, "random-effects")


def prior_interval(
    prior_log_sd: float, within: FloatArray | None = None, *, level: float = NOMINAL_LEVEL
) -> LogInterval:
    """Return the interval of a group that nothing was measured of: the prior spread of its mean, and that of its steps.

    Parameters
    ----------
    within
        Equally likely log errors of a step beside its group's; None takes :data:`PRIOR_WITHIN_LOG_SD`.
    """
    between = prior_log_sd * stdtrit(PRIOR_DEGREES_OF_FREEDOM, _midpoints())
    if within is None:
        within = np.asarray(PRIOR_WITHIN_LOG_SD * ndtri(_midpoints()), dtype=np.float64)
    low, high = _ends_of_sum(between, within, level)
    return LogInterval(low, high, 0, "prior")


def intervals_of(held_out: Mapping[Split, pa.Table], *, level: float = NOMINAL_LEVEL) -> Intervals:
    """Return the intervals of every grade from the held-out predictions of some splits.

    Parameters
    ----------
    held_out
        :attr:`srfa.validate.CrossPrediction.held_out` by split. Grade 0 is measured by ``leave-one-job-out`` (or the
        jobs that ``time`` holds out), 1 by ``leave-one-workload-out`` and ``leave-one-tp-out``, 2 by
        ``leave-one-model-out``, 3 by ``leave-one-gpu-out``; a grade of several splits has the wider end of each side.

    Returns
    -------
    Intervals
        A grade without a split rests on :data:`PRIOR_LOG_SD`, which widens the errors of the nearest lower grade that
        was measured, or else the spread of steps around their group's mean in the nearest higher one. Grade 4 adds the
        half widths of 2 and 3 in quadrature. Each grade is at least as wide, on each side, as the one before.
    """
    by_grade = [_measured(splits, held_out) for splits in _GRADE_SOURCES]
    measured = [_of_grade(grade, by_grade, level) for grade in range(N_GRADES - 1)]
    measured.append(_both_unseen(measured[2], measured[3]))
    return Intervals(level=level, grades=tuple(_widening(measured)))


def prior_of(split: Split) -> float:
    """Return the prior spread of a group's mean log error on a split; splits no grade rests on have the widest."""
    graded = (prior for splits, prior in zip(_GRADE_SOURCES, PRIOR_LOG_SD, strict=True) if split in splits)
    return next(graded, PRIOR_LOG_SD[-1])


def inside(residuals: Residuals, interval: LogInterval) -> FloatArray:
    """Return the share of each group's steps inside an interval, shape ``(n_groups,)``."""
    within = (residuals.log_ratio >= interval.low) & (residuals.log_ratio <= interval.high)
    return np.asarray(np.bincount(residuals.group, within) / residuals.sizes)


def _measured(splits: Sequence[Split], held_out: Mapping[Split, pa.Table]) -> dict[Split, Residuals]:
    """Return the residuals of the splits that were run and held out at least two groups."""
    found = {split: Residuals.of(held_out[split], split) for split in splits if split in held_out}
    return {split: residuals for split, residuals in found.items() if residuals.n_groups >= 2}


def _of_grade(grade: int, by_grade: Sequence[Mapping[Split, Residuals]], level: float) -> GradeInterval:
    prior, measured = PRIOR_LOG_SD[grade], by_grade[grade]
    if not measured:
        return _graded(grade, [prior_interval(prior, _step_errors(grade, by_grade), level=level)], "prior")
    found = [group_interval(residuals, prior_log_sd=prior, level=level) for residuals in measured.values()]
    return _graded(grade, found, " and ".join(measured))


def _step_errors(grade: int, by_grade: Sequence[Mapping[Split, Residuals]]) -> FloatArray | None:
    """Return what is known of a step's error where its own grade was not measured."""
    lower = [one for measured in by_grade[:grade] for one in measured.values()]
    higher = [one for measured in by_grade[grade + 1 :] for one in measured.values()]
    if lower:
        return _weighted_grid(lower[-1].log_ratio, 1.0 / lower[-1].sizes[lower[-1].group])
    return higher[0].within if higher else None


def _graded(grade: int, found: Sequence[LogInterval], source: str) -> GradeInterval:
    widest = max(found, key=lambda one: one.high - one.low)
    return GradeInterval(
        grade=grade,
        p05=_rounded(min(one.low for one in found)),
        p95=_rounded(max(one.high for one in found)),
        n_groups=widest.n_groups,
        source=source,
        method=widest.method,
    )


def _both_unseen(model: GradeInterval, gpu: GradeInterval) -> GradeInterval:
    """Two errors that nobody measured together: taken as independent."""
    sources = dict.fromkeys((model.source, gpu.source))
    return GradeInterval(
        grade=N_GRADES - 1,
        p05=_rounded(-np.hypot(model.p05, gpu.p05)),
        p95=_rounded(np.hypot(model.p95, gpu.p95)),
        n_groups=min(model.n_groups, gpu.n_groups),
        source=" and ".join(sources),
        method=gpu.method,
    )


def _widening(measured: Iterable[GradeInterval]) -> Iterable[GradeInterval]:
    low, high = np.inf, -np.inf
    for one in measured:
        low, high = min(low, one.p05), max(high, one.p95)
        yield one.model_copy(update={"p05": low, "p95": high})


def _ends_of_sum(between: FloatArray, within: FloatArray, level: float) -> tuple[float, float]:
    """Quantiles of the sum of two independent variables, each given by equally likely values."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.add.outer(between, within), [tail, 1.0 - tail])
    return float(low), float(high)


def _weighted_grid(values: FloatArray, weight: FloatArray) -> FloatArray:
    """Return equally likely values of a weighted sample."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order]) / weight.sum()
    rows = np.minimum(np.searchsorted(reached, _midpoints()), len(values) - 1)
    return np.asarray(values[order][rows])


def _midpoints() -> FloatArray:
    return np.asarray((np.arange(_GRID) + 0.5) / _GRID)


def _first_at_least(values: FloatArray, reached: FloatArray, wanted: float) -> float:
    """Return the first of ascending ``values`` by which the weight has ``reached`` what is wanted, else infinity."""
    row = int(np.searchsorted(reached, wanted - 1e-12))
    return float(values[row]) if row < len(values) else np.inf


def _rounded(value: float) -> float:
    """Ten significant digits: what is beyond depends on the order of a sum."""
    return float(f"{value:.10g}")
