"""The command line ``srfa``: one thin verb a step of the way from a matrix to gated coefficients.

Results go to stdout (tables, or JSON with ``--json``), words and progress to stderr. Exit codes: 0 ok, 1 gate failed,
2 usage or bad input, 3 incomplete, 4 nothing measured, 5 data invalid.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from srfa import present
from srfa.coefficients import read_coefficients, read_prior, write_coefficients
from srfa.errors import SrfaError, UsageError
from srfa.estimator_names import DEFAULT_ESTIMATOR
from srfa.files import require_apart, require_writable, require_writable_folder
from srfa.job_folders import find_job_folders, ingest_folder, measured_catalog, require_complete, write_observations
from srfa.matrix import expand as expand_matrix
from srfa.matrix import load_matrix
from srfa.observations import load_observations
from srfa.options import (
    Calibrations,
    Common,
    ConfigFile,
    Estimator,
    ObservationFiles,
    amounts,
    calibrated,
    with_common,
)
from srfa.plan import plan as plan_campaign
from srfa.probe import run_probe
from srfa.provenance import calibration_differences, file_hashes, provenance_of
from srfa.simulation_verbs import simulate
from srfa.trust_verbs import cross_validated_intervals, identify, physics
from srfa.validation_verbs import compare, gate, validate

# Verbs that fit or draw import their module when they run: cvxpy, scipy and matplotlib take seconds to load, which
# 'srfa expand' and 'srfa --help' need not wait for.

app = typer.Typer(
    name="srfa",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=__doc__,
)

MatrixFile = Annotated[Path, typer.Argument(metavar="MATRIX", help="The experiment, for example matrix.yaml.")]


class DeviceKind(StrEnum):
    """Where ``srfa probe`` measures; auto takes a GPU where PyTorch sees one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class DType(StrEnum):
    """The number formats ``srfa probe`` measures in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class ExportFormat(StrEnum):
    """What ``srfa export`` can write."""

    JSON = "json"
    BLIS = "blis"


class IngestFormat(StrEnum):
    """What ``srfa ingest`` can read."""

    AUTO = "auto"
    SRFA = "srfa"


@app.command()
@with_common
def expand(
    matrix: MatrixFile,
    *,
    explain: Annotated[bool, typer.Option("--explain", help="List every skipped cell with its reason.")] = False,
    common: Common,
) -> None:
    """List the jobs of a matrix, and what is skipped and why.

    Example: srfa expand matrix.yaml --explain
    """
    expansion = expand_matrix(load_matrix(matrix), common.catalog())
    if common.as_json:
        present.show_json(present.expansion_json(expansion))
    else:
        present.show_expansion(expansion, explain=explain)


@app.command()
@with_common
def plan(
    matrix: MatrixFile,
    *,
    price: Annotated[list[str] | None, typer.Option(help="GPU=PRICE for one GPU-hour; repeatable.")] = None,
    nodes: Annotated[list[str] | None, typer.Option(help="GPU=NODES that work side by side; repeatable.")] = None,
    common: Common,
) -> None:
    """Estimate server starts, GPU-hours, time and cost before anything runs.

    Example: srfa plan matrix.yaml --price h100-sxm-80gb=2.5 --nodes h100-sxm-80gb=2
    """
    catalog = common.catalog()
    prices, counts = amounts("--price", price or []), amounts("--nodes", nodes or [])
    planned = plan_campaign(
        expand_matrix(load_matrix(matrix), catalog),
        catalog,
        prices_per_gpu_hour=prices,
        nodes={gpu: int(count) for gpu, count in counts.items()},
    )
    if common.as_json:
        present.show_json(present.plan_json(planned))
    else:
        present.show_plan(planned)


@app.command()
@with_common
def probe(
    *,
    out: Annotated[Path, typer.Option(help="Where the figures are written (JSON).")],
    device: Annotated[DeviceKind, typer.Option(help="Where to measure.")] = DeviceKind.AUTO,
    seconds: Annotated[float, typer.Option(min=0.0, help="How long to measure.")] = 60.0,
    dtype: Annotated[DType | None, typer.Option(help="Default: float32 on a CPU, bfloat16 on a GPU.")] = None,
    gpu: Annotated[str, typer.Option(help="Its name in hardware/, where that is not the vendor's name.")] = "",
    python: Annotated[str, typer.Option(help="The engine's interpreter, which has PyTorch.")] = sys.executable,
    common: Common,
) -> None:
    """Measure what the kernels of a forward pass reach on this machine, for --calibrate.

    Example: srfa probe --out microbenchmark.json --gpu h100-sxm-80gb
    """
    require_writable(out)
    options = ["--device", device, "--gpu", gpu, *(("--dtype", dtype) if dtype else ())]
    present.say(f"measuring for about {seconds:g} s")
    measured = run_probe(python, out, seconds=seconds, arguments=options)
    if common.as_json:
        present.show_json(measured)
    else:
        present.show_microbenchmark(measured)
    present.say(f"wrote {out}")


@app.command()
@with_common
def ingest(
    sources: Annotated[list[Path], typer.Argument(metavar="SRC...", help="Job folders, or folders above them.")],
    *,
    out: Annotated[Path, typer.Option(help="Where tables/ and observations/ are written.")],
    source_format: Annotated[IngestFormat, typer.Option("--format", help="What SRC holds.")] = IngestFormat.AUTO,  # noqa: ARG001 - one format so far
    common: Common,
) -> None:
    """Turn raw traces into tables and observations, through the data gates.

    Example: srfa ingest runs/traces/run_id=local --out runs
    """
    require_writable_folder(out)
    folders = find_job_folders(sources)
    catalog = measured_catalog(folders, common.catalog())
    done = []
    with present.progress("ingest") as advance:
        for folder in folders:
            done.append(ingest_folder(folder, catalog, out))
            advance(len(done), len(folders))
    jobs = [job for job, _ in done]
    files = write_observations([table for _, table in done if table is not None], out)
    if common.as_json:
        present.show_json({"jobs": [job.model_dump() for job in jobs], "observations": [str(file) for file in files]})
    else:
        present.show_ingested(jobs)
    for file in files:
        present.say(f"wrote {file}")
    require_complete(jobs)


@app.command()
@with_common
def fit(  # noqa: PLR0913 - one parameter an option
    observations: ObservationFiles,
    *,
    out: Annotated[Path, typer.Option(help="Where the coefficients are written.")],
    estimator: Estimator = DEFAULT_ESTIMATOR,
    config: ConfigFile = None,
    with_intervals: Annotated[
        bool, typer.Option("--intervals/--no-intervals", help="Cross-validate, so that predictions have p05 and p95.")
    ] = False,
    calibrate: Calibrations = None,
    prior: Annotated[Path | None, typer.Option(help="coefficients.json that few steps are refitted from.")] = None,
    common: Common,
) -> None:
    """Fit an estimator to observations and write its coefficients.

    Example: srfa fit observations.parquet --estimator srfa --intervals --out coefficients.json
    """
    from srfa.domain import training_domain  # noqa: PLC0415 - see above
    from srfa.estimators import estimator_named  # noqa: PLC0415 - see above
    from srfa.speed_of_light import possible_steps  # noqa: PLC0415 - see above

    require_writable(out)
    chosen, catalog, settings = estimator_named(estimator), calibrated(common, calibrate), common.fit_config(config)
    source = read_prior(prior, chosen.name) if prior else None
    if source and with_intervals:
        raise UsageError("--intervals measures fits without a prior, whose errors are others: leave out one of the two")
    steps, n_left_out = possible_steps(load_observations(observations), catalog)
    if n_left_out:
        present.say(f"left out {n_left_out} step(s) faster than light")
    fitted = chosen.fit(chosen.features(steps, catalog), settings, prior=source)
    origin = provenance_of(steps, file_hashes(observations), microbenchmarks=calibrate or (), prior=prior)
    fitted = fitted.model_copy(update={"provenance": origin, "domain": training_domain(steps, catalog)})
    if with_intervals:
        intervals = cross_validated_intervals(chosen, steps, catalog, config=settings, n_jobs=common.jobs)
        fitted = fitted.model_copy(update={"intervals": intervals})
    write_coefficients(fitted, out)
    if common.as_json:
        present.show_json(fitted)
    else:
        present.show_coefficients(fitted)
    present.say(f"wrote {out}")


@app.command()
@with_common
def predict(
    observations: ObservationFiles,
    *,
    coefficients: Annotated[Path, typer.Option(help="coefficients.json of a fit.")],
    out: Annotated[Path, typer.Option(help="Where the rows with their prediction are written (Parquet).")],
    calibrate: Calibrations = None,
    common: Common,
) -> None:
    """Write the input's rows plus predicted_step_time_us, in microseconds, its interval and its domain grade.

    Steps need no step_time_us; those that have one are compared with it.

    Example: srfa predict observations.parquet --coefficients coefficients.json --out predicted.parquet
    """
    from srfa.predictions import predict_files  # noqa: PLC0415 - see above

    require_writable(out)
    require_apart(out, [*observations, coefficients, *(calibrate or ())])
    fitted, catalog = read_coefficients(coefficients), calibrated(common, calibrate)
    for difference in calibration_differences(fitted.provenance, calibrate or ()):
        present.say(f"warning: {coefficients}: {difference}")
    summary = predict_files(observations, fitted, catalog, out)
    if common.as_json:
        present.show_json(summary)
    elif summary:
        present.show_errors(summary)
    else:
        present.say("no labels: the steps have no step_time_us to compare with")
    present.say(f"wrote {out}")


app.command()(validate)
app.command()(compare)
app.command()(physics)
app.command()(identify)
app.command()(gate)
app.command()(simulate)


@app.command()
@with_common
def export(
    observations: Annotated[
        list[Path] | None, typer.Argument(metavar="[OBS...]", help="What BLIS's basis is refitted to.")
    ] = None,
    *,
    coefficients: Annotated[Path, typer.Option(help="coefficients.json of a fit.")],
    out: Annotated[Path, typer.Option(help="The folder to write into.")],
    target: Annotated[ExportFormat, typer.Option("--format", help="json copies, blis refits.")] = ExportFormat.JSON,
    calibrate: Calibrations = None,
    common: Common,
) -> None:
    """Write coefficients for another program.

    Example: srfa export observations.parquet --coefficients coefficients.json --format blis --out export
    """
    from srfa.export import projection_of, write_blis  # noqa: PLC0415 - see above
    from srfa.speed_of_light import possible_steps  # noqa: PLC0415 - see above

    require_writable_folder(out)
    fitted = read_coefficients(coefficients)
    if target is ExportFormat.JSON:
        written: tuple[Path, ...] = (out / "coefficients.json",)
        write_coefficients(fitted, written[0])
    elif observations:
        catalog = calibrated(common, calibrate)
        steps, _ = possible_steps(load_observations(observations), catalog)
        projection = projection_of(fitted, steps, catalog)
        gpus = {place.gpu: catalog.resolve_gpu(place.gpu) for place in steps.configurations}
        written = write_blis(projection, fitted.provenance, gpus.values(), out)
    else:
        raise UsageError(
            "--format blis refits the coefficients on BLIS's basis: name the observation files to refit to"
        )
    if common.as_json:
        present.show_json({"written": [str(file) for file in written]})
    for file in written:
        present.say(f"wrote {file}")


@app.command()
@with_common
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A release, or a folder with report.json.")],
    *,
    out: Annotated[Path, typer.Option(help="The report: .html (self-contained) or .md.")],
    common: Common,
) -> None:
    """Write a report for people: verdict, folds, coefficients, figures.

    Example: srfa report releases/1f2e3d4c5b6a --out report.html
    """
    from srfa.report_folder import write_report  # noqa: PLC0415 - see above

    write_report(folder, out)
    if common.as_json:
        present.show_json({"written": str(out)})
    present.say(f"wrote {out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; only what srfa raises on purpose loses its traceback."""
    try:
        app(args=list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
    except SrfaError as error:
        present.say(f"error: {error}")
        return error.exit_code
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
