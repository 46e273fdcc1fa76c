"""Flow ``train``: from observations to a release with its verdict; nothing is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prefect import flow

from srfa.catalog import Catalog, load_catalog
from srfa.coefficients import FitConfig
from srfa.errors import UsageError
from srfa.estimator_names import DEFAULT_ESTIMATOR
from srfa.estimators import estimator_named
from srfa.gate import Limits, load_limits
from srfa.specs import Skipped
from tasks import training
from tasks.campaign import THIS_MACHINE, Site
from tasks.ingest import JobData, stored_run
from tasks.stages import (
    check_physics,
    compare,
    fit,
    ingest_run,
    load_run,
    publish_release,
    record_jobs,
    record_verdict,
    replay_jobs,
    validate,
)
from tasks.store import TraceStore, open_store
from tasks.summary import RunSummary, concluded, require_measured, store_summary


@flow(name="train")
def train(
    observations: tuple[Path, ...] = (),
    run_id: str | None = None,
    store: str = "runs",
    limits: Path = Path("examples/gate-local.yaml"),
    estimator: str = DEFAULT_ESTIMATOR,
    site: Site = THIS_MACHINE,
) -> RunSummary:
    """Fit, validate, gate and publish from observation files or from a run in the store.

    Args:
        observations: Observation files (Parquet). Empty: take the run.
        run_id: A run in the store, whose traces are ingested anew. Empty: take the files.
        store: Where runs and releases lie: a folder or s3://bucket/prefix.
        limits: What the gate asks for, and which splits are validated.
        estimator: Name of the estimator.
        site: What differs between installations.
    """
    opened, catalog = open_store(store), load_catalog(site.hardware, site.models)
    request = TrainingRequest(estimator_named(estimator).name, load_limits(limits), site.out)
    opened.check()
    if bool(observations) == bool(run_id):
        raise UsageError("give either observation files or the run_id of a run in the store")
    if run_id is None:
        dataset = training.dataset_of_files(observations, catalog)
        return concluded(train_and_publish(opened, dataset, request))
    jobs, dataset = _dataset_of_run(opened, run_id, catalog)
    summary = train_and_publish(opened, dataset, request, run=Run(run_id, jobs))
    store_summary(opened, summary)
    return concluded(summary)


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """What to fit and by what to judge it, read and checked before anything runs."""

    estimator: str
    limits: Limits
    out: Path | None


@dataclass(frozen=True, slots=True)
class Run:
    """The run that observations come from."""

    run_id: str = ""
    jobs: tuple[JobData, ...] = ()
    skipped: tuple[Skipped, ...] = ()


def train_and_publish(
    store: TraceStore, dataset: training.Dataset, request: TrainingRequest, *, run: Run = Run()
) -> RunSummary:
    """Fit, validate on every split of the limits, compare, check physics, replay, judge, publish."""
    config = FitConfig()
    coefficients = fit(dataset, request.estimator, config)
    validations = [validate(dataset, request.estimator, split, config) for split in request.limits.splits]
    candidate = compare(training.with_validation(coefficients, validations), dataset)
    candidate = check_physics(candidate, dataset)
    candidate = replay_jobs(candidate, dataset, request.limits)
    decision = training.judge(candidate, request.limits)
    outcomes = tuple(data.outcome for data in run.jobs)
    release, report, latest = publish_release(
        store, candidate, decision, dataset, skipped=run.skipped, outcomes=outcomes, out=request.out
    )
    record_verdict(candidate.reports, report)
    return RunSummary(
        run_id=run.run_id,
        store_uri=store.uri,
        jobs=run.jobs,
        n_skipped=len(run.skipped),
        estimator=request.estimator,
        release_id=release.release_id,
        passed=decision.passed,
        latest=latest,
        broken=tuple(finding.sentence for finding in decision.broken),
        simulated=decision.simulated,
    )


def _dataset_of_run(store: TraceStore, run_id: str, catalog: Catalog) -> tuple[tuple[JobData, ...], training.Dataset]:
    jobs, measured = ingest_run(store, run_id, stored_run(store, run_id), catalog)
    record_jobs(jobs)
    require_measured(jobs)
    return jobs, load_run(store, run_id, jobs, measured)


if __name__ == "__main__":
    from flows.command_line import run_command, train_command

    run_command(train_command)
