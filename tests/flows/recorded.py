"""A small campaign that was measured by the toy engine: everything a run leaves in the store, without an engine."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from srfa.matrix import expand, load_matrix
from srfa.specs import JobOutcome
from srfa.traces.plugin import Window
from tasks.evidence import job_prefix, write_measurement
from tasks.store import open_store
from tests.steps import catalog
from tests.traces.conftest import MS, START_NS, run_toy_engine

MATRIX = """
name: recorded
defaults:
  engine: {load_format: dummy, enforce_eager: true, dtype: float32}
workloads:
  short: {random_input_len: 40, random_output_len: 12, num_prompts: 6}
  long: {random_input_len: 90, random_output_len: 20, num_prompts: 6}
axes:
  models: [srfa/tiny-dense, srfa/tiny-moe]
  gpus: [cpu-1t, cpu-1t-lite]
"""
_PHYSICS_TOLD = "physics: {required: false}\n"
WIDE = "splits: {leave-one-gpu-out: {max_mape_pct: 100000}, leave-one-workload-out: {max_mape_pct: 100000}}\n"
WIDE += _PHYSICS_TOLD
NARROW = "splits: {leave-one-gpu-out: {max_mape_pct: 0.000001}}\n" + _PHYSICS_TOLD
STEP_NS = {"cpu-1t": 150 * MS, "cpu-1t-lite": 300 * MS}


def write_inputs(folder: Path) -> Path:
    """Write ``matrix.yaml``, ``wide.yaml`` (limits that pass) and ``narrow.yaml`` (limits that cannot)."""
    for name, text in {"matrix.yaml": MATRIX, "wide.yaml": WIDE, "narrow.yaml": NARROW}.items():
        (folder / name).write_text(text)
    return folder


def jobs(matrix: Path):
    return expand(load_matrix(matrix), catalog()).jobs


def record_run(uri: str, run_id: str, some_jobs) -> None:
    """Leave in the store what a run of these jobs leaves."""
    for job in some_jobs:
        record_job(uri, run_id, job)


def record_job(uri: str, run_id: str, job, *, torn: bool = False) -> JobOutcome:
    load = job.workload
    sent = [(load.random_input_len + 3 * index, load.random_output_len) for index in range(load.num_prompts)]
    run = run_toy_engine(sent, every_ns=60 * MS, step_ns=STEP_NS[job.gpu])
    files = run.files(job)
    del files["manifest.json"]
    if torn:
        files["trace.jsonl.gz"] = b"torn"
    outcome = JobOutcome(
        job_id=job.job_id,
        group_id=job.group_id,
        prefix=job_prefix(run_id, job.job_id),
        status="measured",
        n_requests=len(sent),
        n_steps=len(run.kind("step")),
        wall_s=1.0,
        server_start_s=2.0,
    )
    window = Window(job_id=job.job_id, t_start_ns=START_NS, t_end_ns=START_NS + 1)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        paths = {name: Path(folder) / name for name in files}
        return write_measurement(open_store(uri), job, outcome, run_id=run_id, window=window, files=paths)


def with_probe(uri: str, outcome: JobOutcome, **figures: float) -> None:
    """Add what the probe of a CPU profile found to a recorded job."""
    store, key = open_store(uri), f"{outcome.prefix}/engine.json"
    store.put(key, json.dumps(json.loads(store.get(key)) | {"probe": figures}).encode())
