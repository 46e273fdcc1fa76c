"""What the processes of one engine group share on a node: settings, folder, model, package, environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, JsonValue, PositiveFloat

from srfa.specs import BenchmarkJob, GpuSpec, Spec
from srfa.traces.tables import canonical_dtype
from tasks.engine_environment import bound_cores, engine_environment
from tasks.engine_package import write_engine_package
from tasks.process import SupervisedProcess
from tasks.tiny_models import write_tiny_model


class EngineSettings(Spec):
    """How engines are run on a node; nothing here changes what is measured.

    Parameters
    ----------
    interpreter
        Python of the environment vLLM is installed in; None for the one that runs this.
    serve_command, load_command, probe_command
        What the interpreter is given before the flags.
    port
        0 takes a free one.
    offline
        Do not ask the Hugging Face hub for models: they lie on the node, or are written on the spot.
    failed_ratio_limit
        Share of a workload's requests that may fail.
    """

    interpreter: Path | None = None
    serve_command: tuple[str, ...] = ("-m", "vllm.entrypoints.cli.main", "serve")
    load_command: tuple[str, ...] = ("-m", "srfa.vllm.loadgen")
    probe_command: tuple[str, ...] = ("-m", "srfa.vllm.probe")
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    offline: bool = True
    ready_timeout_s: PositiveFloat = 900.0
    probe_timeout_s: PositiveFloat = 300.0
    request_timeout_s: PositiveFloat = 120.0
    load_timeout_s: PositiveFloat = 3600.0
    stop_grace_s: PositiveFloat = 10.0
    warmup_requests: int = Field(default=8, ge=0)
    failed_ratio_limit: float = Field(default=0.01, ge=0, le=1)

    @property
    def python(self) -> str:
        """The engine's interpreter on this machine."""
        return str(self.interpreter or sys.executable)


class Workplace:
    """A folder on the node with what the processes of one group share: package, model, environment, logs.

    Parameters
    ----------
    folder
        Empty or new; the caller removes it.
    hf_config
        The model's ``config.json`` where the model is to be written on the spot, None where the engine finds it by id.
    first_core
        For a CPU profile: which of the allowed cores its first thread is bound to.
    """

    def __init__(
        self,
        job: BenchmarkJob,
        gpu: GpuSpec,
        settings: EngineSettings,
        *,
        folder: Path,
        hf_config: Mapping[str, JsonValue] | None = None,
        first_core: int = 0,
    ) -> None:
        self.job = job
        self.gpu = gpu
        self.settings = settings
        self.folder = folder
        self.dtype = canonical_dtype(_dtype(job, hf_config))
        self.model_source = job.model if hf_config is None else str(folder / "model")
        if hf_config is not None:
            write_tiny_model(dict(hf_config), folder / "model")
        self.environment = engine_environment(
            os.environ,
            gpu,
            package_root=write_engine_package(folder / "package"),
            cores=bound_cores(
                sorted(os.sched_getaffinity(0)),
                first_core,
                threads=gpu.datasheet.omp_threads or 1,
                ranks=job.engine.gpu_count,
            ),
            offline=settings.offline,
        )

    def start(
        self, command: tuple[str, ...], log: str, *, talks: bool = False, **environment: str
    ) -> SupervisedProcess:
        """Run the engine's interpreter on ``command`` under a supervisor."""
        return SupervisedProcess(
            [self.settings.python, *command],
            interpreter=Path(self.settings.python),
            environment=self.environment | environment,
            log=self.folder / log,
            grace_s=self.settings.stop_grace_s,
            talks=talks,
        )


def _dtype(job: BenchmarkJob, hf_config: Mapping[str, JsonValue] | None) -> str:
    """Return the data type the engine computes in; bfloat16 where neither job nor facts say."""
    if job.engine.dtype != "auto":
        return job.engine.dtype
    facts = hf_config or {}
    return str(facts.get("torch_dtype") or facts.get("dtype") or "bfloat16")
