"""The kept tables of a run: what was measured beside the observations, and where ``srfa ingest`` leaves it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srfa.errors import InputError, NothingMeasuredError
from srfa.schema import JOBS, REQUESTS, STEPS
from srfa.traces.tables import read_table

_SCHEMAS = {"jobs": JOBS, "steps": STEPS, "requests": REQUESTS}


@dataclass(frozen=True, slots=True)
class Tables:
    """The kept tables of a run, for the models of what happens outside the steps, and for replays."""

    jobs: pa.Table
    steps: pa.Table
    requests: pa.Table

    def of_jobs(self, job_ids: Collection[str]) -> Tables:
        """Return the rows of some jobs."""
        ids = pa.array(sorted(job_ids), pa.string())
        chosen = (table.filter(pc.is_in(table["job_id"], ids)) for table in (self.jobs, self.steps, self.requests))
        return Tables(*chosen)

    def by_job(self) -> dict[str, Tables]:
        """Return each job's rows by its id, in the order of the ids; every table is sorted once."""
        steps, requests = _by_job(self.steps), _by_job(self.requests)
        return {
            job_id: Tables(row, steps.get(job_id, STEPS.empty_table()), requests.get(job_id, REQUESTS.empty_table()))
            for job_id, row in sorted(_by_job(self.jobs).items())
        }


def read_tables(folder: Path) -> Tables:
    """Read ``tables/`` of a folder that ``srfa ingest`` wrote: all jobs of all runs in it.

    Raises
    ------
    InputError
        The folder does not exist, or a table cannot be used.
    NothingMeasuredError
        There is no job in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name what 'srfa ingest --out' wrote")
    found = {name: sorted((folder / "tables" / name).rglob("*.parquet")) for name in _SCHEMAS}
    if not found["jobs"]:
        raise NothingMeasuredError(f"{folder}: no tables/jobs in it; make them with 'srfa ingest SRC --out {folder}'")
    parts = {name: [read_table(path, _SCHEMAS[name]) for path in paths] for name, paths in found.items()}
    return Tables(
        **{name: pa.concat_tables(parts[name] or [schema.empty_table()]) for name, schema in _SCHEMAS.items()}
    )


def observation_files(folder: Path) -> tuple[Path, ...]:
    """Return the observation files of a folder that ``srfa ingest`` wrote.

    Raises
    ------
    NothingMeasuredError
        There is none: the data gates refused every job.
    """
    files = tuple(sorted((folder / "observations").rglob("*.parquet")))
    if not files:
        raise NothingMeasuredError(f"{folder}: no observations/ in it; every job was refused, or nothing was ingested")
    return files


def _by_job(table: pa.Table) -> dict[str, pa.Table]:
    encoded = table["job_id"].combine_chunks().dictionary_encode()
    codes = np.asarray(encoded.indices)
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    ordered, ends = table.take(pa.array(np.argsort(codes, kind="stable"))), np.cumsum(counts)
    names = encoded.dictionary.to_pylist()
    return {name: ordered.slice(end - count, count) for name, end, count in zip(names, ends, counts, strict=True)}
