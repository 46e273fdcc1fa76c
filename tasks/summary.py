"""How a run ended: every job, the release, the verdict; as data, as artifacts, and as the error it ends with."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from srfa.errors import GateFailed, IncompleteError, NothingMeasuredError, SrfaError
from srfa.specs import Spec
from tasks.ingest import JobData
from tasks.progress import server_text
from tasks.store import TraceStore

JOB_HEADS = (
    "job",
    "model",
    "GPU",
    "server",
    "workload",
    "status",
    "steps",
    "usable",
    "requests",
    "seconds",
    "tokens conserved",
    "reason",
    "message",
)


class RunSummary(Spec):
    """What ``summary.json`` of a run says.

    Parameters
    ----------
    run_id
        Empty where observations came from files.
    n_skipped
        Cells of the matrix that were not run.
    broken
        A sentence for each rule of the gate that says no.
    simulated
        Whether it was a rehearsal: its engines were simulated, and its release never is the latest.
    """

    schema_version: Literal[1] = 1
    run_id: str = ""
    store_uri: str
    jobs: tuple[JobData, ...] = ()
    n_skipped: int = 0
    estimator: str = ""
    release_id: str | None = None
    passed: bool | None = None
    latest: bool = False
    broken: tuple[str, ...] = ()
    simulated: bool = False

    @property
    def failed(self) -> tuple[JobData, ...]:
        """The jobs that failed."""
        return tuple(data for data in self.jobs if data.outcome.status == "failed")

    @property
    def error(self) -> SrfaError | None:
        """The error this run ends with, None where all is well; the verdict comes before missing jobs."""
        if self.passed is False:
            rules = "\n".join(f"  {sentence}" for sentence in self.broken)
            return GateFailed(f"gate failed, release {self.release_id} is not the latest:\n{rules}")
        if self.failed:
            return IncompleteError(f"{len(self.failed)} of {len(self.jobs)} jobs failed: {failures(self.failed)}")
        return None


def concluded(summary: RunSummary) -> RunSummary:
    """Return the summary of a run that ended well.

    Raises
    ------
    GateFailed
        The verdict is no.
    IncompleteError
        The verdict is yes, or there is none, and jobs failed.
    """
    if summary.error is not None:
        raise summary.error
    return summary


def require_measured(jobs: tuple[JobData, ...]) -> None:
    """Do nothing where a job left usable steps.

    Raises
    ------
    NothingMeasuredError
        None did; the text has the reasons.
    """
    if not any(data.outcome.status == "measured" for data in jobs):
        raise NothingMeasuredError(f"none of {len(jobs)} jobs left a usable step: {failures(jobs)}")


def failures(jobs: tuple[JobData, ...]) -> str:
    """Return the reasons of failed jobs with their counts, and what the first of them says."""
    reasons = Counter(str(data.outcome.reason) for data in jobs)
    counts = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    return f"{counts}; the first: {jobs[0].outcome.message}" if jobs else "there was none"


def job_rows(jobs: tuple[JobData, ...]) -> list[tuple[str, ...]]:
    """Return one row of text a job under :data:`JOB_HEADS`, failed ones first."""
    return [_job_row(data) for data in sorted(jobs, key=lambda data: data.outcome.status)]


def summary_key(run_id: str) -> str:
    """Return where a run's summary lies in the store."""
    return f"traces/run_id={run_id}/summary.json"


def store_summary(store: TraceStore, summary: RunSummary) -> None:
    """Keep the summary beside the run's traces; a later part of the same run replaces it."""
    store.put(summary_key(summary.run_id), (summary.model_dump_json(indent=1) + "\n").encode())


def read_summary(store: TraceStore, run_id: str) -> RunSummary:
    """Return what :func:`store_summary` wrote."""
    return RunSummary.model_validate_json(store.get(summary_key(run_id)))


def _job_row(data: JobData) -> tuple[str, ...]:
    outcome, job = data.outcome, data.job
    return (
        outcome.job_id,
        *((job.model, job.gpu, server_text(job), job.workload.name) if job else ("", "", "", "")),
        outcome.status,
        str(outcome.n_steps),
        str(data.n_observations),
        str(outcome.n_requests),
        f"{outcome.wall_s:.1f}",
        {True: "yes", False: "NO", None: "-"}[data.tokens_conserved],
        outcome.reason or "",
        outcome.message,
    )
