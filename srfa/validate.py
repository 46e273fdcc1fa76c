"""Does a fit transfer to what it has not seen? Cross-validation by group, as numbers that a gate can judge.

``cross_predict`` returns the report and every held-out prediction, ``cross_validate`` the report alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from joblib import Parallel, delayed
from numpy.typing import NDArray

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, FitConfig, Provenance
from srfa.errors import FitError, UnknownConfigurationError
from srfa.estimators.protocol import Estimator
from srfa.features import FeatureMatrix
from srfa.folds import SPLITS, Fold, Split, split_folds, split_named, why_impossible
from srfa.metrics import Errors, Scored, errors, job_errors
from srfa.observations import Observations
from srfa.ragged import FloatArray
from srfa.speed_of_light import possible_steps
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
    "FoldReport",
    "Partition",
    "Split",
    "ValidationReport",
    "cross_predict",
    "cross_validate",
    "fold_summaries",
    "read_reports",
    "split_folds",
    "split_named",
    "why_impossible",
    "write_reports",
]

Progress = Callable[[int, int], None]
"""Called with the folds done and the folds in all, after each."""

_PARTITIONED_BY = ("workload", "model", "gpu", "phase")


@dataclass(frozen=True, slots=True)
class CrossPrediction:
    """A report with what it was computed from.

    Parameters
    ----------
    held_out
        One row a held-out step: split, held_out, job_id, gpu, model, workload, phase, step_time_us,
        predicted_step_time_us, and the estimator's features as ``block.name``.
    """

    report: ValidationReport
    held_out: pa.Table

    def with_provenance(self, provenance: Provenance) -> CrossPrediction:
        """Return this with a report that says where its data came from."""
        origin = {"provenance": provenance, "transfer": provenance.transfer}
        return CrossPrediction(self.report.model_copy(update=origin), self.held_out)


@dataclass(frozen=True, slots=True)
class _FoldResult:
    fold: Fold
    coefficients: Coefficients | None
    predicted_us: FloatArray
    failure: str


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
    """Do what :func:`cross_validate` does and keep every held-out prediction, for figures."""
    observations, n_impossible = possible_steps(observations, catalog)
    steps = _Steps.of(observations)
    features = estimator.features(observations, catalog)
    folds = split_folds(observations, catalog, split)
    results = _run_folds(partial(_run_fold, estimator, config), features, folds, n_jobs, progress or _silent)
    report = ValidationReport(
        estimator=estimator.name,
        split=split,
        config=config,
        n_steps=features.n_steps,
        n_jobs=len(features.jobs),
        n_impossible_labels=n_impossible,
        impossible=why_impossible(observations, catalog, split),
        pooled=_pooled(results, steps, config.seed),
        folds=tuple(_fold_report(result, steps, config.seed) for result in results),
    )
    return CrossPrediction(report, _held_out_table(results, steps, features, split))


@dataclass(frozen=True, slots=True)
class _Steps:
    """What scoring needs to know of each step; ``labels`` holds one array of text a partition kind."""

    measured_us: FloatArray
    job_ids: NDArray[np.str_]
    labels: dict[str, NDArray[np.str_]]

    @classmethod
    def of(cls, observations: Observations) -> _Steps:
        labels = {kind: _texts(observations, kind) for kind in _PARTITIONED_BY if kind != "phase"}
        labels["phase"] = _phase(observations)
        return cls(observations.step_time_us, _texts(observations, "job_id"), labels)

    def scored(self, result: _FoldResult) -> Scored:
        rows = result.fold.test
        return Scored(self.measured_us[rows], result.predicted_us, self.job_ids[rows])


def _texts(observations: Observations, column: str) -> NDArray[np.str_]:
    names, codes = observations.codes(column)
    return np.array(names, dtype=np.str_)[codes]


def _phase(observations: Observations) -> NDArray[np.str_]:
    prefill, decode = observations.numbers("prefill_tokens") > 0, observations.numbers("decode_tokens") > 0
    return np.where(prefill & decode, "mixed", np.where(prefill, "prefill-only", "decode-only"))


def _silent(done: int, total: int) -> None:  # noqa: ARG001 - a progress that shows nothing
    return


def _run_folds(
    run: Callable[[FeatureMatrix, FeatureMatrix, Fold], _FoldResult],
    features: FeatureMatrix,
    folds: tuple[Fold, ...],
    n_jobs: int,
    progress: Progress,
) -> list[_FoldResult]:
    results = []
    for result in _each_result(run, features, folds, n_jobs):
        results.append(result)
        progress(len(results), len(folds))
    return results


def _each_result(
    run: Callable[[FeatureMatrix, FeatureMatrix, Fold], _FoldResult],
    features: FeatureMatrix,
    folds: tuple[Fold, ...],
    n_jobs: int,
) -> Iterator[_FoldResult]:
    """Yield each fold's result in the order of the folds, as soon as it is known."""
    calls = ((features.take(fold.train), features.take(fold.test), fold) for fold in folds)
    workers = min(n_jobs, len(folds))
    if workers < 2:
        return (run(*call) for call in calls)
    return iter(Parallel(n_jobs=workers, return_as="generator")(delayed(run)(*call) for call in calls))


