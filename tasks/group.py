"""One engine group on this machine: one server start, then job after job, each into the store. No Ray, no Prefect.

The server is vLLM, or the simulator where the request carries a rehearsal.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

from pydantic import Field, JsonValue

from srfa.errors import DataInvalidError, EngineError, SrfaError, StoreError
from srfa.specs import BenchmarkJob, EngineGroup, FailureReason, GpuSpec, JobOutcome, Spec
from srfa.traces.plugin import Window, cut_windows
from tasks.engine import VllmEngine
from tasks.evidence import job_prefix, read_manifest, write_failure, write_json, write_measurement
from tasks.load import LoadGenerator, LoadResult
from tasks.machine import machine_facts, machine_state
from tasks.measurement import Engine, Measured
from tasks.rehearsal import Rehearsal
from tasks.store import TraceStore, open_store
from tasks.workplace import EngineSettings, Workplace

_STEP: Final = b'"record":"step"'
_LONGEST_MESSAGE: Final = 4000


class GroupRequest(Spec):
    """What a node needs to know besides the group itself.

    Parameters
    ----------
    store_uri
        As :attr:`tasks.store.TraceStore.uri` gives it: valid on every node.
    gpu
        The whole datasheet: nodes read no catalogue.
    hf_config
        The model's ``config.json`` where the model is written on the spot (random weights), or simulated; None where
        the engine finds the model by its id.
    first_core
        For a CPU profile: its place among the profiles that may run at the same time.
    rehearsal
        What simulates the jobs; None: they are measured.
    """

    run_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    store_uri: str
    gpu: GpuSpec
    hf_config: dict[str, JsonValue] | None = None
    first_core: int = Field(default=0, ge=0)
    settings: EngineSettings = EngineSettings()
    rehearsal: Rehearsal | None = None


def run_group(group: EngineGroup, request: GroupRequest) -> tuple[JobOutcome, ...]:
    """Measure the jobs of a group that the store does not hold yet; never raises for what happens to a job or engine.

    Returns
    -------
    tuple of JobOutcome
        One a job, in the group's order. Jobs with a manifest in this run are not run again; if all have one, no server
        is started. A job that fails leaves ``failure.json`` and the server's log; the death of the engine fails it and
        those after it.
    """
    try:
        store = open_store(request.store_uri)
        done = _measured_before(store, group, request.run_id)
    except StoreError as error:
        return tuple(failed_outcome(job, request.run_id, "store", str(error)) for job in group.jobs)
    left = [job for job in group.jobs if job.job_id not in done]
    outcomes = done | (_measure(left, request, store) if left else {})
    return tuple(outcomes[job.job_id] for job in group.jobs)


def failed_outcome(job: BenchmarkJob, run_id: str, reason: FailureReason, message: str) -> JobOutcome:
    """Return the outcome of a job that was not measured; of a long message the end is kept, where the cause is."""
    short = message if len(message) <= _LONGEST_MESSAGE else f"... {message[-_LONGEST_MESSAGE:]}"
    return JobOutcome(
        job_id=job.job_id,
        group_id=job.group_id,
        prefix=job_prefix(run_id, job.job_id),
        status="failed",
        reason=reason,
        message=short,
    )


def _measured_before(store: TraceStore, group: EngineGroup, run_id: str) -> dict[str, JobOutcome]:
    manifests = (read_manifest(store, run_id, job.job_id) for job in group.jobs)
    return {manifest.job.job_id: manifest.outcome for manifest in manifests if manifest is not None}


def _measure(jobs: Sequence[BenchmarkJob], request: GroupRequest, store: TraceStore) -> dict[str, JobOutcome]:
    outcomes: dict[str, JobOutcome] = {}
    with tempfile.TemporaryDirectory(prefix="srfa-") as folder:
        try:
            _measure_into(outcomes, jobs, request, store, Path(folder))
        except (SrfaError, OSError) as error:
            left = [job for job in jobs if job.job_id not in outcomes]
            evidence = _logs(Path(folder))
            outcomes |= {job.job_id: _fail(store, job, request.run_id, error, evidence) for job in left}
    return outcomes


def _measure_into(
    outcomes: dict[str, JobOutcome],
    jobs: Sequence[BenchmarkJob],
    request: GroupRequest,
    store: TraceStore,
    folder: Path,
) -> None:
    """Add the outcome of one job after the other; what ends the whole group is raised."""
    with _engine(jobs[0], request, folder) as engine:
        for job in jobs:
            outcomes[job.job_id] = _outcome(engine, job, request.run_id, store)


def _outcome(engine: Engine, job: BenchmarkJob, run_id: str, store: TraceStore) -> JobOutcome:
    """Measure one job; what befalls only it becomes its outcome.

    Raises
    ------
    EngineError
        ``engine_died``: there is no server left for further jobs.
    """
    try:
        measured = engine.measure(job)
        return write_measurement(
            store, job, measured.outcome, run_id=run_id, window=measured.window, files=measured.files
        )
    except (SrfaError, OSError) as error:
        engine.check_usable()
        return _fail(store, job, run_id, error, engine.evidence(job))


@contextmanager
def _engine(job: BenchmarkJob, request: GroupRequest, folder: Path) -> Iterator[Engine]:
    """Have a running server for jobs like this one inside the block."""
    if request.rehearsal is None:
        with _served(job, request, folder) as server:
            yield server
        return
    from tasks.simulated_engine import SimulatedEngine, node_catalog  # noqa: PLC0415 - a node that measures needs none

    catalog = node_catalog(job.model, request.gpu, request.hf_config or {})
    yield SimulatedEngine(request.rehearsal, catalog, run_id=request.run_id, folder=folder)


@contextmanager
def _served(job: BenchmarkJob, request: GroupRequest, folder: Path) -> Iterator[_Measurement]:
    workplace = Workplace(
        job,
        request.gpu,
        request.settings,
        folder=folder,
        hf_config=request.hf_config,
        first_core=request.first_core,
    )
    probe = run_probe(workplace) if request.gpu.datasheet.kind == "cpu" else None
    with LoadGenerator(workplace) as load, VllmEngine(workplace) as engine:
        yield _Measurement(request.run_id, workplace, engine, load, probe)


def run_probe(workplace: Workplace) -> Path:
    """Measure what this CPU profile can do in the job's data type, before the server runs; return the figures' file.

    Raises
    ------
    EngineError
        ``engine_start`` where the probe fails, ``timeout`` where it does not end; with the last lines of its log.
    """
    settings, figures = workplace.settings, workplace.folder / "probe.json"
    flags = ("--out", str(figures), "--dtype", workplace.dtype)
    with workplace.start((*settings.probe_command, *flags), "probe.log") as process:
        status = process.wait(settings.probe_timeout_s)
        if status == 0 and figures.is_file():
            return figures
        what = f"the probe of {workplace.gpu.name}"
        if status is None:
            raise EngineError("timeout", f"{what} has not ended within probe_timeout_s={settings.probe_timeout_s:g}")
        raise EngineError("engine_start", f"{what} ended with status {status}; its log ends:\n{process.log_tail()}")


@dataclass(frozen=True, slots=True)
class _Measurement:
    """What all jobs of a running server share."""

    run_id: str
    workplace: Workplace
    engine: VllmEngine
    load: LoadGenerator
    probe: Path | None
    facts: Mapping[str, JsonValue] = field(default_factory=machine_facts)

    def check_usable(self) -> None:
        """Raise ``EngineError`` with reason ``engine_died`` where there is no server left for further jobs."""
        self.engine.check_usable()

    def evidence(self, job: BenchmarkJob) -> Mapping[str, Path]:
        """Return what the client wrote, and the logs."""
        return {"client.json": self._file(job, "client.json"), **_logs(self.workplace.folder)}

    def measure(self, job: BenchmarkJob) -> Measured:
        """Put the job's load on the server and cut its part out of the traces."""
        begin = time.monotonic()
        self._file(job, "").mkdir(exist_ok=True)
        self.engine.reset_caches()
        marks = {trace: trace.stat().st_size for trace in self.engine.traces()}
        before = machine_state()
        result = self.load.run(job, url=self.engine.url, result=self._file(job, "client.json"))
        self.engine.check_alive()
        environment = {"machine": self.facts, "before": before, "after": machine_state()}
        window = Window(job_id=job.job_id, t_start_ns=result.t_start_ns, t_end_ns=result.t_end_ns)
        traces, n_steps = self._cut(job, window, marks)
        files = traces | self._documents(job, window, environment)
        return Measured(self._success(job, result, n_steps, time.monotonic() - begin), window, files)

    def _success(self, job: BenchmarkJob, result: LoadResult, n_steps: int, wall_s: float) -> JobOutcome:
        return JobOutcome(
            job_id=job.job_id,
            group_id=job.group_id,
            prefix=job_prefix(self.run_id, job.job_id),
            status="measured",
            n_requests=result.completed,
            n_steps=n_steps,
            wall_s=wall_s,
            server_start_s=self.engine.start_s,
        )

    def _cut(self, job: BenchmarkJob, window: Window, marks: Mapping[Path, int]) -> tuple[dict[str, Path], int]:
        """Write the part of each rank's trace that belongs to this job; return the files and the number of steps."""
        files, n_steps = {}, 0
        for trace in self.engine.traces():
            lines = cut_windows(_lines_since(trace, marks.get(trace, 0)), [window], name=trace.name)[job.job_id]
            n_steps += sum(_STEP in line for line in lines)
            files[f"{trace.name}.gz"] = _write_gzip(self._file(job, f"{trace.name}.gz"), lines)
        if not n_steps:
            text = f"job {job.job_id}: the trace holds no step of its load window; see server.log for why"
            raise DataInvalidError(text)
        return files, n_steps

    def _documents(self, job: BenchmarkJob, window: Window, environment: Mapping[str, object]) -> dict[str, Path]:
        probe = {} if self.probe is None else {"probe.json": self.probe}
        engine = write_json(self._file(job, "engine.json"), self._engine_document(job, window, environment))
        logs = _logs(self.workplace.folder)
        return {"client.json": self._file(job, "client.json"), "engine.json": engine, **probe, **logs}

    def _engine_document(
        self, job: BenchmarkJob, window: Window, environment: Mapping[str, object]
    ) -> dict[str, object]:
        info = self.engine.server_info
        return {
            "schema_version": 1,
            "job": job.model_dump(mode="json"),
            "command": list(self.engine.command),
            "requested": self.engine.requested,
            "resolved": self.engine.resolved,
            "vllm_config": info.get("vllm_config"),
            "windows": [window.model_dump(mode="json")],
            "environment": environment,
            "system_env": info.get("system_env"),
            "vllm_env": info.get("vllm_env"),
            "probe": None if self.probe is None else json.loads(self.probe.read_bytes()),
        }

    def _file(self, job: BenchmarkJob, name: str) -> Path:
        return self.workplace.folder / f"job-{job.job_id}" / name


