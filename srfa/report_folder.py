"""A report made from a folder: a release, or wherever ``srfa validate`` put its files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from srfa.closed_loop_figure import CLOSED_LOOP_FIGURE, draw_closed_loop
from srfa.closed_loop_report import CLOSED_LOOP_FILE, ClosedLoopReport, read_closed_loop
from srfa.coefficients import read_coefficients
from srfa.errors import InputError
from srfa.fallback_file import read_fallbacks
from srfa.figures import draw_figures
from srfa.files import require_writable, write_text
from srfa.gate import GateDecision
from srfa.leaderboard import Leaderboard, read_leaderboard
from srfa.leaderboard_figure import LEADERBOARD_FIGURE, draw_leaderboard
from srfa.page import Page, to_html, to_markdown
from srfa.physics_report import read_physics
from srfa.release import COEFFICIENTS_FILE, HELD_OUT_FILE, LEADERBOARD_FILE, PHYSICS_FILE, REPORT_FILE, VERDICT_FILE
from srfa.report import Findings, report_page
from srfa.validation_report import read_reports


def write_report(folder: Path, out: Path) -> None:
    """Write a report of ``folder`` as ``out``: one self-contained ``.html``, or ``.md`` with its figures beside it.

    ``report.json`` must be there; ``coefficients.json``, ``verdict.json``, ``leaderboard.json``, ``physics.json``,
    ``closed_loop.json``, ``fallbacks.json`` and ``held_out.parquet`` add what they hold.

    Raises
    ------
    InputError
        A file is missing or cannot be used, ``out`` ends otherwise, or it cannot be written.
    """
    if out.suffix not in {".html", ".md"}:
        raise InputError(f"{out}: a report ends in .html or .md")
    require_writable(out)
    if out.suffix == ".md":
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, to_markdown(_page(folder, out.parent)))
        return
    with tempfile.TemporaryDirectory() as pictures:
        write_text(out, to_html(_page(folder, Path(pictures)), Path(pictures)))


def _page(folder: Path, pictures: Path) -> Page:
    coefficients, verdict, physics = folder / COEFFICIENTS_FILE, folder / VERDICT_FILE, folder / PHYSICS_FILE
    board = read_leaderboard(folder / LEADERBOARD_FILE) if (folder / LEADERBOARD_FILE).exists() else None
    loop = read_closed_loop(folder / CLOSED_LOOP_FILE) if (folder / CLOSED_LOOP_FILE).exists() else None
    return report_page(
        Findings(
            reports=read_reports(folder / REPORT_FILE),
            coefficients=read_coefficients(coefficients) if coefficients.exists() else None,
            decision=_decision(verdict) if verdict.exists() else None,
            figures=_figures(folder / HELD_OUT_FILE, pictures),
            physics=read_physics(physics) if physics.exists() else None,
            leaderboard=board,
            leaderboard_figure=_leaderboard_figure(board, pictures),
            closed_loop=loop,
            closed_loop_figure=_closed_loop_figure(loop, pictures),
            fallbacks=read_fallbacks(folder),
        )
    )


def _leaderboard_figure(board: Leaderboard | None, pictures: Path) -> str:
    if board is None:
        return ""
    draw_leaderboard(board, pictures / LEADERBOARD_FIGURE)
    return LEADERBOARD_FIGURE


def _closed_loop_figure(report: ClosedLoopReport | None, pictures: Path) -> str:
    if report is None or not report.replays:
        return ""
    draw_closed_loop(report, pictures / CLOSED_LOOP_FIGURE)
    return CLOSED_LOOP_FIGURE


def _decision(path: Path) -> GateDecision:
    try:
        return GateDecision.model_validate_json(path.read_text())
    except ValidationError as error:
        raise InputError(f"{path}: not a verdict ({error.errors()[0]['msg']}); run 'srfa gate' anew") from error


def _figures(held_out: Path, pictures: Path) -> tuple[str, ...]:
    if not held_out.exists():
        return ()
    try:
        return draw_figures(pq.read_table(held_out), pictures)
    except (pa.ArrowInvalid, KeyError) as error:
        raise InputError(f"{held_out}: no held-out predictions ({error}); write them with 'srfa validate'") from error
