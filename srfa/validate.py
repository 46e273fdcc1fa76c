"""Does a fit transfer to what it has not seen? Cross-validation by group, as numbers that a gate can judge.

``cross_predict`` returns the report and every held-out prediction, ``cross_validate`` the report alone,
``cross_validate_all`` the reports of many estimators on the same folds. One code path does all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pyarrow as pa

from srfa.catalog import Catalog
from srfa.coefficients import FitConfig, Provenance
from srfa.estimators.protocol import Estimator
from srfa.folds import SPLITS, Fold, Split, split_folds, split_named, why_impossible
from srfa.metrics import Errors, Scored, errors
from srfa.observations import Observations
from srfa.trials import FoldFit, FoldResult, Progress, Trial, fold_fits, run_trials, silent, trials_of
from srfa.validation_report import (
    FoldReport,
    Partition,
    ValidationReport,
    fold_summaries,
    read_reports,
    write_reports,
)

__all__ = [
    "SPLITS",
    "CrossPrediction",
    "Fold",
    "FoldFit",
    "FoldReport",
    "Partition",
    "Progress",
    "Split",
    "ValidationReport",
    "cross_predict",
    "cross_validate",
    "cross_validate_all",
    "fold_summaries",
    "read_reports",
    "split_folds",
    "split_named",
    "why_impossible",
    "write_reports",
]


@dataclass(frozen=True, slots=True)
class CrossPrediction:
    """A report with what it was computed from.

    Parameters
    ----------
    held_out
        One row a held-out step: split, held_out, job_id, gpu, model, workload, phase, step_time_us,
        predicted_step_time_us, and the estimator's features as ``block.name``.
    fits
        What each fold that succeeded has learned.
    """

    report: ValidationReport
    held_out: pa.Table
    fits: tuple[FoldFit, ...] = ()

    def with_provenance(self, provenance: Provenance) -> CrossPrediction:
        """Return this with a report that says where its data came from."""
        origin = {"provenance": provenance, "transfer": provenance.transfer}
        return replace(self, report=self.report.model_copy(update=origin))


def cross_validate(
    estimator: Estimator,
    observations: Observations,
    catalog: Catalog,
    *,
    split: Split,
    config: FitConfig,
    n_jobs: int = 1,
    progress: Progress | None = None,
) -> ValidationReport:
    """Fit on all groups but one and predict that one, for each group of the split.

    Parameters
    ----------
    config
        Settings of the fits; its ``seed`` also seeds the bootstrap.
    n_jobs
        Processes that share the folds.

    Returns
    -------
    ValidationReport
        Per fold MAPE, median and P90 of the absolute relative error and signed bias in percent, MAE in microseconds,
        the MAPE's 95 % interval by bootstrap over jobs, and the same for each workload, model, GPU and phase in it.
        A fold whose fit is refused or predicts a non-finite time is reported as failed, never raised.

    Raises
    ------
    CatalogError
        A GPU or model of the observations is unknown.
    DataInvalidError
        A job holds more labels faster than light than single glitches explain.
    """
    kept = cross_predict(estimator, observations, catalog, split=split, config=config, n_jobs=n_jobs, progress=progress)
    return kept.report


def cross_predict(
    estimator: Estimator,
    observations: Observations,
    catalog: Catalog,
    *,
    split: Split,
    config: FitConfig,
    n_jobs: int = 1,
    progress: Progress | None = None,
) -> CrossPrediction:
    """Do what :func:`cross_validate` does; keep every held-out prediction for figures, every fold's fit for replays."""
    (trial,) = trials_of((estimator,), observations, catalog, (split,), config)
    (results,) = run_trials([trial], n_jobs, progress or silent)
    return CrossPrediction(_report(trial, results), _held_out_table(trial, results), fold_fits(trial, results))


def cross_validate_all(
    estimators: Sequence[Estimator],
    data_sets: Sequence[Observations],
    catalog: Catalog,
    *,
    splits: Sequence[Split],
    config: FitConfig,
    n_jobs: int = 1,
    progress: Progress | None = None,
) -> tuple[tuple[ValidationReport, ...], ...]:
    """Validate every estimator on every split of every data set, all on the same rows and folds.

    The folds of all of them share one pool of processes; the features of a data set are computed once an estimator.

    Returns
    -------
    tuple of tuple of ValidationReport
        One tuple a data set; in it, each estimator's reports in the order of ``splits``, estimator after estimator.
        Each report is what :func:`cross_validate` returns, whatever ``n_jobs`` is.

    Raises
    ------
    CatalogError
        A GPU or model of some data set is unknown.
    DataInvalidError
        A job of some data set holds more labels faster than light than single glitches explain.
    """
    trials = [list(trials_of(estimators, one, catalog, splits, config)) for one in data_sets]
    results = iter(run_trials(list(chain.from_iterable(trials)), n_jobs, progress or silent))
    return tuple(tuple(_report(trial, next(results)) for trial in of_data_set) for of_data_set in trials)


def _report(trial: Trial, results: Sequence[FoldResult]) -> ValidationReport:
    return ValidationReport(
        estimator=trial.estimator.name,
        split=trial.split,
        config=trial.config,
        n_steps=len(trial.steps.measured_us),
        n_jobs=len(np.unique(trial.steps.job_ids)),
        n_impossible_labels=trial.n_impossible_labels,
        impossible=trial.impossible,
        pooled=_pooled(results, trial.config.seed),
        folds=tuple(result.report for result in results),
    )


def _pooled(results: Sequence[FoldResult], seed: int) -> Errors | None:
    scored = [result.scored for result in results if result.scored]
    if not scored:
        return None
    return errors(
        Scored(
            np.concatenate([one.measured_us for one in scored]),
            np.concatenate([one.predicted_us for one in scored]),
            np.concatenate([one.job_ids for one in scored]),
        ),
        seed=seed,
    )


def _held_out_table(trial: Trial, results: Sequence[FoldResult]) -> pa.Table:
    succeeded = [(result.fold, result.scored.predicted_us) for result in results if result.scored]
    rows = np.concatenate([fold.test for fold, _ in succeeded] or [np.empty(0, dtype=np.int64)])
    held_out = [fold.held_out for fold, _ in succeeded for _ in range(len(fold.test))]
    columns: dict[str, pa.Array] = {
        "split": pa.array([trial.split] * len(rows), pa.string()),
        "held_out": pa.array(held_out, pa.string()),
        "job_id": pa.array(trial.steps.job_ids[rows], pa.string()),
        **{kind: pa.array(labels[rows], pa.string()) for kind, labels in trial.steps.labels.items()},
        "step_time_us": pa.array(trial.steps.measured_us[rows]),
        "predicted_step_time_us": pa.array(np.concatenate([us for _, us in succeeded] or [np.empty(0)])),
    }
    for block_name, block in trial.features.blocks.items() if trial.features else ():
        for name, values in zip(block.names, block.values.T, strict=True):
            columns[f"{block_name}.{name}"] = pa.array(values[rows])
    return pa.table(columns)
