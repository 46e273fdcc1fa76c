"""What a run shows at its end: its jobs, the folds, where the release lies, the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from rich.console import Console

from srfa.present import show_report, show_table
from srfa.validation_report import ReportFile, ValidationReport
from tasks.publish import release_prefix
from tasks.store import TraceStore
from tasks.summary import JOB_HEADS, RunSummary, job_rows

_S_PER_HOUR: Final = 3600.0


def show_summary(summary: RunSummary, store: TraceStore) -> None:
    """Print jobs, folds, release and verdict to stdout."""
    console = Console(highlight=False, soft_wrap=True)
    if summary.jobs:
        show_table(JOB_HEADS[:-1], [row[:-1] for row in job_rows(summary.jobs)], "jobs, failed ones first")
        for data in summary.failed:
            console.print(f"  {data.outcome.job_id}: {data.outcome.message}", markup=False)
        console.print(_counts(summary))
    if summary.release_id is None:
        return
    for report in _reports(store, summary.release_id):
        show_report(report)
    console.print(f"release: {place(store.uri)}/{release_prefix(summary.release_id)}", markup=False)
    _show_verdict(summary, console)


def place(uri: str) -> str:
    """Return a store's address the way people write it: a local folder as a path, relative where it can be."""
    parts = urlsplit(uri)
    if parts.scheme != "file":
        return uri.rstrip("/")
    folder, here = Path(unquote(parts.path)), Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _show_verdict(summary: RunSummary, console: Console) -> None:
    if summary.passed:
        console.print(f"[bold green]verdict: passed[/]; {_pointer(summary)}")
    else:
        console.print("[bold red]verdict: failed[/]; the latest release stays what it was")


def _pointer(summary: RunSummary) -> str:
    if summary.simulated:
        return "it is a rehearsal, which is never the latest"
    return "it is the latest now" if summary.latest else "a newer one stays the latest"


def _counts(summary: RunSummary) -> str:
    usable = sum(data.n_observations for data in summary.jobs)
    conserved = sum(bool(data.tokens_conserved) for data in summary.jobs)
    ingested = sum(data.tokens_conserved is not None for data in summary.jobs)
    done = "rehearsed (simulated engines)" if summary.simulated else "measured"
    load = f"; measured it takes {_gpu_hours(summary):.2f} GPU hours of load" if summary.simulated else ""
    tokens = f"tokens conserved in {conserved} of {ingested} jobs"
    return (
        f"run {summary.run_id}: {len(summary.jobs) - len(summary.failed)} of {len(summary.jobs)} jobs {done},"
        f" {summary.n_skipped} cells skipped, {usable} usable steps; {tokens}{load}"
    )


def _gpu_hours(summary: RunSummary) -> float:
    """Return what the jobs occupy while they are under load; server starts come on top."""
    return sum(data.outcome.wall_s * data.job.engine.gpu_count for data in summary.jobs if data.job) / _S_PER_HOUR


def _reports(store: TraceStore, release_id: str) -> Sequence[ValidationReport]:
    return ReportFile.model_validate_json(store.get(f"{release_prefix(release_id)}/report.json")).reports
