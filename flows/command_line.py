"""The flows from a shell: ``python -m flows.collect_and_train --help``. The exit code is the error's, else 0.

A flow runs in this process; Prefect's API is the one that is configured, or a temporary server.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from flows.screen import show_summary
from srfa.document import read_yaml
from srfa.errors import InputError, SrfaError, UsageError
from srfa.estimator_names import DEFAULT_ESTIMATOR, ESTIMATOR_NAMES
from srfa.estimators import estimator_named
from srfa.gate import load_limits
from srfa.wording import explain
from tasks.campaign import Site, prepare_campaign
from tasks.cluster import ClusterSettings
from tasks.rehearsal import RehearsalSettings
from tasks.store import open_store
from tasks.summary import read_summary, summary_key

MatrixFile = Annotated[Path, typer.Option(help="The experiment.")]
LimitsFile = Annotated[Path, typer.Option(help="What the gate asks for, and which splits are validated.")]
StoreUri = Annotated[str, typer.Option(help="Where traces, tables and releases lie: a folder or s3://bucket/prefix.")]
EstimatorName = Annotated[str, typer.Option(help=f"The estimator: {', '.join(ESTIMATOR_NAMES)}.")]
RunId = Annotated[str | None, typer.Option(help="Name of this run in the store. [default: date, time, content id]")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run: measure only what has no manifest.")]
SiteFile = Annotated[Path | None, typer.Option(help="YAML file with what differs between installations.")]
Hardware = Annotated[Path | None, typer.Option(help="Folder with a JSON file a GPU. [default: hardware]")]
Models = Annotated[Path | None, typer.Option(help="Folder with <org>/<name>/config.json. [default: models]")]
RayAddress = Annotated[str | None, typer.Option(help="Address of a Ray cluster. [default: Ray on this machine]")]
Out = Annotated[Path | None, typer.Option(help="Folder that also gets a copy of the release.")]
Rehearse = Annotated[
    Path | None,
    typer.Option(metavar="COEFFICIENTS", help="Simulate the engines by this fit; nothing is measured."),
]
LatencyMode = Annotated[
    str | None, typer.Option(help="What tells a rehearsed step's time: the fit's estimator, or roofline without a fit.")
]
StepNoise = Annotated[
    float, typer.Option(min=0.0, help="Rehearsal: noise on each step (standard deviation of its log).")
]
SlowSteps = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Rehearsal: share of steps that take three times as long.")
]
NoiseSeed = Annotated[int, typer.Option(min=0, help="Rehearsal: another seed gives other noise.")]


def collect_and_train_command(  # noqa: PLR0913, PLR0917 - one parameter an option
    matrix: MatrixFile = Path("examples/local.yaml"),
    limits: LimitsFile = Path("examples/gate-local.yaml"),
    store: StoreUri = "runs",
    estimator: EstimatorName = DEFAULT_ESTIMATOR,
    run_id: RunId = None,
    resume: Resume = False,
    site: SiteFile = None,
    hardware: Hardware = None,
    models: Models = None,
    ray_address: RayAddress = None,
    out: Out = None,
    rehearse: Rehearse = None,
    latency_mode: LatencyMode = None,
    step_noise: StepNoise = 0.0,
    slow_steps: SlowSteps = 0.0,
    noise_seed: NoiseSeed = 0,
) -> None:
    """Measure a matrix on real engines, fit a latency model, prove that it transfers, publish it if it does.

    Exit codes: 0 ok, 1 the gate says no, 2 bad input, 3 jobs failed, 4 nothing measured, 5 data invalid.

    With --rehearse the engines are simulated, on this machine and without a GPU; the release never becomes the latest.
    """

    def run() -> None:
        from flows.collect_and_train import collect_and_train  # noqa: PLC0415 - --help must not wait for Prefect

        where = site_of(site, hardware=hardware, models=models, ray_address=ray_address, out=out)
        load_limits(limits)
        estimator_named(estimator)
        simulated = rehearsal_of(
            rehearse, latency_mode=latency_mode, step_noise=step_noise, slow_steps=slow_steps, noise_seed=noise_seed
        )
        campaign = prepare_campaign(
            matrix, store, where, run_id=run_id, resume=resume, now=datetime.now(UTC), rehearsal=simulated
        )
        with_summary(
            campaign.store_uri,
            campaign.run_id,
            lambda: collect_and_train(matrix, limits, store, estimator, campaign.run_id, resume, where, simulated),
        )

    ended(run)


def collect_command(  # noqa: PLR0913, PLR0917 - one parameter an option
    matrix: MatrixFile = Path("examples/local.yaml"),
    store: StoreUri = "runs",
    run_id: RunId = None,
    resume: Resume = False,
    site: SiteFile = None,
    hardware: Hardware = None,
    models: Models = None,
    ray_address: RayAddress = None,
    rehearse: Rehearse = None,
    latency_mode: LatencyMode = None,
    step_noise: StepNoise = 0.0,
    slow_steps: SlowSteps = 0.0,
    noise_seed: NoiseSeed = 0,
) -> None:
    """Measure a matrix on real engines and ingest its traces; nothing is fitted. With --rehearse they are simulated."""

    def run() -> None:
        from flows.collect import collect  # noqa: PLC0415 - as above

        where = site_of(site, hardware=hardware, models=models, ray_address=ray_address, out=None)
        simulated = rehearsal_of(
            rehearse, latency_mode=latency_mode, step_noise=step_noise, slow_steps=slow_steps, noise_seed=noise_seed
        )
        campaign = prepare_campaign(
            matrix, store, where, run_id=run_id, resume=resume, now=datetime.now(UTC), rehearsal=simulated
        )
        with_summary(
            campaign.store_uri,
            campaign.run_id,
            lambda: collect(matrix, store, campaign.run_id, resume, where, simulated),
        )

    ended(run)


def train_command(  # noqa: PLR0913, PLR0917 - one parameter an option
    observations: Annotated[list[Path] | None, typer.Argument(help="Observation files; none: --run-id.")] = None,
    run_id: Annotated[str | None, typer.Option(help="A run in the store, whose traces are ingested anew.")] = None,
    store: StoreUri = "runs",
    limits: LimitsFile = Path("examples/gate-local.yaml"),
    estimator: EstimatorName = DEFAULT_ESTIMATOR,
    site: SiteFile = None,
    hardware: Hardware = None,
    models: Models = None,
    out: Out = None,
) -> None:
    """Fit, validate, gate and publish from observation files or a run in the store; nothing is measured."""

    def run() -> None:
        from flows.train import train  # noqa: PLC0415 - as above

        where = site_of(site, hardware=hardware, models=models, ray_address=None, out=out)
        files = tuple(observations or ())
        if run_id is None:
            show_summary(train(files, run_id, store, limits, estimator, where), open_store(store))
        else:
            with_summary(store, run_id, lambda: train(files, run_id, store, limits, estimator, where))

    ended(run)


def gate_command(
    report: Annotated[Path, typer.Argument(help="report.json of a release, or of srfa validate.")],
    limits: LimitsFile = Path("examples/gate-local.yaml"),
    baseline: Annotated[Path | None, typer.Option(help="report.json to be no worse than.")] = None,
    physics: Annotated[Path | None, typer.Option(help="physics.json of a release, or of srfa physics.")] = None,
    closed_loop: Annotated[Path | None, typer.Option(help="closed_loop.json of a release, or of srfa replay.")] = None,
) -> None:
    """Judge a report by limits and a baseline, as a flow run that is kept; srfa gate does it without Prefect."""

    def run() -> None:
        from flows.gate import gate  # noqa: PLC0415 - as above

        gate(report, limits, baseline, physics, closed_loop)

    ended(run)


def run_command(command: Callable[..., None]) -> None:
    """Parse the command line and run; never returns. ``SIGTERM`` ends what was started, as an interrupt does."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()


