"""A job rehearsed: the files a measured job leaves in the store, from a simulated run of it with noise on its steps.

A campaign can so be tried from end to end before a GPU is rented: ingestion, data gates, fit and validation take these
files as they take real ones. Their engine version ends in ``+simulated``.
"""

from __future__ import annotations

import gzip
import hashlib
import json

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients
from srfa.errors import UsageError
from srfa.replay import outside_of
from srfa.simulate.capacity import configuration_for, resolved_engine, server_for
from srfa.simulate.client_file import client_document
from srfa.simulate.clock import clock_of
from srfa.simulate.engine import simulate
from srfa.simulate.noise import Noise, noisy_clock
from srfa.simulate.traced import T_ZERO_NS, TracedRun, monotonic_ns, trace_lines
from srfa.simulate.workload import workload_load
from srfa.simulated import REHEARSAL, SIMULATED
from srfa.specs import BenchmarkJob, EngineArgs, JobOutcome
from srfa.traces.ingest import CLIENT_FILE, ENGINE_FILE, MANIFEST_FILE, TRACE_FILE
from srfa.traces.plugin import Window
from srfa.units import NS_PER_S


def simulate_job(
    job: BenchmarkJob,
    catalog: Catalog,
    *,
    coefficients: Coefficients | None = None,
    estimator: str | None = None,
    noise: Noise | None = None,
    run_id: str = REHEARSAL,
) -> dict[str, bytes]:
    """Return the files of a job's folder: ``trace.jsonl.gz``, ``client.json``, ``engine.json``, ``manifest.json``.

    Parameters
    ----------
    coefficients, estimator
        What tells the time of a step (:func:`srfa.simulate.clock.clock_of`).
    noise
        On the time of every step; None is none.

    Raises
    ------
    UsageError
        The server would not start, the workload reads a file, or several data-parallel ranks would leave a trace each.
    CatalogError
        The model or GPU is unknown.
    """
    if job.engine.data_parallel_size > 1:
        raise UsageError(
            f"job {job.job_id}: data_parallel_size={job.engine.data_parallel_size}: several ranks leave a trace each, "
            "which cannot be ingested; rehearse with data_parallel_size 1"
        )
    run = _simulated(job, catalog, coefficients, estimator, noise)
    window = Window(
        job_id=job.job_id, t_start_ns=T_ZERO_NS, t_end_ns=int(monotonic_ns(run.served.t_departed_us).max()) + 1
    )
    files = {
        TRACE_FILE: gzip.compress(b"".join(trace_lines(run)), mtime=0),
        CLIENT_FILE: _json(client_document(run)),
        ENGINE_FILE: _json(_engine_document(job, run, window)),
    }
    manifest = _json(_manifest(job, run, window, run_id=run_id, files=files))
    return {**files, MANIFEST_FILE: manifest}


def _simulated(
    job: BenchmarkJob,
    catalog: Catalog,
    coefficients: Coefficients | None,
    estimator: str | None,
    noise: Noise | None,
) -> TracedRun:
    model, gpu = catalog.resolve_model(job.model), catalog.resolve_gpu(job.gpu)
    server = server_for(model, gpu, job.engine)
    configuration = configuration_for(model, gpu, job.engine, software_version=f"vllm {job.engine_version}")
    clock = clock_of(coefficients, configuration, catalog, estimator=estimator)
    load = workload_load(job.workload, seed=job.seed, block_size=server.block_size)
    blocks = coefficients.blocks if coefficients else {}
    outside = outside_of(blocks, load, server, gpu=gpu.name, catalog=catalog)
    served = simulate(load, server, noisy_clock(clock, noise), outside, record_steps=True)
    engine = resolved_engine(model, gpu, job.engine).model_copy(update={"dtype": configuration.dtype})
    ids = tuple(f"rehearsal-{job.job_id}-{row}" for row in range(load.n_requests))
    return TracedRun(load, served, server, engine, ids, job.engine_version)


def _engine_document(job: BenchmarkJob, run: TracedRun, window: Window) -> dict[str, object]:
    return {
        "schema_version": 1,
        "job": json.loads(job.model_dump_json()),
        "command": [],
        "requested": _given(job.engine),
        "resolved": run.engine.model_dump(mode="json"),
        "vllm_config": None,
        "windows": [window.model_dump(mode="json")],
        "environment": {"simulated": True},
        "system_env": None,
        "vllm_env": None,
        "probe": None,
    }


def _manifest(
    job: BenchmarkJob, run: TracedRun, window: Window, *, run_id: str, files: dict[str, bytes]
) -> dict[str, object]:
    outcome = JobOutcome(
        job_id=job.job_id,
        group_id=job.group_id,
        prefix=f"traces/run_id={run_id}/job_id={job.job_id}",
        status="measured",
        message=f"simulated, engine {job.engine_version}{SIMULATED}",
        n_requests=run.load.n_requests,
        n_steps=run.served.n_steps,
        wall_s=(window.t_end_ns - window.t_start_ns) / NS_PER_S,
    )
    described = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in files.items()
    }
    return {
        "schema_version": 1,
        "run_id": run_id,
        "job_id": job.job_id,
        "job": json.loads(job.model_dump_json()),
        "outcome": outcome.model_dump(mode="json"),
        "window": window.model_dump(mode="json"),
        "files": described,
    }


def _given(engine: EngineArgs) -> dict[str, object]:
    return engine.model_dump(mode="json", exclude_defaults=True)


def _json(document: dict[str, object]) -> bytes:
    return json.dumps(document, indent=1, allow_nan=False).encode()
