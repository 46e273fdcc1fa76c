"""A release: one immutable folder with coefficients, their proof, and what is needed to use and repeat them.

It is written beside its place and renamed into it, so a release is there in full or not at all. This module knows
local folders only; stores and the pointer to the latest release belong to the tasks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from srfa.blis import BlisProjection
from srfa.catalog import Catalog
from srfa.closed_loop_figure import CLOSED_LOOP_FIGURE, draw_closed_loop
from srfa.closed_loop_report import CLOSED_LOOP_FILE, ClosedLoopReport, write_closed_loop
from srfa.coefficients import Coefficients, Provenance, write_coefficients
from srfa.export import projection_of, write_blis
from srfa.fallback_file import FALLBACKS_FILE, Fallback, write_fallbacks
from srfa.figures import draw_figures
from srfa.gate import GateDecision
from srfa.leaderboard import Leaderboard, write_leaderboard
from srfa.leaderboard_figure import LEADERBOARD_FIGURE, draw_leaderboard
from srfa.observations import Observations
from srfa.page import to_markdown
from srfa.physics_report import PhysicsReport, write_physics
from srfa.report import Findings, report_page
from srfa.specs import JobOutcome, Skipped, Spec, content_id
from srfa.validation_report import ValidationReport, write_reports

RELEASE_FILE, VERDICT_FILE = "provenance.json", "verdict.json"
HELD_OUT_FILE, REPORT_FILE, COEFFICIENTS_FILE = "held_out.parquet", "report.json", "coefficients.json"
LEADERBOARD_FILE, PHYSICS_FILE = "leaderboard.json", "physics.json"


@dataclass(frozen=True, slots=True)
class Material:
    """What a release is made of.

    Parameters
    ----------
    observations, catalog
        What the coefficients were fitted to, and the facts they were fitted with.
    held_out
        Held-out predictions of the split that the figures show; None draws none.
    requests
        The table of requests, for the alphas of the BLIS export.
    physics
        What a check of physics found; None where none was made.
    leaderboard
        The estimator beside others on the same folds.
    closed_loop, fallbacks
        The replays of measured jobs, and what stands in for the estimator where they miss their limit.
    """

    coefficients: Coefficients
    reports: tuple[ValidationReport, ...]
    decision: GateDecision
    observations: Observations
    catalog: Catalog
    held_out: pa.Table | None = None
    requests: pa.Table | None = None
    physics: PhysicsReport | None = None
    skipped: tuple[Skipped, ...] = ()
    outcomes: tuple[JobOutcome, ...] = ()
    leaderboard: Leaderboard | None = None
    closed_loop: ClosedLoopReport | None = None
    fallbacks: tuple[Fallback, ...] = ()


class Release(Spec):
    """What ``provenance.json`` of a release says.

    Parameters
    ----------
    release_id
        First 12 hex digits of sha256 over coefficients, data hashes and verdict.
    files
        sha256 of every other file of the release, by its path inside it.
    """

    schema_version: int = 1
    release_id: str
    estimator: str
    passed: bool
    provenance: Provenance
    files: dict[str, str]


def release_id(material: Material) -> str:
    """Return the release's name: equal inputs give an equal one, whenever they are published."""
    content: dict[str, object] = {
        "coefficients": material.coefficients.model_dump(mode="json"),
        "data_sha256": material.coefficients.provenance.data_sha256,
        "verdict": material.decision.model_dump(mode="json"),
    }
    if material.fallbacks:
        content["fallbacks"] = [one.model_dump(mode="json") for one in material.fallbacks]
    return content_id(content)


def publish(material: Material, releases: Path) -> Release:
    """Write ``releases/<release_id>/`` and return what it says of itself; one that is there already stays untouched.

    The folder holds ``coefficients.json``, ``report.json`` (readable as a baseline by the gate), ``report.md`` with
    its figures, ``verdict.json``, ``leaderboard.json``, ``physics.json``, ``closed_loop.json``, ``fallbacks.json``
    (where there are any), ``held_out.parquet``, ``hardware/`` and ``models/`` with the facts that were used,
    ``export/`` with the BLIS files, and ``provenance.json``.

    Raises
    ------
    FitError
        The projection for BLIS did not converge.
    """
    folder = releases / release_id(material)
    if folder.is_dir():
        return read_release(folder)
    releases.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=releases))
    try:
        _write(material, partial, folder.name)
        partial.chmod(0o755)
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another writer was faster with the same content
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_release(folder)


