"""The stages of a run as Prefect tasks: what is retried, what it is called on screen. What they do is elsewhere."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pyarrow as pa
from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from srfa.catalog import Catalog
from srfa.closed_loop_page import headline
from srfa.coefficients import Coefficients, FitConfig
from srfa.errors import EngineError, SrfaError, StoreError
from srfa.folds import Split
from srfa.gate import GateDecision, Limits
from srfa.release import RELEASE_FILE, Release
from srfa.report import FOLD_HEADS, fold_rows
from srfa.run_tables import Tables
from srfa.specs import EngineGroup, JobOutcome, Skipped
from srfa.validate import CrossPrediction
from srfa.validation_report import ValidationReport
from tasks import training
from tasks.campaign import Campaign
from tasks.cluster import failed_group, run_group_on_ray
from tasks.ingest import (
    JobData,
    ingest_stored_job,
    measured_catalog,
    observations_key,
    store_table,
    stored_observations,
    stored_tables,
)
from tasks.progress import JobBoard, run_log
from tasks.publish import LatestRelease, move_latest, upload_release
from tasks.store import TraceStore
from tasks.summary import JOB_HEADS, job_rows

_PASSING: Final = frozenset({"store", "worker_lost"})
"""Failures that another attempt may not meet again; jobs that were measured meanwhile are not measured twice."""
_ATTEMPTS: Final = 2
_GROUP_NAME: Final = "measure {group.first.model} on {group.first.gpu}, group {group.group_id}"


def _store_error(task: Task[..., object], run: TaskRun, state: State[object]) -> bool:  # noqa: ARG001 - Prefect's signature
    """Retry what a store refused: it was reached when the run started, so the next attempt may succeed."""
    return isinstance(state.result(raise_on_failure=False), StoreError)


_RETRIES: Final = 3
_TOLD: Final = 10
"""Lines that the progress of replays takes in a log."""
_DELAYS_S: Final[list[float]] = [5, 20, 60]


@task(
    name="measure-group",
    task_run_name=_GROUP_NAME,
    cache_policy=NO_CACHE,
)
def measure_group(group: EngineGroup, campaign: Campaign, board: JobBoard) -> tuple[JobOutcome, ...]:
    """Measure the jobs of one engine group on the cluster; never raises for what happens to a job."""
    board.start(group)
    outcomes = measured_in_attempts(
        lambda: run_group_on_ray(group, campaign.request(group), campaign.site.cluster), attempts=_ATTEMPTS
    )
    board.tell(outcomes)
    return outcomes


def measured_in_attempts(measure: Callable[[], tuple[JobOutcome, ...]], *, attempts: int) -> tuple[JobOutcome, ...]:
    """Call ``measure`` until no job failed for a reason that passes, at most ``attempts`` times."""
    outcomes = measure()
    for _ in range(attempts - 1):
        if not any(outcome.reason in _PASSING for outcome in outcomes):
            break
        outcomes = measure()
    return outcomes


def lost_group(group: EngineGroup, run_id: str, error: BaseException) -> tuple[JobOutcome, ...]:
    """Return the outcomes of a group whose task itself failed: a fault of ours must not take other groups along."""
    message = f"the task of group {group.group_id} ended with {type(error).__name__}: {error}"
    return failed_group(group, run_id, EngineError("worker_lost", message))


@task(
    name="ingest",
    cache_policy=NO_CACHE,
    retries=_RETRIES,
    retry_delay_seconds=_DELAYS_S,
    retry_condition_fn=_store_error,
)
def ingest_run(
    store: TraceStore, run_id: str, jobs: Sequence[JobData], catalog: Catalog
) -> tuple[tuple[JobData, ...], Catalog]:
    """Ingest every measured job, store tables and observations; return what was found, and the measured catalogue.

    In order of job id, so that the same traces make the same observations, whatever order they were measured in.
    """
    log = run_log()
    measured = measured_catalog(store, jobs, catalog)
    found, observations = [], []
    for data in sorted(jobs, key=lambda one: one.outcome.job_id):
        checked, ingested = ingest_stored_job(store, data, measured, run_id)
        found.append(checked)
        if ingested is not None:
            observations.append(ingested.observations)
        if checked.gates or checked.outcome.reason == "data_gate":
            log.info("job %s: %s", checked.outcome.job_id, checked.gates or checked.outcome.message)
    if observations:
        store_table(store, observations_key(run_id), pa.concat_tables(observations))
    return tuple(found), measured


@task(
    name="load-observations",
    cache_policy=NO_CACHE,
    retries=_RETRIES,
    retry_delay_seconds=_DELAYS_S,
    retry_condition_fn=_store_error,
)
def load_run(store: TraceStore, run_id: str, jobs: Sequence[JobData], catalog: Catalog) -> training.Dataset:
    """Return what a fit learns from; only jobs that passed their data gates are in it."""
    ids = [data.outcome.job_id for data in jobs if data.outcome.status == "measured"]
    tables = Tables(*(stored_tables(store, name, run_id, ids) for name in ("jobs", "steps", "requests")))
    key = observations_key(run_id)
    hashes = {key: hashlib.sha256(store.get(key)).hexdigest()}
    return training.possible_dataset(training.Dataset(stored_observations(store, run_id), catalog, hashes, tables))


@task(name="fit", task_run_name="fit {estimator}", cache_policy=NO_CACHE)
def fit(dataset: training.Dataset, estimator: str, config: FitConfig) -> Coefficients:
    """Fit the estimator to all steps, and the models of requests beside it; those are no condition for a release."""
    coefficients = training.fit(dataset, estimator, config)
    run_log().info("%s: %d steps of %d jobs: %s", estimator, *_size(dataset), coefficients.message)
    outside = training.fit_requests(dataset, config)
    for name, reason in outside.refusals.items():
        run_log().warning("%s is left out: %s", name, reason)
    return coefficients.model_copy(update={"blocks": {**coefficients.blocks, **outside.blocks}})


@task(name="validate", task_run_name="validate {split}", cache_policy=NO_CACHE)
def validate(dataset: training.Dataset, estimator: str, split: Split, config: FitConfig) -> CrossPrediction:
    """Predict every group of the split by a fit on the others."""
    validation = training.validate(dataset, estimator, split, config)
    for fold in validation.report.folds:
        found = f"MAPE {fold.errors.mape_pct:.1f} %" if fold.errors else fold.failure
        run_log().info("%s, %s held out: %s", split, fold.held_out, found)
    return validation


@task(name="compare", cache_policy=NO_CACHE)
def compare(candidate: training.Candidate, dataset: training.Dataset) -> training.Candidate:
    """Set the candidate beside the yardsticks, on the folds it was validated on; that is no condition for a release."""
    try:
        compared = training.with_leaderboard(candidate, dataset)
    except SrfaError as error:
        run_log().warning("the leaderboard is left out: %s", error)
        return candidate
    for row in compared.leaderboard.overall if compared.leaderboard else ():
        run_log().info("%s: mean rank %.1f on %d splits", row.estimator, row.mean_rank, row.n_splits)
    return compared


@task(name="closed-loop", cache_policy=NO_CACHE)
def replay_jobs(candidate: training.Candidate, dataset: training.Dataset, limits: Limits) -> training.Candidate:
    """Replay every measured job through the simulator, and search what stands in where the limit is missed."""
    log = run_log()

    def told(done: int, total: int) -> None:
        if done == total or done * _TOLD // total > (done - 1) * _TOLD // total:
            log.info("replayed %d of %d", done, total)

    replayed = training.with_closed_loop(candidate, dataset, progress=told)
    if replayed.closed_loop is not None:
        log.info("closed loop: %s", headline(replayed.closed_loop))
        for lost in replayed.closed_loop.lost:
            log.warning("job %s was not replayed: %s", lost.job_id, lost.reason)
    searched = training.with_fallbacks(replayed, dataset, limits)
    for one in (*(found.sentence for found in searched.fallbacks.fallbacks), *searched.fallbacks.declined):
        log.warning("fallback: %s", one)
    return searched


@task(name="check-physics", cache_policy=NO_CACHE)
def check_physics(candidate: training.Candidate, dataset: training.Dataset) -> training.Candidate:
    """Ask the fit for batches nobody measured and compare its answers with physics."""
    checked = training.with_physics(candidate, dataset)
    for finding in checked.physics.broken if checked.physics else ():
        run_log().warning("%s", finding.sentence)
    return checked


@task(
    name="publish",
    cache_policy=NO_CACHE,
    retries=_RETRIES,
    retry_delay_seconds=_DELAYS_S,
    retry_condition_fn=_store_error,
)
def publish_release(
    store: TraceStore,
    candidate: training.Candidate,
    decision: GateDecision,
    dataset: training.Dataset,
    *,
    skipped: tuple[Skipped, ...] = (),
    outcomes: tuple[JobOutcome, ...] = (),
    out: Path | None = None,
) -> tuple[Release, str, bool]:
    """Store the release; only one that passed becomes the latest, and none of a rehearsal.

    Returns
    -------
    tuple
        The release, its report, and whether it became the latest.
    """
    with tempfile.TemporaryDirectory(prefix="srfa-") as folder:
        release = training.write_release(candidate, decision, dataset, Path(folder), skipped=skipped, outcomes=outcomes)
        written = Path(folder) / release.release_id
        upload_release(written, release.release_id, store, last=RELEASE_FILE)
        if out is not None:
            shutil.copytree(written, out / release.release_id, dirs_exist_ok=True)
        report = (written / "report.md").read_text()
    may_lead = release.passed and not release.provenance.simulated_versions
    return release, report, may_lead and move_latest(store, _pointer(release))


@task(name="record-jobs", cache_policy=NO_CACHE)
def record_jobs(jobs: tuple[JobData, ...]) -> None:
    """Show every job with status and reason on the run's page."""
    create_table_artifact(
        table=_records(JOB_HEADS, job_rows(jobs)), key="jobs", description="Jobs of the run, failed ones first."
    )


@task(name="record-verdict", cache_policy=NO_CACHE)
def record_verdict(reports: Sequence[ValidationReport], report: str) -> None:
    """Show the folds and the whole report on the run's page."""
    create_table_artifact(table=fold_table(reports), key="folds", description="Every fold of every split.")
    create_markdown_artifact(markdown=report, key="report", description="The release's report.")


def fold_table(reports: Sequence[ValidationReport]) -> list[dict[str, str]]:
    """Return one row a fold: its split, then the columns of the report."""
    rows = [(report.split, *row) for report in reports for row in fold_rows(report)]
    return _records(("split", *FOLD_HEADS), rows)


def _records(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[dict[str, str]]:
    return [dict(zip(heads, row, strict=True)) for row in rows]


def _pointer(release: Release) -> LatestRelease:
    return LatestRelease(release_id=release.release_id, published_at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")


def _size(dataset: training.Dataset) -> tuple[int, int]:
    return dataset.observations.n_steps, len(set(dataset.observations.job_ids))
