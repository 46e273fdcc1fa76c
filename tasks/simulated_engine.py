"""The simulator in the place of a vLLM server: it leaves what a measured job leaves, and takes a moment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from srfa.catalog import Catalog
from srfa.errors import EngineError, SrfaError
from srfa.hf_config import load_model_spec
from srfa.rehearsal import simulate_job
from srfa.simulate.noise import Noise
from srfa.specs import BenchmarkJob, GpuSpec, content_id
from srfa.traces.ingest import MANIFEST_FILE
from tasks.evidence import Manifest
from tasks.measurement import Measured
from tasks.rehearsal import Rehearsal

_HEX: Final = 16


class SimulatedEngine:
    """Serves jobs on the simulator, each on a server of its own: no job finds what another left in the caches.

    Parameters
    ----------
    catalog
        With the jobs' GPU and model; a CPU profile has the catalogue's figures, as nothing is probed.
    folder
        Where the files of jobs are written.
    """

    def __init__(self, rehearsal: Rehearsal, catalog: Catalog, *, run_id: str, folder: Path) -> None:
        self._rehearsal = rehearsal
        self._catalog = catalog
        self._run_id = run_id
        self._folder = folder

    def measure(self, job: BenchmarkJob) -> Measured:
        """Simulate the job; the seconds of its outcome are those a server would have taken.

        Raises
        ------
        EngineError
            ``not_simulated``: the server would not start, or the simulator cannot serve this job.
        """
        try:
            files = self._simulated(job)
        except SrfaError as error:
            raise EngineError("not_simulated", str(error)) from error
        manifest = Manifest.model_validate_json(files.pop(MANIFEST_FILE))
        return Measured(manifest.outcome, manifest.window, self._written(job, files))

    def check_usable(self) -> None:
        """Do nothing: a simulator does not die."""

    def evidence(self, job: BenchmarkJob) -> Mapping[str, Path]:  # noqa: ARG002 - the protocol's signature
        """Return nothing: the message says it all."""
        return {}

    def _simulated(self, job: BenchmarkJob) -> dict[str, bytes]:
        return simulate_job(
            job,
            self._catalog,
            coefficients=self._rehearsal.coefficients,
            estimator=self._rehearsal.latency_mode,
            noise=noise_of(self._rehearsal, job),
            run_id=self._run_id,
        )

    def _written(self, job: BenchmarkJob, files: Mapping[str, bytes]) -> dict[str, Path]:
        place = self._folder / f"job-{job.job_id}"
        place.mkdir(exist_ok=True)
        for name, content in files.items():
            (place / name).write_bytes(content)
        return {name: place / name for name in files}


def noise_of(rehearsal: Rehearsal, job: BenchmarkJob) -> Noise | None:
    """Return the noise of one job, None where there is none; equal seeds and jobs have equal noise."""
    if not (rehearsal.step_noise or rehearsal.slow_steps):
        return None
    seed = int(content_id([rehearsal.noise_seed, job.job_id]), _HEX)
    return Noise(log_sd=rehearsal.step_noise, slow_share=rehearsal.slow_steps, seed=seed)


def node_catalog(model: str, gpu: GpuSpec, hf_config: Mapping[str, JsonValue]) -> Catalog:
    """Return the catalogue of a node, which reads none: one GPU and one model.

    Raises
    ------
    CatalogError
        The model's facts cannot be used.
    """
    return Catalog({gpu.name: gpu}, {model: load_model_spec(model, hf_config)}, {model: hf_config})
