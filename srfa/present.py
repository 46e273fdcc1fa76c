"""What the command line shows: tables and JSON on stdout, progress and words on stderr."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from srfa.leaderboard_page import LEGEND, SUMMARY_LEGEND, columns_of, left_out_grid, split_grid, summary_grid
from srfa.microbenchmark import FIGURE_UNITS
from srfa.report import (
    COEFFICIENT_HEADS,
    COVERAGE_HEADS,
    FOLD_HEADS,
    coefficient_rows,
    coverage_rows,
    coverage_title,
    fold_rows,
)

if TYPE_CHECKING:
    from srfa.coefficients import Coefficients
    from srfa.gate import GateDecision
    from srfa.job_folders import IngestedFolder
    from srfa.leaderboard import Leaderboard
    from srfa.matrix import Expansion
    from srfa.metrics import Errors
    from srfa.plan import Plan
    from srfa.specs import BenchmarkJob, Microbenchmark
    from srfa.validate import Progress as Callback
    from srfa.validation_report import ValidationReport


_WIDTH_OF_A_PIPE = 200
"""Columns a table may take where nobody looks at a terminal: enough that nothing is cut."""


def show_json(document: object) -> None:
    """Write one JSON document to stdout."""
    sys.stdout.write(json.dumps(_plain(document), indent=1) + "\n")


def say(text: str) -> None:
    """Write a line for people to stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def show_line(text: str) -> None:
    """Write a line of a result to stdout."""
    sys.stdout.write(text + "\n")


def show_table(heads: Iterable[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Write a table to stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE)
    table = Table(title=title or None, title_justify="left")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(_verbatim(cell) for cell in row))
    console.print(table)


@contextmanager
def progress(what: str) -> Iterator[Callback]:
    """Show a bar on stderr while the block runs; nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def show_expansion(expansion: Expansion, *, explain: bool) -> None:
    """Show the jobs of a matrix, and what was skipped: counts by reason, or cell by cell."""
    show_table(_JOB_HEADS, [_job_row(job) for job in expansion.jobs], f"{len(expansion.jobs)} jobs")
    if explain:
        rows = [(*_job_row(skip.job)[1:], skip.reason) for skip in expansion.skipped]
        show_table((*_JOB_HEADS[1:], "skipped because"), rows, f"{len(rows)} cells skipped")
    elif expansion.skipped:
        reasons = Counter(skip.reason for skip in expansion.skipped)
        rows = [(str(count), reason) for reason, count in reasons.most_common()]
        show_table(("cells", "skipped because (--explain lists them)"), rows)


def expansion_json(expansion: Expansion) -> dict[str, object]:
    """Return an expansion as plain values, jobs with their ids."""
    return {
        "jobs": [_job_json(job) for job in expansion.jobs],
        "skipped": [{"reason": skip.reason, "job": _job_json(skip.job)} for skip in expansion.skipped],
    }


def show_plan(plan: Plan) -> None:
    """Show what a campaign takes, by type of GPU and in all."""
    rows = [
        (row.gpu, str(row.server_starts), str(row.jobs), f"{row.gpu_hours:.1f}", f"{row.eta_h:.1f}", _money(row.cost))
        for row in plan.rows
    ]
    total = (str(plan.server_starts), str(plan.jobs), f"{plan.gpu_hours:.1f}", f"{plan.eta_h:.1f}", _money(plan.cost))
    heads = ("GPU", "server starts", "jobs", "GPU-hours", "hours to wait", "cost")
    show_table(heads, [*rows, ("all", *total)], f"{plan.skipped} cells skipped")


def plan_json(plan: Plan) -> dict[str, object]:
    """Return a plan as plain values."""
    names = ("server_starts", "jobs", "gpu_hours", "eta_h", "cost", "skipped")
    return {"gpus": [asdict(row) for row in plan.rows], **{name: getattr(plan, name) for name in names}}


def show_ingested(jobs: Sequence[IngestedFolder]) -> None:
    """Show what became of each job's folder."""
    rows = [(job.run_id, job.job_id, str(job.n_steps), str(job.n_requests), job.problem or "kept") for job in jobs]
    show_table(("run", "job", "steps", "requests", "data gates"), rows)


