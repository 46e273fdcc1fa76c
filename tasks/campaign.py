"""What a run measures: the matrix expanded, grouped and checked before anything is started."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import Field

from srfa.catalog import Catalog, load_catalog
from srfa.errors import UsageError
from srfa.matrix import Expansion, expand, load_matrix
from srfa.plan import group_jobs, job_duration_s
from srfa.simulated import REHEARSAL, is_rehearsal
from srfa.specs import BenchmarkJob, EngineGroup, GpuSpec, Spec, content_id
from tasks.cluster import ClusterSettings, first_core
from tasks.group import GroupRequest
from tasks.rehearsal import Rehearsal, RehearsalSettings
from tasks.store import TraceStore, open_store
from tasks.workplace import EngineSettings

_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Site(Spec):
    """What differs between installations, and never changes what a job means."""

    hardware: Path = Field(default=Path("hardware"), description="Folder with one JSON file a GPU or CPU profile.")
    models: Path = Field(default=Path("models"), description="Folder with <org>/<name>/config.json of each model.")
    cluster: ClusterSettings = Field(
        default=ClusterSettings(),
        description="Ray: its address (none: this machine), how long groups may wait and take.",
    )
    engine: EngineSettings = Field(
        default=EngineSettings(), description="How engines are run on a node: interpreter, ports, limits in seconds."
    )
    out: Path | None = Field(default=None, description="Folder that also gets a copy of the release. Empty: none.")


THIS_MACHINE: Final = Site()
"""The embedded default: Ray and engines on this machine, catalogue in the working directory."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """A checked run.

    Parameters
    ----------
    groups
        One for each server start, longest first.
    rehearsal
        What simulates the engines; None: they are real.
    """

    run_id: str
    store_uri: str
    catalog: Catalog
    expansion: Expansion
    groups: tuple[EngineGroup, ...]
    site: Site
    rehearsal: Rehearsal | None = None

    @property
    def store(self) -> TraceStore:
        """The run's store."""
        return open_store(self.store_uri)

    @property
    def jobs(self) -> tuple[BenchmarkJob, ...]:
        """All jobs, in the matrix's order."""
        return self.expansion.jobs

    @property
    def gpus(self) -> tuple[GpuSpec, ...]:
        """The GPUs and CPU profiles the jobs need."""
        return tuple(self.catalog.resolve_gpu(name) for name in sorted({job.gpu for job in self.jobs}))

    def request(self, group: EngineGroup) -> GroupRequest:
        """Return what the node that runs ``group`` needs to know."""
        job = group.first
        model = self.catalog.resolve_model(job.model)
        facts_needed = job.engine.load_format == "dummy" or self.rehearsal is not None
        gpu = self.catalog.resolve_gpu(job.gpu)
        return GroupRequest.model_validate(
            {
                "run_id": self.run_id,
                "store_uri": self.store_uri,
                "gpu": gpu,
                "hf_config": dict(self.catalog.model_configs[model.name]) if facts_needed else None,
                "first_core": first_core(gpu, self.gpus),
                "settings": self.site.engine,
                "rehearsal": self.rehearsal,
            }
        )


def prepare_campaign(
    matrix: Path,
    store: str,
    site: Site,
    *,
    run_id: str | None,
    resume: bool,
    now: datetime,
    rehearsal: RehearsalSettings | None = None,
) -> Campaign:
    """Check everything that can be checked before a server is started.

    Parameters
    ----------
    run_id
        None: date and time of ``now``, and the content id of the jobs, after ``rehearsal-`` where it is one.
    resume
        True: the run may be there already; jobs that have a manifest are not measured again.
    rehearsal
        Simulate the engines; None: measure.

    Raises
    ------
    SrfaError
        ``MatrixError``, ``CatalogError``, ``CoefficientsError``, ``StoreError``: what they name; ``UsageError``: the
        run id cannot be used, or nothing tells the time of a rehearsed step.
    """
    catalog = load_catalog(site.hardware, site.models)
    expansion = expand(load_matrix(matrix), catalog)
    simulator = None if rehearsal is None else rehearsal.read()
    opened = open_store(store)
    opened.check()
    name = run_id or generated_run_id(expansion.jobs, now, prefix=f"{REHEARSAL}-" if rehearsal else "")
    _check_kind(name, rehearsal)
    _check_run_id(opened, name, resume=resume)
    groups = group_jobs(expansion.jobs, lambda job: job_duration_s(job, catalog))
    return Campaign(name, opened.uri, catalog, expansion, groups, site, simulator)


def generated_run_id(jobs: tuple[BenchmarkJob, ...], now: datetime, *, prefix: str = "") -> str:
    """Return ``YYYYMMDDThhmmss-<content id of the jobs>``; the order of the jobs does not matter.

    >>> generated_run_id((), datetime(2026, 11, 23, 15, 4, 5))
    '20261123T150405-4f53cda18c2b'
    """
    return f"{prefix}{now:%Y%m%dT%H%M%S}-{content_id(sorted(job.job_id for job in jobs))}"


def _check_kind(run_id: str, rehearsal: RehearsalSettings | None) -> None:
    """Keep simulated and measured jobs in different runs: neither can go on with the other's."""
    if rehearsal is not None and not is_rehearsal(run_id):
        raise UsageError(f"run_id={run_id}: a rehearsal's name begins with {REHEARSAL}-; take {REHEARSAL}-{run_id}")
    if rehearsal is None and is_rehearsal(run_id):
        raise UsageError(
            f"run_id={run_id}: such runs are rehearsals; choose another name to measure, or --rehearse by coefficients"
        )


def _check_run_id(store: TraceStore, run_id: str, *, resume: bool) -> None:
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(f"run_id={run_id!r}: use letters, digits, dot, dash and underscore, the first no sign")
    present = next(iter(store.list(f"traces/run_id={run_id}/")), None)
    if present is not None and not resume:
        raise UsageError(
            f"run_id={run_id}: {store.uri} holds that run already ({present}); set resume to measure what is missing,"
            " or choose another id"
        )
