"""Flow ``collect-and-train``, the main job: from ``matrix.yaml`` to gated coefficients.

``python -m flows.collect_and_train --help`` runs it in this process.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from prefect import flow

from flows.collect import measure_and_ingest
from flows.train import Run, TrainingRequest, train_and_publish
from srfa.estimator_names import DEFAULT_ESTIMATOR
from srfa.estimators import estimator_named
from srfa.gate import load_limits
from tasks.campaign import THIS_MACHINE, Site, prepare_campaign
from tasks.rehearsal import RehearsalSettings
from tasks.stages import load_run
from tasks.summary import RunSummary, concluded, store_summary


@flow(name="collect-and-train")
def collect_and_train(  # noqa: PLR0913, PLR0917 - one parameter a field of the run's form
    matrix: Path = Path("examples/local.yaml"),
    limits: Path = Path("examples/gate-local.yaml"),
    store: str = "runs",
    estimator: str = DEFAULT_ESTIMATOR,
    run_id: str | None = None,
    resume: bool = False,
    site: Site = THIS_MACHINE,
    rehearsal: RehearsalSettings | None = None,
) -> RunSummary:
    """Measure a matrix on real engines, fit a latency model, prove that it transfers, and publish it if it does.

    Args:
        matrix: The experiment: matrix.yaml.
        limits: What the gate asks for, and which splits are validated.
        store: Where traces, tables and releases lie: a folder or s3://bucket/prefix.
        estimator: Name of the estimator.
        run_id: Name of this run in the store. Empty: date, time and the content id of the jobs.
        resume: Go on with a run that is there; jobs that have a manifest are not measured again.
        site: What differs between installations: folders, Ray, the engine's interpreter.
        rehearsal: Simulate the engines instead of starting any; the release never becomes the latest. Empty: measure.
    """
    request = TrainingRequest(estimator_named(estimator).name, load_limits(limits), site.out)
    campaign = prepare_campaign(
        matrix, store, site, run_id=run_id, resume=resume, now=datetime.now(UTC), rehearsal=rehearsal
    )
    measured, catalog = measure_and_ingest(campaign)
    dataset = load_run(campaign.store, campaign.run_id, measured.jobs, catalog)
    run = Run(campaign.run_id, measured.jobs, campaign.expansion.skipped)
    summary = train_and_publish(campaign.store, dataset, request, run=run)
    store_summary(campaign.store, summary)
    return concluded(summary)


if __name__ == "__main__":
    from flows.command_line import collect_and_train_command, run_command

    run_command(collect_and_train_command)
