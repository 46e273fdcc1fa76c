"""The feature matrix: named columns with units, in blocks that enter a model in different ways.

Features are computed from observations and never stored; editing a datasheet re-computes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from srfa.observations import Configuration, Observations
from srfa.ragged import FloatArray, IntArray

Columns = Mapping[tuple[str, str], FloatArray | float]
"""``{(name, unit): column or constant}``, in the order the columns will have."""


@dataclass(frozen=True, slots=True)
class Block:
    """Columns that enter a model together.

    Parameters
    ----------
    names, units
        One of each a column; a unit is ``us``, ``1`` (dimensionless) or ``log(tokens)`` and the like.
    values
        Shape ``(n_steps, n_columns)``.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    values: FloatArray

    @classmethod
    def of(cls, columns: Columns, n_rows: int) -> Block:
        """Build a block from ``{(name, unit): column or constant}``."""
        values = np.empty((n_rows, len(columns)))
        for position, column in enumerate(columns.values()):
            values[:, position] = column
        return cls(tuple(name for name, _ in columns), tuple(unit for _, unit in columns), values)

    def take(self, rows: IntArray) -> Block:
        """Return the given rows, in that order."""
        return Block(self.names, self.units, self.values[rows])


@dataclass(frozen=True, slots=True)
class FeatureMatrix:
    """What an estimator sees of ``n_steps`` steps.

    Parameters
    ----------
    blocks
        The estimator's own blocks of columns.
    step_time_us
        The label, shape ``(n_steps,)``.
    jobs, job_index
        The distinct jobs and the job of each step: every split is by job, never by step.
    step_index
        Rank of the step within its job, for warm-up removal, shape ``(n_steps,)``.
    configurations, configuration_index
        The distinct configurations, and which one each step ran on: what is learned by configuration, or refused where
        one was not seen, is told apart by it.
    """

    blocks: Mapping[str, Block]
    step_time_us: FloatArray
    jobs: tuple[str, ...]
    job_index: IntArray
    step_index: IntArray
    configurations: tuple[Configuration, ...]
    configuration_index: IntArray

    @property
    def n_steps(self) -> int:
        """How many steps there are."""
        return len(self.step_time_us)

    def take(self, rows: IntArray) -> FeatureMatrix:
        """Return the given steps, in that order; jobs and configurations stay whole: indices keep their meaning."""
        return FeatureMatrix(
            {name: block.take(rows) for name, block in self.blocks.items()},
            self.step_time_us[rows],
            self.jobs,
            self.job_index[rows],
            self.step_index[rows],
            self.configurations,
            self.configuration_index[rows],
        )


def feature_matrix(observations: Observations, blocks: Mapping[str, Block]) -> FeatureMatrix:
    """Join an estimator's blocks with the labels and jobs of the observations they were computed from."""
    jobs, job_index = observations.codes("job_id")
    return FeatureMatrix(
        blocks,
        observations.step_time_us,
        tuple(jobs),
        job_index,
        rank_within(job_index),
        observations.configurations,
        observations.configuration_index,
    )


def rank_within(groups: IntArray) -> IntArray:
    """Return each entry's rank among those of its group, in order of appearance.

    >>> rank_within(np.array([0, 1, 0, 1, 1])).tolist()
    [0, 0, 1, 1, 2]
    """
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    ranks = np.empty_like(groups)
    ranks[order] = np.arange(len(groups)) - starts
    return ranks
