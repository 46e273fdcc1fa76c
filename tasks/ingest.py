"""Traces of a run in the store -> tables and observations in the store. Thin: parsing and gates are ``srfa.traces``."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srfa.catalog import Catalog
from srfa.errors import DataInvalidError, NothingMeasuredError
from srfa.observations import Observations, from_table
from srfa.profile import measured_profile
from srfa.ragged import FloatArray
from srfa.roofline import floor_us
from srfa.specs import BenchmarkJob, JobOutcome, Spec
from srfa.traces.findings import GateFinding
from srfa.traces.gates import summarise
from srfa.traces.ingest import CLIENT_FILE, ENGINE_FILE, MANIFEST_FILE, TRACE_FILE, IngestedJob, ingest_job
from srfa.traces.tables import write_table
from tasks.evidence import FAILURE, MANIFEST, Manifest
from tasks.store import TraceStore

TOKEN_RULES: Final = frozenset({"tokens_sum_to_steps", "tokens_conserved", "client_tokens"})
_FILES: Final = (TRACE_FILE, CLIENT_FILE, ENGINE_FILE, MANIFEST_FILE)
_TABLES: Final = ("jobs", "steps", "requests")


class JobData(Spec):
    """What ingesting one job found.

    Parameters
    ----------
    outcome
        As collection left it, or failed with reason ``data_gate``.
    job
        None where collection failed before a manifest was written and the run is read from the store.
    gates
        One sentence on the data gates; empty where there was nothing to ingest.
    tokens_conserved
        Whether per-request tokens sum to the steps' totals and to what the client saw; None where not ingested.
    n_observations
        Usable steps.
    """

    outcome: JobOutcome
    job: BenchmarkJob | None = None
    gates: str = ""
    tokens_conserved: bool | None = None
    n_observations: int = 0


def stored_run(store: TraceStore, run_id: str) -> tuple[JobData, ...]:
    """Return how the jobs of a run ended, as its manifests and notes of failure say, in order of job id.

    Raises
    ------
    NothingMeasuredError
        The store holds nothing of that run.
    """
    keys = [key for key in store.list(f"traces/run_id={run_id}/") if key.endswith((f"/{MANIFEST}", f"/{FAILURE}"))]
    if not keys:
        raise NothingMeasuredError(f"{store.uri}: no job of run {run_id!r}; list traces/ to see which runs there are")
    found: dict[str, JobData] = {}
    for key in sorted(keys):  # failure.json sorts before manifest.json, which wins
        data = _stored_job(store.get(key), is_manifest=key.endswith(MANIFEST))
        found[data.outcome.job_id] = data
    return tuple(found.values())


def measured_catalog(store: TraceStore, jobs: Iterable[JobData], catalog: Catalog) -> Catalog:
    """Return the catalogue with the figures that CPU profiles had on the machines that measured these jobs."""
    probes: dict[str, list[Mapping[str, Any]]] = {}
    for data in _measured(jobs):
        engine = json.loads(store.get(f"{data.outcome.prefix}/{ENGINE_FILE}"))
        if data.job is not None and engine.get("probe"):
            probes.setdefault(data.job.gpu, []).append(engine["probe"])
    for name, documents in probes.items():
        catalog = catalog.with_gpu(measured_profile(catalog.resolve_gpu(name), documents))
    return catalog


def ingest_stored_job(
    store: TraceStore, data: JobData, catalog: Catalog, run_id: str
) -> tuple[JobData, IngestedJob | None]:
    """Ingest one measured job and store its tables; a job whose data cannot be used becomes failed, ``data_gate``."""
    if data.job is None or data.outcome.status == "failed":
        return data, None
    files = {name: store.get(f"{data.outcome.prefix}/{name}") for name in _FILES}
    try:
        floor = partial(_floor_us, catalog=catalog)
        ingested = ingest_job(files, data.job, catalog.resolve_gpu(data.job.gpu), run_id=run_id, floor=floor)
    except DataInvalidError as error:
        return _refused(data, str(error)), None
    for table in _TABLES:
        store_table(store, table_key(table, run_id, data.job.job_id), getattr(ingested, table))
    checked = data.model_copy(
        update={
            "gates": summarise(ingested.findings),
            "tokens_conserved": tokens_conserved(ingested.findings),
            "n_observations": ingested.observations.num_rows,
        }
    )
    return (checked, ingested) if ingested.passed else (_refused(checked, checked.gates), None)


def tokens_conserved(findings: Sequence[GateFinding]) -> bool:
    """Return whether every rule on tokens passed: requests against steps, and both against what the client saw."""
    return all(finding.passed for finding in findings if finding.rule in TOKEN_RULES)


def store_table(store: TraceStore, key: str, table: pa.Table) -> None:
    """Write a table of :mod:`srfa.schema` into the store as Parquet."""
    with tempfile.TemporaryDirectory(prefix="srfa-") as folder:
        path = Path(folder) / "part-0.parquet"
        write_table(table, path)
        store.put(key, path)


def stored_tables(store: TraceStore, table: str, run_id: str, job_ids: Iterable[str]) -> pa.Table:
    """Return one of the tables ``jobs``, ``steps``, ``requests`` over the given jobs of a run."""
    keys = (table_key(table, run_id, job_id) for job_id in job_ids)
    return pa.concat_tables([pq.read_table(io.BytesIO(store.get(key))) for key in keys])


def stored_observations(store: TraceStore, run_id: str) -> Observations:
    """Return the observations of a run."""
    key = observations_key(run_id)
    return from_table(pq.read_table(io.BytesIO(store.get(key))), where=f"{store.uri}/{key}")


def table_key(table: str, run_id: str, job_id: str) -> str:
    """Return where a job's table lies in the store."""
    return f"tables/{table}/run_id={run_id}/job_id={job_id}/part-0.parquet"


def observations_key(run_id: str) -> str:
    """Return where a run's observations lie in the store."""
    return f"observations/run_id={run_id}/observations.parquet"


def _stored_job(document: bytes, *, is_manifest: bool) -> JobData:
    if not is_manifest:
        return JobData(outcome=JobOutcome.model_validate_json(document))
    manifest = Manifest.model_validate_json(document)
    return JobData(outcome=manifest.outcome, job=manifest.job)


def _measured(jobs: Iterable[JobData]) -> Iterator[JobData]:
    return (data for data in jobs if data.outcome.status == "measured")


def _refused(data: JobData, message: str) -> JobData:
    outcome = data.outcome.model_copy(update={"status": "failed", "reason": "data_gate", "message": message})
    return data.model_copy(update={"outcome": outcome})


def _floor_us(observations: pa.Table, catalog: Catalog) -> FloatArray:
    return np.asarray(floor_us(from_table(observations), catalog))
