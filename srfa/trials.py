"""Trials: an estimator on a split of a data set, run fold by fold in this process or in a pool of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from joblib import Parallel, delayed, parallel_config
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, FitConfig
from srfa.errors import FitError, SrfaError, UnknownConfigurationError
from srfa.estimators.protocol import Estimator
from srfa.features import FeatureMatrix
from srfa.folds import Fold, Split, split_folds, why_impossible
from srfa.metrics import Scored, errors, job_errors
from srfa.observations import Observations
from srfa.ragged import FloatArray, IntArray
from srfa.speed_of_light import possible_steps
from srfa.validation_report import FoldReport, Partition

Progress = Callable[[int, int], None]
"""Called with the folds done and the folds in all, after each."""

_PARTITIONED_BY = ("workload", "model", "gpu", "phase")


@dataclass(frozen=True, slots=True)
class Steps:
    """What scoring needs to know of each step; ``labels`` holds one array of text a partition kind."""

    measured_us: FloatArray
    job_ids: NDArray[np.str_]
    labels: dict[str, NDArray[np.str_]]

    @classmethod
    def of(cls, observations: Observations) -> Steps:
        """Read them off the observations."""
        labels = {kind: _texts(observations, kind) for kind in _PARTITIONED_BY if kind != "phase"}
        labels["phase"] = _phase(observations)
        return cls(observations.step_time_us, _texts(observations, "job_id"), labels)

    def take(self, rows: IntArray) -> Steps:
        """Return the given steps, in that order."""
        labels = {kind: texts[rows] for kind, texts in self.labels.items()}
        return Steps(self.measured_us[rows], self.job_ids[rows], labels)


@dataclass(frozen=True, slots=True)
class Trial:
    """One report to be made: an estimator on a split of a data set.

    Parameters
    ----------
    folds, impossible
        The split's folds, and why there are none.
    n_impossible_labels
        Steps left out because their label undercuts the speed of light; ``steps`` and ``features`` lack them.
    features, refusal
        The estimator's features of all steps; None where it refuses them, with its reason.
    """

    estimator: Estimator
    split: Split
    config: FitConfig
    folds: tuple[Fold, ...]
    impossible: str
    steps: Steps
    n_impossible_labels: int
    features: FeatureMatrix | None
    refusal: str

    def tasks(self) -> Iterator[Task]:
        """Yield one task a fold, its rows cut out only now."""
        config = self.config.model_copy(update={"n_workers": 1})  # processes share the folds already
        for fold in self.folds:
            features, test = self.features, self.steps.take(fold.test)
            matrices = (features.take(fold.train), features.take(fold.test)) if features else None
            n_train_jobs = len(np.unique(self.steps.job_ids[fold.train]))
            yield Task(self.estimator, config, fold, n_train_jobs, matrices, test, self.refusal)


@dataclass(frozen=True, slots=True)
class Task:
    """One fold to be fitted, predicted and scored, with all that this takes: what a process is sent."""

    estimator: Estimator
    config: FitConfig
    fold: Fold
    n_train_jobs: int
    train_and_test: tuple[FeatureMatrix, FeatureMatrix] | None
    test_steps: Steps
    refusal: str


@dataclass(frozen=True, slots=True)
class FoldResult:
    """What a task gives back; ``scored`` and ``coefficients`` are None where the fold failed."""

    fold: Fold
    report: FoldReport
    scored: Scored | None
    coefficients: Coefficients | None = None


@dataclass(frozen=True, slots=True)
class FoldFit:
    """What a fold learned without its held-out group.

    Parameters
    ----------
    job_ids
        The jobs it never saw a step of, sorted.
    """

    held_out: str
    n_train_steps: int
    job_ids: tuple[str, ...]
    coefficients: Coefficients


def trials_of(
    estimators: Sequence[Estimator],
    observations: Observations,
    catalog: Catalog,
    splits: Sequence[Split],
    config: FitConfig,
) -> Iterator[Trial]:
    """Yield a trial for every estimator and split, estimator after estimator; features are computed once an estimator.

    Raises
    ------
    CatalogError
        A GPU or model of the observations is unknown.
    DataInvalidError
        A job holds more labels faster than light than single glitches explain.
    """
    observations, n_impossible = possible_steps(observations, catalog)
    steps = Steps.of(observations)
    folds = {split: split_folds(observations, catalog, split) for split in splits}
    impossible = {split: why_impossible(observations, catalog, split) for split in splits}
    for estimator in estimators:
        features, refusal = _features_or_refusal(estimator, observations, catalog)
        for split in splits:
            yield Trial(
                estimator, split, config, folds[split], impossible[split], steps, n_impossible, features, refusal
            )


def _features_or_refusal(
    estimator: Estimator, observations: Observations, catalog: Catalog
) -> tuple[FeatureMatrix | None, str]:
    """GPUs and models are known by now, so what an estimator refuses here concerns itself: its folds fail."""
    try:
        return estimator.features(observations, catalog), ""
    except SrfaError as error:
        return None, str(error)


def _texts(observations: Observations, column: str) -> NDArray[np.str_]:
    names, codes = observations.codes(column)
    return np.array(names, dtype=np.str_)[codes]


def _phase(observations: Observations) -> NDArray[np.str_]:
    prefill, decode = observations.numbers("prefill_tokens") > 0, observations.numbers("decode_tokens") > 0
    return np.where(prefill & decode, "mixed", np.where(prefill, "prefill-only", "decode-only"))


def silent(done: int, total: int) -> None:
    """Show nothing of the progress."""


def run_trials(trials: Sequence[Trial], n_jobs: int, progress: Progress) -> list[list[FoldResult]]:
    """Return the results of each trial's folds, in the order of trials and folds.

    A fold whose fit is refused or predicts a non-finite time is a result that says so; it is never raised.
    """
    total = sum(len(trial.folds) for trial in trials)
    tasks = enumerate(chain.from_iterable(trial.tasks() for trial in trials))
    found: dict[int, FoldResult] = {}
    for number, result in _each_result(tasks, min(n_jobs, total)):
        found[number] = result
        progress(len(found), total)
    ordered = (found[number] for number in range(total))
    return [[next(ordered) for _ in trial.folds] for trial in trials]


def fold_fits(trial: Trial, results: Sequence[FoldResult]) -> tuple[FoldFit, ...]:
    """Return what each fold of a trial that succeeded has learned; a job with steps on both sides was seen."""
    found = []
    for result in results:
        if result.coefficients:
            held_out = np.unique(trial.steps.job_ids[result.fold.test])
            unseen = np.setdiff1d(held_out, trial.steps.job_ids[result.fold.train])
            job_ids = tuple(str(job_id) for job_id in unseen)
            found.append(FoldFit(result.fold.held_out, len(result.fold.train), job_ids, result.coefficients))
    return tuple(found)


def _each_result(tasks: Iterator[tuple[int, Task]], n_workers: int) -> Iterator[tuple[int, FoldResult]]:
    """Yield each numbered task's result as soon as it is known, in any order."""
    if n_workers < 2:
        yield from (_run_fold(number, task) for number, task in tasks)
        return
    with parallel_config(backend="loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=n_workers, return_as="generator_unordered")
    yield from pool(delayed(_run_fold)(number, task) for number, task in tasks)


def _run_fold(number: int, task: Task) -> tuple[int, FoldResult]:
    """Fit, predict and score; with one BLAS thread everywhere, so that processes give what one process gives."""
    with threadpool_limits(limits=1):
        coefficients, predicted_us, failure = _fitted(task)
    scored = None if failure else Scored(task.test_steps.measured_us, predicted_us, task.test_steps.job_ids)
    report = _fold_report(task, coefficients, scored, failure)
    return number, FoldResult(task.fold, report, scored, coefficients if scored else None)


def _fitted(task: Task) -> tuple[Coefficients | None, FloatArray, str]:
    """Return the fit, its predictions, and why there are none."""
    if task.train_and_test is None:
        return None, np.empty(0), task.refusal
    train, test = task.train_and_test
    try:
        coefficients = task.estimator.fit(train, task.config)
        predicted_us = task.estimator.predict(coefficients, test)
    except (FitError, UnknownConfigurationError) as error:
        return None, np.empty(0), str(error)
    n_bad = int(np.sum(~np.isfinite(predicted_us)))
    return coefficients, predicted_us, f"{n_bad} of {len(predicted_us)} predictions are not finite" if n_bad else ""


def _fold_report(task: Task, coefficients: Coefficients | None, scored: Scored | None, failure: str) -> FoldReport:
    seed = task.config.seed
    return FoldReport(
        held_out=task.fold.held_out,
        n_train_steps=len(task.fold.train),
        n_train_jobs=task.n_train_jobs,
        n_shared_jobs=task.fold.shared_jobs,
        errors=errors(scored, seed=seed) if scored else None,
        failure=failure,
        converged=coefficients.converged if coefficients else False,
        message=coefficients.message if coefficients else failure,
        at_bound=coefficients_at_bound(coefficients) if coefficients else (),
        partitions=tuple(_partitions(scored, task.test_steps, seed)) if scored else (),
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


def _partitions(scored: Scored, steps: Steps, seed: int) -> Iterator[Partition]:
    for kind, labels in steps.labels.items():
        for name in np.unique(labels):
            part = errors(scored.where(labels == name), seed=seed)
            yield Partition.model_validate({"kind": kind, "name": str(name), "errors": part})