def _fail(
    store: TraceStore, job: BenchmarkJob, run_id: str, error: Exception, evidence: Mapping[str, Path]
) -> JobOutcome:
    outcome = failed_outcome(job, run_id, failure_reason(error), str(error))
    with suppress(StoreError):  # the store itself may be what failed; the outcome still says why
        write_failure(store, outcome, evidence)
    return outcome


def failure_reason(error: Exception) -> FailureReason:
    """Return the class of failure that the outcome shows."""
    if isinstance(error, EngineError):
        known: dict[str, FailureReason] = {reason: reason for reason in get_args(FailureReason)}
        return known.get(error.reason, "engine_start")
    if isinstance(error, DataInvalidError):
        return "data_gate"
    return "store" if isinstance(error, StoreError) else "engine_start"


def _logs(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in ("server.log", "load.log", "probe.log") if (folder / name).is_file()}


def _lines_since(trace: Path, mark: int) -> list[bytes]:
    """Return the engine record and all lines written since the file had ``mark`` bytes."""
    with trace.open("rb") as source:
        first = source.readline()
        source.seek(max(mark, source.tell()))
        return [first, *source]


def _write_gzip(path: Path, lines: Sequence[bytes]) -> Path:
    """Write the lines compressed, with no time stamp: equal lines make equal bytes."""
    with path.open("wb") as sink, gzip.GzipFile(filename="", fileobj=sink, mode="wb", mtime=0) as packed:
        packed.writelines(lines)
    return path