def _run_fold(
    estimator: Estimator, config: FitConfig, train: FeatureMatrix, test: FeatureMatrix, fold: Fold
) -> _FoldResult:
    try:
        coefficients = estimator.fit(train, config)
        predicted_us = estimator.predict(coefficients, test)
    except (FitError, UnknownConfigurationError) as error:
        return _FoldResult(fold, None, np.empty(0), str(error))
    impossible = int(np.sum(~np.isfinite(predicted_us)))
    failure = f"{impossible} of {len(predicted_us)} predictions are not finite" if impossible else ""
    return _FoldResult(fold, coefficients, predicted_us, failure)


def _pooled(results: list[_FoldResult], steps: _Steps, seed: int) -> Errors | None:
    scored = [steps.scored(result) for result in results if not result.failure]
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


def _fold_report(result: _FoldResult, steps: _Steps, seed: int) -> FoldReport:
    fold, coefficients = result.fold, result.coefficients
    scored = None if result.failure else steps.scored(result)
    return FoldReport(
        held_out=fold.held_out,
        n_train_steps=len(fold.train),
        n_train_jobs=len(np.unique(steps.job_ids[fold.train])),
        n_shared_jobs=fold.shared_jobs,
        errors=errors(scored, seed=seed) if scored else None,
        failure=result.failure,
        converged=coefficients.converged if coefficients else False,
        message=coefficients.message if coefficients else result.failure,
        at_bound=coefficients_at_bound(coefficients) if coefficients else (),
        partitions=tuple(_partitions(scored, fold, steps, seed)) if scored else (),
        jobs=job_errors(scored) if scored else (),
    )


def coefficients_at_bound(coefficients: Coefficients) -> tuple[str, ...]:
    """Return the coefficients that a fit left on their bound, as ``block.name``."""
    return tuple(
        f"{block_name}.{name}"
        for block_name, block in coefficients.blocks.items()
        for name, at_bound in zip(block.names, block.at_bound, strict=True)
        if at_bound
    )


def _partitions(scored: Scored, fold: Fold, steps: _Steps, seed: int) -> Iterator[Partition]:
    for kind, labels in steps.labels.items():
        of_fold = labels[fold.test]
        for name in np.unique(of_fold):
            part = errors(scored.where(of_fold == name), seed=seed)
            yield Partition.model_validate({"kind": kind, "name": str(name), "errors": part})


def _held_out_table(results: list[_FoldResult], steps: _Steps, features: FeatureMatrix, split: Split) -> pa.Table:
    succeeded = [result for result in results if not result.failure]
    rows = np.concatenate([result.fold.test for result in succeeded] or [np.empty(0, dtype=np.int64)])
    held_out = [result.fold.held_out for result in succeeded for _ in range(len(result.fold.test))]
    columns: dict[str, pa.Array] = {
        "split": pa.array([split] * len(rows), pa.string()),
        "held_out": pa.array(held_out, pa.string()),
        "job_id": pa.array(steps.job_ids[rows], pa.string()),
        **{kind: pa.array(labels[rows], pa.string()) for kind, labels in steps.labels.items()},
        "step_time_us": pa.array(steps.measured_us[rows]),
        "predicted_step_time_us": pa.array(
            np.concatenate([result.predicted_us for result in succeeded] or [np.empty(0)])
        ),
    }
    for block_name, block in features.blocks.items():
        for name, values in zip(block.names, block.values.T, strict=True):
            columns[f"{block_name}.{name}"] = pa.array(values[rows])
    return pa.table(columns)
