"""The kept tables of a run: what was measured beside the observations, and where ``srfa ingest`` leaves it."""

from __future__ import annotations

from collections import defaultdict
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


def read_tables(folder: Path, *, run_id: str | None = None) -> Tables:
    """Read ``tables/`` of a folder that ``srfa ingest`` wrote: all jobs of one run, or of all runs in it.

    Raises
    ------
    InputError
        The folder does not exist, a table cannot be used, or two runs in it measured the same job: a job's id says what
        was asked for, and only the jobs table says in which run.
    NothingMeasuredError
        There is no job in it, or none of the run.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name what 'srfa ingest --out' wrote")
    found = {name: _parts(folder / "tables" / name, run_id) for name in _SCHEMAS}
    if not found["jobs"]:
        missing = _of_run(Path("tables/jobs"), run_id)
        raise NothingMeasuredError(f"{folder}: no {missing} in it; make them with 'srfa ingest SRC --out {folder}'")
    parts = {name: [read_table(path, _SCHEMAS[name]) for path in paths] for name, paths in found.items()}
    tables = Tables(
        **{name: pa.concat_tables(parts[name] or [schema.empty_table()]) for name, schema in _SCHEMAS.items()}
    )
    _require_each_job_once(tables.jobs, folder)
    return tables


def observation_files(folder: Path, *, run_id: str | None = None) -> tuple[Path, ...]:
    """Return the observation files of a folder that ``srfa ingest`` wrote, of one run or of all.

    Raises
    ------
    NothingMeasuredError
        There is none: the data gates refused every job, or there is no such run.
    """
    files = _parts(folder / "observations", run_id)
    if not files:
        missing = _of_run(Path("observations"), run_id)
        raise NothingMeasuredError(f"{folder}: no {missing}/ in it; every job was refused, or nothing was ingested")
    return tuple(files)


def _parts(folder: Path, run_id: str | None) -> list[Path]:
    return sorted(_of_run(folder, run_id).rglob("*.parquet"))


def _of_run(folder: Path, run_id: str | None) -> Path:
    return folder / f"run_id={run_id}" if run_id else folder


def _require_each_job_once(jobs: pa.Table, folder: Path) -> None:
    runs: dict[str, list[str]] = defaultdict(list)
    for job_id, run_id in zip(jobs["job_id"].to_pylist(), jobs["run_id"].to_pylist(), strict=True):
        runs[job_id].append(run_id)
    twice = {job_id: sorted(found) for job_id, found in runs.items() if len(found) > 1}
    if twice:
        job_id, found = min(twice.items())
        raise InputError(
            f"{folder}: job {job_id} was measured in runs {', '.join(found)} ({len(twice)} such job(s)), and their"
            f" steps cannot be told apart; name one run with --run-id {found[-1]}"
        )


def _by_job(table: pa.Table) -> dict[str, pa.Table]:
    encoded = table["job_id"].combine_chunks().dictionary_encode()
    codes = np.asarray(encoded.indices)
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    ordered, ends = table.take(pa.array(np.argsort(codes, kind="stable"))), np.cumsum(counts)
    names = encoded.dictionary.to_pylist()
    return {name: ordered.slice(end - count, count) for name, end, count in zip(names, ends, counts, strict=True)}
