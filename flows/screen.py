"""What a run shows at its end: jobs that failed, the folds, where the release lies, the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.table import Table

from srfa.validation_report import ReportFile, ValidationReport
from tasks.publish import release_prefix
from tasks.stages import fold_table
from tasks.store import TraceStore
from tasks.summary import JOB_HEADS, RunSummary, job_rows


def show_summary(summary: RunSummary, store: TraceStore, console: Console) -> None:
    """Print jobs, folds, release and verdict."""
    if summary.jobs:
        console.print(_table("Jobs", JOB_HEADS, job_rows(summary.jobs)))
        console.print(_counts(summary))
    if summary.release_id is None:
        return
    folds = fold_table(_reports(store, summary.release_id))
    console.print(
        _table("Folds: each row was predicted by a fit that never saw it", tuple(folds[0]) if folds else (), folds)
    )
    console.print(f"release: {place(store.uri)}/{release_prefix(summary.release_id)}", soft_wrap=True)
    _show_verdict(summary, console)


def place(uri: str) -> str:
    """Return a store's address the way people write it: a local folder as a path, relative where it can be."""
    parts = urlsplit(uri)
    if parts.scheme != "file":
        return uri.rstrip("/")
    folder = Path(unquote(parts.path))
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _show_verdict(summary: RunSummary, console: Console) -> None:
    if summary.passed:
        pointer = "it is the latest now" if summary.latest else "a newer one stays the latest"
        console.print(f"[bold green]verdict: passed[/]; {pointer}", soft_wrap=True)
        return
    console.print("[bold red]verdict: failed[/]; the latest release stays what it was", soft_wrap=True)
    for sentence in summary.broken:
        console.print(f"  {sentence}", soft_wrap=True, markup=False)


def _counts(summary: RunSummary) -> str:
    usable = sum(data.n_observations for data in summary.jobs)
    conserved = sum(bool(data.tokens_conserved) for data in summary.jobs)
    ingested = sum(data.tokens_conserved is not None for data in summary.jobs)
    return (
        f"run {summary.run_id}: {len(summary.jobs) - len(summary.failed)} of {len(summary.jobs)} jobs measured,"
        f" {summary.n_skipped} cells skipped, {usable} usable steps; tokens conserved in {conserved} of {ingested} jobs"
    )


def _reports(store: TraceStore, release_id: str) -> Sequence[ValidationReport]:
    return ReportFile.model_validate_json(store.get(f"{release_prefix(release_id)}/report.json")).reports


def _table(
    title: str, heads: Iterable[str], rows: Iterable[dict[str, str | int | float]] | list[dict[str, str]]
) -> Table:
    table = Table(*heads, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table
