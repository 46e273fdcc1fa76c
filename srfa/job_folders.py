"""Folders of raw traces on disk -> tables and observations on disk: what ``srfa ingest`` does.

A job's folder holds its manifest; any folder above it may be named. Tables go to
``tables/<table>/run_id=R/job_id=J/part-0.parquet``, observations to ``observations/run_id=R/observations.parquet``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from srfa.catalog import Catalog
from srfa.errors import DataInvalidError, IncompleteError, InputError, NothingMeasuredError
from srfa.observations import from_table
from srfa.profile import measured_profile
from srfa.roofline import floor_us
from srfa.specs import BenchmarkJob, Spec
from srfa.traces.gates import summarise
from srfa.traces.ingest import ENGINE_FILE, MANIFEST_FILE, IngestedJob, ingest_job
from srfa.traces.tables import write_table


@dataclass(frozen=True, slots=True)
class JobFolder:
    """One measured job on disk."""

    path: Path
    run_id: str
    job: BenchmarkJob


class IngestedFolder(Spec):
    """What became of one job's folder; ``problem`` is empty where its data may reach a fit."""

    run_id: str
    job_id: str
    n_steps: int
    n_requests: int
    problem: str


class _Manifest(BaseModel):
    """The part of ``manifest.json`` that ingestion needs; other keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    job: BenchmarkJob


def find_job_folders(sources: Sequence[Path]) -> tuple[JobFolder, ...]:
    """Return every job folder at or under the sources, each job of a run once, ordered by run and job.

    Raises
    ------
    InputError
        A source does not exist, or a manifest is malformed.
    NothingMeasuredError
        There is no manifest at all: no job was completed.
    """
    found: dict[tuple[str, str], JobFolder] = {}
    for source in sources:
        if not source.is_dir():
            raise InputError(f"{source}: no such folder; name a job's folder or one above it")
        for path in sorted(source.rglob(MANIFEST_FILE)):
            folder = _job_folder(path)
            found.setdefault((folder.run_id, folder.job.job_id), folder)
    if not found:
        names = ", ".join(map(str, sources))
        raise NothingMeasuredError(
            f"{names}: no {MANIFEST_FILE} in it: no job was completed, so there is nothing to do"
        )
    return tuple(found[key] for key in sorted(found))


def measured_catalog(folders: Sequence[JobFolder], catalog: Catalog) -> Catalog:
    """Return the catalogue with the figures that CPU profiles had on the machines that measured these jobs.

    Raises
    ------
    DataInvalidError
        An engine file or the probe in it is malformed.
    """
    probes: dict[str, list[Mapping[str, Any]]] = {}
    for folder in folders:
        if probe := _probe(folder.path / ENGINE_FILE):
            probes.setdefault(folder.job.gpu, []).append(probe)
    for name, documents in probes.items():
        catalog = catalog.with_gpu(measured_profile(catalog.resolve_gpu(name), documents))
    return catalog


def ingest_folder(folder: JobFolder, catalog: Catalog, out: Path) -> tuple[IngestedFolder, pa.Table | None]:
    """Write one job's tables; return what became of it and its observations, None where its data are refused."""
    run_id, job = folder.run_id, folder.job
    try:
        found = ingest_job(folder.path, job, catalog.resolve_gpu(job.gpu), run_id=run_id, floor=_Floor(catalog))
    except DataInvalidError as error:
        refused = IngestedFolder(run_id=run_id, job_id=job.job_id, n_steps=0, n_requests=0, problem=str(error))
        return refused, None
    for name, table in _tables(found):
        write_table(table, out / "tables" / name / f"run_id={run_id}" / f"job_id={job.job_id}" / "part-0.parquet")
    summary = IngestedFolder(
        run_id=run_id,
        job_id=job.job_id,
        n_steps=found.observations.num_rows,
        n_requests=found.requests.num_rows,
        problem="" if found.passed else summarise(found.findings),
    )
    return summary, found.observations if found.passed else None


def write_observations(tables: Iterable[pa.Table], out: Path) -> tuple[Path, ...]:
    """Write ``observations/run_id=R/observations.parquet`` for each run and return the files."""
    by_run: dict[str, list[pa.Table]] = {}
    for table in tables:
        by_run.setdefault(str(table["run_id"][0].as_py()), []).append(table)
    files = []
    for run_id, parts in by_run.items():
        files.append(out / "observations" / f"run_id={run_id}" / "observations.parquet")
        write_table(pa.concat_tables(parts), files[-1])
    return tuple(files)


def require_complete(jobs: Sequence[IngestedFolder]) -> None:
    """Do nothing where every job's data may reach a fit.

    Raises
    ------
    DataInvalidError
        No job's data may.
    IncompleteError
        Some jobs' data may not; the others were written.
    """
    refused = [job for job in jobs if job.problem]
    if not refused:
        return
    text = f"{len(refused)} of {len(jobs)} jobs refused:\n" + "\n".join(
        f"  job {job.job_id} of run {job.run_id}: {job.problem}" for job in refused
    )
    raise DataInvalidError(text) if len(refused) == len(jobs) else IncompleteError(text)


@dataclass(frozen=True, slots=True)
class _Floor:
    """The speed of light of a table of observations, microseconds, one entry a row."""

    catalog: Catalog

    def __call__(self, table: pa.Table) -> NDArray[np.float64]:
        return floor_us(from_table(table), self.catalog)


def _tables(found: IngestedJob) -> tuple[tuple[str, pa.Table], ...]:
    return (("jobs", found.jobs), ("steps", found.steps), ("requests", found.requests))


def _probe(engine_file: Path) -> Mapping[str, Any] | None:
    """Return what the machine was measured to do before the job, None where it was not measured."""
    if not engine_file.exists():
        return None
    try:
        probe = json.loads(engine_file.read_text()).get("probe")
    except (ValueError, AttributeError) as error:
        raise DataInvalidError(f"{engine_file}: not a JSON object ({error}); measure the job again") from error
    return probe if isinstance(probe, dict) else None


def _job_folder(manifest: Path) -> JobFolder:
    try:
        read = _Manifest.model_validate_json(manifest.read_text())
    except (OSError, ValidationError) as error:
        raise InputError(f"{manifest}: cannot be used ({error}); measure the job again") from error
    return JobFolder(manifest.parent, read.run_id, read.job)
