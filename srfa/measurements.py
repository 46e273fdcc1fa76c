"""Measured jobs with their requests, and what a fit of the time outside the steps may learn from the other jobs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srfa.catalog import Catalog
from srfa.coefficients import FitConfig
from srfa.estimators.blackbox import configuration_name
from srfa.fit.outside import OutsideFit, fit_outside
from srfa.observations import Configuration, Observations, configuration_of
from srfa.request_report import RequestModelReport, request_models_report
from srfa.requests import RequestObservations, request_observations
from srfa.run_tables import Tables

_NOT_OF_THE_CELL = frozenset({"job_id", "run_id", "environment", "mono_to_epoch_ns", "num_gpu_blocks"})
"""Columns of the jobs table in which repeats of a cell may differ."""


@dataclass(frozen=True, slots=True)
class MeasuredJob:
    """One job as it was measured.

    Parameters
    ----------
    row
        Its row of the jobs table.
    configuration
        With the names of the catalogue.
    steps
        Its rows of the steps table, those with tokens.
    """

    row: Mapping[str, object]
    configuration: Configuration
    requests: pa.Table
    steps: pa.Table

    @property
    def job_id(self) -> str:
        """The job's id."""
        return str(self.row["job_id"])

    @property
    def workload(self) -> str:
        """The name of its load."""
        return str(self.row.get("workload") or "")

    @property
    def place(self) -> str:
        """Configuration and workload in words."""
        return f"{configuration_name(self.configuration)}, {self.workload or '(unnamed)'}"

    @property
    def cell(self) -> str:
        """What repeats of the job have in common, as text."""
        return repr(sorted((name, value) for name, value in self.row.items() if name not in _NOT_OF_THE_CELL))


@dataclass(frozen=True)
class Measurements:
    """All measured jobs, and what a fit may learn from some of them."""

    observations: Observations
    tables: Tables
    catalog: Catalog
    config: FitConfig

    @cached_property
    def jobs(self) -> dict[str, MeasuredJob]:
        """Every job of the tables, by its id, in the order of the ids; the tables hold each of them once."""
        return {job_id: self._job(tables) for job_id, tables in self.tables.by_job().items()}

    @cached_property
    def _requests(self) -> RequestObservations:
        return request_observations(self.tables.requests, self.tables.jobs, self.tables.steps, self.catalog)

    @cached_property
    def request_models(self) -> RequestModelReport:
        """What the models of requests say of jobs that their fit has not seen."""
        return request_models_report(self._requests, self.config)

    @cached_property
    def wall_ratios(self) -> dict[str, float]:
        """By job: wall time of its usable steps over their labels; without the jobs whose labels are wall time."""
        names, index = self.observations.codes("job_id")
        wall_us, label_us = self.observations.numbers("step_wall_time_us"), self.observations.step_time_us
        ratios = np.bincount(index, wall_us) / np.bincount(index, label_us)
        known = zip(names, ratios, strict=True)
        return {name: float(ratio) for name, ratio in known if np.isfinite(ratio) and ratio != 1.0}

    def outside_without(self, job_ids: Collection[str]) -> OutsideFit:
        """Fit what lies outside the steps to all other jobs; where there are none, or too few, the fit says so."""
        others = sorted(set(self.jobs) - set(job_ids))
        rows = np.flatnonzero(np.isin(np.array(self.observations.job_ids), others))
        if not rows.size:
            return OutsideFit.refused("no other job is there to learn from")
        tables = self.tables.of_jobs(others)
        return fit_outside(
            self._requests.of_jobs(others),
            self.config,
            steps=tables.steps,
            jobs=tables.jobs,
            observations=self.observations.take(rows),
        )

    def _job(self, tables: Tables) -> MeasuredJob:
        (row,) = tables.jobs.to_pylist()
        found = configuration_of(row)
        model, gpu = self.catalog.resolve_model(found.model).name, self.catalog.resolve_gpu(found.gpu).name
        worked = pc.greater(pc.add(tables.steps["prefill_tokens"], tables.steps["decode_tokens"]), 0)
        named = replace(found, model=model, gpu=gpu)
        return MeasuredJob(row, named, tables.requests, tables.steps.filter(worked))
