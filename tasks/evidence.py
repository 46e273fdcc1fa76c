"""What a job leaves in the store: its files, then the manifest that makes them count, or why there is none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from srfa.errors import StoreError
from srfa.specs import BenchmarkJob, JobOutcome, Spec
from srfa.traces.plugin import Window
from tasks.store import TraceStore

MANIFEST: Final = "manifest.json"
FAILURE: Final = "failure.json"
MANIFEST_VERSION: Final = 1


class StoredFile(Spec):
    """A file of a job, as it was when the manifest was written."""

    sha256: str
    size_bytes: int = Field(ge=0)


class Manifest(Spec):
    """Written last, once: where it is there, the job is measured and its files are whole."""

    schema_version: int = MANIFEST_VERSION
    run_id: str
    job_id: str
    job: BenchmarkJob
    outcome: JobOutcome
    window: Window
    files: dict[str, StoredFile]


def job_prefix(run_id: str, job_id: str) -> str:
    """Return the folder of a job's files in the store."""
    return f"traces/run_id={run_id}/job_id={job_id}"


def read_manifest(store: TraceStore, run_id: str, job_id: str) -> Manifest | None:
    """Return a job's manifest, None where the job is not measured yet.

    Raises
    ------
    StoreError
        The store cannot be reached, or the manifest is not one.
    """
    key = f"{job_prefix(run_id, job_id)}/{MANIFEST}"
    if not store.exists(key):
        return None
    try:
        return Manifest.model_validate_json(store.get(key))
    except ValidationError as error:
        raise StoreError(f"{store.uri}: {key} is no manifest ({error}); delete it to measure the job again") from error


def write_measurement(
    store: TraceStore, job: BenchmarkJob, outcome: JobOutcome, *, run_id: str, window: Window, files: Mapping[str, Path]
) -> JobOutcome:
    """Store the files, then the manifest; return the outcome, which is the earlier one where the job has one already.

    Raises
    ------
    StoreError
        A file cannot be stored, or another writer's manifest names other files than those that now lie there.
    """
    prefix = job_prefix(run_id, job.job_id)
    for name, path in files.items():
        store.put(f"{prefix}/{name}", path)
    described = {name: _describe(path) for name, path in files.items()}
    manifest = Manifest(run_id=run_id, job_id=job.job_id, job=job, outcome=outcome, window=window, files=described)
    if store.put(f"{prefix}/{MANIFEST}", manifest.model_dump_json(indent=1).encode(), if_absent=True):
        store.delete(f"{prefix}/{FAILURE}")
        return outcome
    return _agreed(store, manifest)


def write_failure(store: TraceStore, outcome: JobOutcome, files: Mapping[str, Path]) -> None:
    """Store why a job failed, with the files that show it; a later success removes the note.

    Raises
    ------
    StoreError
        The store cannot be written.
    """
    for name, path in files.items():
        if path.is_file():
            store.put(f"{outcome.prefix}/{name}", path)
    store.put(f"{outcome.prefix}/{FAILURE}", outcome.model_dump_json(indent=1).encode())


def write_json(path: Path, document: Mapping[str, object]) -> Path:
    """Write ``document`` and return its path; what JSON does not know becomes a string."""
    path.write_text(json.dumps(document, indent=1, sort_keys=True, default=str))
    return path


def _agreed(store: TraceStore, ours: Manifest) -> JobOutcome:
    theirs = read_manifest(store, ours.run_id, ours.outcome.job_id)
    if theirs is None or theirs.files != ours.files:
        remedy = f"delete {ours.outcome.prefix} and measure it again, from one place at a time"
        raise StoreError(f"{store.uri}: two measurements of job {ours.outcome.job_id} overwrote each other; {remedy}")
    return theirs.outcome


def _describe(path: Path) -> StoredFile:
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    return StoredFile(sha256=digest, size_bytes=path.stat().st_size)
