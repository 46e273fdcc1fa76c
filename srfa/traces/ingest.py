"""One job's folder of the trace store -> its tables, and what the data gates say of them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srfa.errors import DataInvalidError
from srfa.specs import BenchmarkJob, GpuSpec
from srfa.traces.client import parse_client
from srfa.traces.findings import GateFinding, JobData
from srfa.traces.gates import check_job
from srfa.traces.plugin import Window, parse_trace
from srfa.traces.requests import requests_table
from srfa.traces.steps import steps_table
from srfa.traces.tables import jobs_table, observations_table, resolved_arguments

TRACE_FILE: Final = "trace.jsonl.gz"
CLIENT_FILE: Final = "client.json"
ENGINE_FILE: Final = "engine.json"
MANIFEST_FILE: Final = "manifest.json"

FloorFunction = Callable[[pa.Table], NDArray[np.float64]]
"""Observations -> the time no step can undercut, microseconds, one entry a row."""


class EngineFile(BaseModel):
    """``engine.json``: what is known of the server that ran the job. Other keys are ignored.

    Parameters
    ----------
    resolved
        Engine arguments as the server reports them, by vLLM's names.
    windows
        The load windows of the jobs it served.
    environment
        Driver, clocks, container image, commits, for people.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    resolved: dict[str, Any] = Field(default_factory=dict)
    windows: tuple[Window, ...] = ()
    environment: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IngestedJob:
    """The tables of one job and the findings of its data gates."""

    jobs: pa.Table
    steps: pa.Table
    requests: pa.Table
    observations: pa.Table
    findings: tuple[GateFinding, ...]

    @property
    def passed(self) -> bool:
        """True where every data gate passed."""
        return all(finding.passed for finding in self.findings)


def ingest_job(
    files: Mapping[str, bytes] | Path,
    job: BenchmarkJob,
    gpu: GpuSpec,
    *,
    run_id: str,
    floor: FloorFunction | None = None,
) -> IngestedJob:
    """Return the tables of one measured job.

    Parameters
    ----------
    files
        The job's folder, or its files by name: ``trace.jsonl.gz``, ``client.json``, ``engine.json``, ``manifest.json``.
    job
        What was asked for.
    gpu
        The GPU it ran on; its ``datasheet.label_clock`` chooses the label.
    floor
        Computes the speed of light (``srfa.roofline``); None leaves that rule out.

    Raises
    ------
    DataInvalidError
        A file is missing, broken or of another job, or several data-parallel ranks left a trace each. A broken *rule*
        raises nothing: it is a finding.
    """
    where = f"job {job.job_id}"
    _refuse_further_ranks(files, where)
    _check_manifest(_file(files, MANIFEST_FILE, where), job)
    engine_file = _engine_file(_file(files, ENGINE_FILE, where), where)
    records = parse_trace(_trace_lines(_file(files, TRACE_FILE, where), where), name=f"{where}: trace.jsonl")
    client = parse_client(_file(files, CLIENT_FILE, where), name=f"{where}: {CLIENT_FILE}")
    jobs = jobs_table(
        job, records.engine, run_id=run_id, reported=engine_file.resolved, environment=engine_file.environment
    )
    steps, requests = steps_table(records, job), requests_table(records, client, job)
    observations = observations_table(jobs, steps, {job.gpu: gpu})
    resolved = resolved_arguments(job.engine, records.engine, engine_file.resolved)
    data = JobData(records, resolved, steps, requests, observations)
    floor_us = floor(observations) if floor is not None and observations.num_rows else None
    return IngestedJob(jobs, steps, requests, observations, check_job(data, client, job, floor_us))


def _refuse_further_ranks(files: Mapping[str, bytes] | Path, where: str) -> None:
    """Refuse a trace by several data-parallel engine cores: each has its own steps, and the tables know no rank."""
    names = [path.name for path in files.glob("trace.dp*")] if isinstance(files, Path) else list(files)
    if ranks := sorted(name for name in names if name.startswith("trace.dp")):
        raise DataInvalidError(
            f"{where}: {', '.join(ranks)}: traces of several data-parallel ranks cannot be ingested; "
            "measure with data_parallel_size 1"
        )


def _file(files: Mapping[str, bytes] | Path, name: str, where: str) -> bytes:
    try:
        return (files / name).read_bytes() if isinstance(files, Path) else files[name]
    except (KeyError, FileNotFoundError) as error:
        remedy = "the job was never completed" if name == MANIFEST_FILE else "measure it again"
        raise DataInvalidError(f"{where}: {name} is missing; {remedy}") from error


def _check_manifest(document: bytes, job: BenchmarkJob) -> None:
    manifest = _json_object(document, f"job {job.job_id}: {MANIFEST_FILE}")
    named = manifest.get("job_id", job.job_id)
    if named != job.job_id:
        raise DataInvalidError(f"job {job.job_id}: {MANIFEST_FILE} is of job {named}; the folder holds another job")


def _engine_file(document: bytes, where: str) -> EngineFile:
    try:
        return EngineFile.model_validate(_json_object(document, f"{where}: {ENGINE_FILE}"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataInvalidError(f"{where}: {ENGINE_FILE}: {place}: {first['msg']}; measure it again") from error


def _json_object(document: bytes, place: str) -> dict[str, Any]:
    try:
        value = json.loads(document)
    except ValueError as error:
        raise DataInvalidError(f"{place}: not JSON ({error}); measure it again") from error
    if not isinstance(value, dict):
        raise DataInvalidError(f"{place}: a {type(value).__name__}, expected an object; measure it again")
    return value


def _trace_lines(compressed: bytes, where: str) -> list[bytes]:
    try:
        return gzip.decompress(compressed).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise DataInvalidError(f"{where}: {TRACE_FILE}: broken gzip ({error}); measure it again") from error