def show_microbenchmark(measured: Microbenchmark) -> None:
    """Show each figure with how far its repeats lie apart, and why one is missing."""
    rows = []
    for figure, unit in FIGURE_UNITS.items():
        value, spread = getattr(measured, figure), measured.spread_ratio.get(figure)
        shown = ("-", "") if value is None else (f"{value:.4g}", unit)
        rows.append((figure, *shown, "" if spread is None else f"{100 * spread:.1f}", measured.notes.get(figure, "")))
    threads = f", {measured.threads} thread(s)" if measured.kind == "cpu" and measured.threads else ""
    show_table(("figure", "value", "unit", "spread %", "note"), rows, f"{measured.gpu}, {measured.dtype}{threads}")


def show_coefficients(coefficients: Coefficients) -> None:
    """Show a fit: its coefficients with units, its constants, how it ended."""
    ended = "converged" if coefficients.converged else "did NOT converge"
    origin = coefficients.provenance
    title = f"{coefficients.estimator}: {ended} on {origin.n_steps} steps, {origin.transfer}"
    show_table(COEFFICIENT_HEADS, coefficient_rows(coefficients), title)
    facts = {**coefficients.constants, **coefficients.chosen}
    show_table(("constant or chosen setting", "value"), [(name, f"{value:.6g}") for name, value in facts.items()])


def show_errors(found: Errors) -> None:
    """Show how far predictions are from what was measured."""
    values = (
        f"{found.mape_pct:.1f}",
        f"{found.median_ape_pct:.1f}",
        f"{found.p90_ape_pct:.1f}",
        f"{found.bias_pct:+.1f}",
    )
    heads = ("steps", "jobs", "MAPE %", "median %", "P90 %", "bias %")
    show_table(heads, [(str(found.n_steps), str(found.n_jobs), *values)])


def show_report(report: ValidationReport) -> None:
    """Show the folds of one split, or why there are none."""
    if report.impossible:
        say(f"{report.split}: not possible: {report.impossible}")
        return
    show_table(FOLD_HEADS, fold_rows(report), f"{report.estimator}, {report.split}, {report.transfer}")
    if report.coverage:
        show_table(COVERAGE_HEADS, coverage_rows(report.coverage), coverage_title(report.coverage))


def show_leaderboard(board: Leaderboard) -> None:
    """Show every split of every data set, then what is not on the board and why, and the summary last."""
    estimators = columns_of(board)
    for dataset in board.datasets:
        for split in dataset.splits:
            if split.groups:
                grid = split_grid(split, estimators)
                show_table(grid.heads, grid.rows, f"{dataset.name}, {split.split}")
    if (left_out := left_out_grid(board)).rows:
        show_table(left_out.heads, left_out.rows, "not on the board")
    if (summary := summary_grid(board)).rows:
        say(LEGEND)
        say(SUMMARY_LEGEND)
        show_table(summary.heads, summary.rows, "summary")


def show_decision(decision: GateDecision) -> None:
    """Show the rules that are broken, those that fail the gate last, and how many of all hold."""
    verdict = "gate passed" if decision.passed else "gate FAILED"
    n_rules, told = len(decision.findings), decision.told
    title = f"{verdict}: {n_rules - len(told)} of {n_rules} rules hold (--json lists all)"
    if told:
        rows = [("told" if one.tolerated else "BROKEN", one.rule, one.sentence) for one in told]
        show_table(("outcome", "rule", "finding"), rows, title)
    else:
        show_line(title)


_JOB_HEADS = ("job", "model", "GPU", "TP", "DP", "EP", "workload", "seed", "repeat")


def _job_row(job: BenchmarkJob) -> tuple[str, ...]:
    engine = job.engine
    parallel = (engine.tensor_parallel_size, engine.data_parallel_size, engine.expert_parallel_size)
    return (job.job_id, job.model, job.gpu, *map(str, parallel), job.workload.name, str(job.seed), str(job.repeat))


def _job_json(job: BenchmarkJob) -> dict[str, object]:
    return {"job_id": job.job_id, "group_id": job.group_id, **job.model_dump(mode="json")}


def _money(cost: float | None) -> str:
    return "" if cost is None else f"{cost:.2f}"


def _verbatim(cell: str) -> str:
    """Keep rich from reading ``[...]`` as markup."""
    return cell.replace("[", "\\[")


def _plain(document: object) -> object:
    if isinstance(document, BaseModel):
        return document.model_dump(mode="json")
    if isinstance(document, tuple | list):
        return [_plain(one) for one in document]
    return document