def read_release(folder: Path) -> Release:
    """Read ``provenance.json`` of a release."""
    return Release.model_validate_json((folder / RELEASE_FILE).read_text())


def _write(material: Material, folder: Path, name: str) -> None:
    coefficients, provenance = material.coefficients, material.coefficients.provenance
    write_coefficients(coefficients, folder / COEFFICIENTS_FILE)
    write_reports(material.reports, folder / REPORT_FILE)
    (folder / VERDICT_FILE).write_text(material.decision.model_dump_json(indent=1) + "\n")
    if material.physics is not None:
        write_physics(material.physics, folder / PHYSICS_FILE)
    if material.fallbacks:
        write_fallbacks(coefficients.estimator, material.fallbacks, folder / FALLBACKS_FILE)
    _write_facts(material, folder)
    projection = projection_of(coefficients, material.observations, material.catalog, material.requests)
    gpus = [material.catalog.resolve_gpu(one) for one in _used(material, "gpu")]
    write_blis(projection, provenance, gpus, folder / "export")
    _write_report(material, projection, folder)
    release = Release(
        release_id=name,
        estimator=coefficients.estimator,
        passed=material.decision.passed,
        provenance=provenance,
        files=_hashes(folder),
    )
    (folder / RELEASE_FILE).write_text(release.model_dump_json(indent=1) + "\n")


def _write_report(material: Material, projection: BlisProjection, folder: Path) -> None:
    figures: tuple[str, ...] = ()
    if material.held_out is not None:
        figures = draw_figures(material.held_out, folder)
        pq.write_table(material.held_out, folder / HELD_OUT_FILE, compression="zstd")
    findings = Findings(
        material.reports,
        material.coefficients,
        material.decision,
        projection,
        material.skipped,
        material.outcomes,
        figures,
        physics=material.physics,
        leaderboard=material.leaderboard,
        leaderboard_figure=_write_leaderboard(material.leaderboard, folder),
        closed_loop=material.closed_loop,
        closed_loop_figure=_write_closed_loop(material.closed_loop, folder),
        fallbacks=material.fallbacks,
    )
    (folder / "report.md").write_text(to_markdown(report_page(findings)))


def _write_leaderboard(board: Leaderboard | None, folder: Path) -> str:
    """Write the leaderboard, where there is one, and return the name of its picture."""
    if board is None:
        return ""
    write_leaderboard(board, folder / LEADERBOARD_FILE)
    draw_leaderboard(board, folder / LEADERBOARD_FIGURE)
    return LEADERBOARD_FIGURE


def _write_closed_loop(report: ClosedLoopReport | None, folder: Path) -> str:
    """Write the closed loop, where there is one, and return the name of its picture; none without a replay."""
    if report is None:
        return ""
    write_closed_loop(report, folder / CLOSED_LOOP_FILE)
    if not report.replays:
        return ""
    draw_closed_loop(report, folder / CLOSED_LOOP_FIGURE)
    return CLOSED_LOOP_FIGURE


def _write_facts(material: Material, folder: Path) -> None:
    """Write the facts of the GPUs and models that were used, so that ``load_catalog`` reads them back."""
    for name in _used(material, "gpu"):
        spec = material.catalog.resolve_gpu(name)
        _write_json(folder / "hardware" / f"{spec.name}.json", spec.model_dump(mode="json"))
    for name in _used(material, "model"):
        model = material.catalog.resolve_model(name).name
        _write_json(folder / "models" / model / "config.json", material.catalog.model_configs.get(model, {}))


def _used(material: Material, kind: str) -> list[str]:
    return sorted({str(getattr(one, kind)) for one in material.observations.configurations})


def _write_json(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
