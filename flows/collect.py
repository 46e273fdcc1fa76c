"""Flow ``collect``: from ``matrix.yaml`` to traces, tables and observations in the store; nothing is fitted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from prefect import flow

from srfa.catalog import Catalog
from srfa.specs import EngineGroup, JobOutcome
from tasks.campaign import THIS_MACHINE, Campaign, Site, prepare_campaign
from tasks.cluster import connected
from tasks.ingest import JobData
from tasks.progress import JobBoard, run_log, watched
from tasks.rehearsal import RehearsalSettings, remarks
from tasks.stages import ingest_run, lost_group, measure_group, record_jobs
from tasks.summary import RunSummary, concluded, require_measured, store_summary


@flow(name="collect")
def collect(
    matrix: Path = Path("examples/local.yaml"),
    store: str = "runs",
    run_id: str | None = None,
    resume: bool = False,
    site: Site = THIS_MACHINE,
    rehearsal: RehearsalSettings | None = None,
) -> RunSummary:
    """Measure every job of a matrix and ingest its traces.

    Args:
        matrix: The experiment: matrix.yaml.
        store: Where traces, tables and releases lie: a folder or s3://bucket/prefix.
        run_id: Name of this run in the store. Empty: date, time and the content id of the jobs.
        resume: Go on with a run that is there; jobs that have a manifest are not measured again.
        site: What differs between installations.
        rehearsal: Simulate the engines instead of starting any. Empty: measure.
    """
    campaign = prepare_campaign(
        matrix, store, site, run_id=run_id, resume=resume, now=datetime.now(UTC), rehearsal=rehearsal
    )
    summary, _ = measure_and_ingest(campaign)
    return concluded(summary)


def measure_and_ingest(campaign: Campaign) -> tuple[RunSummary, Catalog]:
    """Run the campaign's groups, ingest what they left, show and keep how the jobs ended.

    Returns
    -------
    tuple
        The summary so far, and the catalogue with the figures that profiles had where they were measured.

    Raises
    ------
    NothingMeasuredError
        No job left a usable step.
    """
    log, n_jobs, n_groups = run_log(), len(campaign.jobs), len(campaign.groups)
    log.info("run %s: %d jobs on %d servers, into %s", campaign.run_id, n_jobs, n_groups, campaign.store_uri)
    for remark in remarks(campaign.rehearsal):
        log.warning("%s", remark)
    outcomes = measure_groups(campaign)
    by_id = {job.job_id: job for job in campaign.jobs}
    collected = [JobData(outcome=outcome, job=by_id[outcome.job_id]) for outcome in outcomes]
    jobs, catalog = ingest_run(campaign.store, campaign.run_id, collected, campaign.catalog)
    record_jobs(jobs)
    n_skipped = len(campaign.expansion.skipped)
    summary = RunSummary(
        run_id=campaign.run_id,
        store_uri=campaign.store_uri,
        jobs=jobs,
        n_skipped=n_skipped,
        simulated=campaign.rehearsal is not None,
    )
    store_summary(campaign.store, summary)
    require_measured(jobs)
    return summary, catalog


def measure_groups(campaign: Campaign) -> tuple[JobOutcome, ...]:
    """Run all groups at once, a thread each; the cluster's resources limit how many run."""
    board = JobBoard(campaign.jobs, run_log())
    with connected(campaign.site.cluster, campaign.gpus), watched(campaign.store, campaign.run_id, board):
        futures = [(group, measure_group.submit(group, campaign, board)) for group in campaign.groups]
        ended = [(group, future.result(raise_on_failure=False)) for group, future in futures]
    return tuple(outcome for group, result in ended for outcome in _outcomes(group, campaign.run_id, result))


def _outcomes(
    group: EngineGroup, run_id: str, result: tuple[JobOutcome, ...] | BaseException
) -> tuple[JobOutcome, ...]:
    return lost_group(group, run_id, result) if isinstance(result, BaseException) else result


if __name__ == "__main__":
    from flows.command_line import collect_command, run_command

    run_command(collect_command)