def ended(run: Callable[[], None]) -> None:
    """Run, and end the process with the exit code of what was refused; the text goes to stderr.

    Raises
    ------
    typer.Exit
        With the code of a ``SrfaError``.
    """
    try:
        run()
    except SrfaError as error:
        Console(stderr=True).print(f"{type(error).__name__}: {error}", markup=False, soft_wrap=True, highlight=False)
        raise typer.Exit(error.exit_code) from error


def with_summary(store_uri: str, run_id: str, flow: Callable[[], object]) -> None:
    """Run a flow, then print the summary it left in the store, also where it ends with an error after writing one."""
    store, key = open_store(store_uri), summary_key(run_id)
    before, ended_well = store.version(key), False
    try:
        flow()
        ended_well = True
    finally:
        if ended_well or store.version(key) != before:
            show_summary(read_summary(store, run_id), store)


def site_of(
    file: Path | None, *, hardware: Path | None, models: Path | None, ray_address: str | None, out: Path | None
) -> Site:
    """Return the site a file describes, with what the command line says otherwise.

    Raises
    ------
    InputError
        The file is malformed; each finding names file, line and key.
    """
    site = Site() if file is None else _read_site(file)
    given = {"hardware": hardware, "models": models, "out": out}
    changes: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    if ray_address is not None:
        changes["cluster"] = ClusterSettings(**{**site.cluster.model_dump(), "address": ray_address})
    return site.model_copy(update=changes)


def rehearsal_of(
    coefficients: Path | None, *, latency_mode: str | None, step_noise: float, slow_steps: float, noise_seed: int
) -> RehearsalSettings | None:
    """Return what simulates the engines; None where neither coefficients nor a latency mode is named.

    Raises
    ------
    UsageError
        Noise without a rehearsal: real engines bring their own.
    """
    if coefficients is not None or latency_mode is not None:
        return RehearsalSettings(
            coefficients=coefficients,
            latency_mode=latency_mode,
            step_noise=step_noise,
            slow_steps=slow_steps,
            noise_seed=noise_seed,
        )
    if step_noise or slow_steps or noise_seed:
        raise UsageError("--step-noise, --slow-steps and --noise-seed are a rehearsal's; name --rehearse COEFFICIENTS")
    return None


def _read_site(file: Path) -> Site:
    document = read_yaml(file, InputError)
    try:
        return Site.model_validate(document.data)
    except ValidationError as error:
        findings = [f"{document.place(item['loc'])}: {explain(item, Site)}" for item in error.errors()]
        raise InputError("\n".join(findings)) from error
