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

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from srfa import present
from srfa.coefficients import read_coefficients, write_coefficients
from srfa.errors import SrfaError, UsageError
from srfa.folds import split_named
from srfa.gate import check_gate, load_limits
from srfa.job_folders import find_job_folders, ingest_folder, measured_catalog, require_complete, write_observations
from srfa.matrix import expand as expand_matrix
from srfa.matrix import load_matrix
from srfa.observations import load_observations
from srfa.options import Common, amounts, with_common
from srfa.physics_report import read_physics
from srfa.plan import plan as plan_campaign
from srfa.provenance import file_hashes, provenance_of
from srfa.trust_verbs import cross_validated_intervals, identify, physics, with_measured_coverage
from srfa.validation_report import read_reports, write_reports

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
ObservationFiles = Annotated[list[Path], typer.Argument(metavar="OBS...", help="Observation files (Parquet).")]
Estimator = Annotated[str, typer.Option(help="The estimator: srfa-seed or roofline.")]
ConfigFile = Annotated[Path | None, typer.Option(help="Settings of the fit (YAML or JSON); defaults where absent.")]


app.command()(physics)
app.command()(identify)


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
def fit(
    observations: ObservationFiles,
    *,
    out: Annotated[Path, typer.Option(help="Where the coefficients are written.")],
    estimator: Estimator = "srfa-seed",
    config: ConfigFile = None,
    with_intervals: Annotated[
        bool, typer.Option("--intervals/--no-intervals", help="Cross-validate, so that predictions have p05 and p95.")
    ] = False,
    common: Common,
) -> None:
    """Fit an estimator to observations and write its coefficients.

    Example: srfa fit observations.parquet --estimator srfa-seed --intervals --out coefficients.json
    """
    from srfa.domain import training_domain  # noqa: PLC0415 - see above
    from srfa.estimators import estimator_named  # noqa: PLC0415 - see above
    from srfa.speed_of_light import possible_steps  # noqa: PLC0415 - see above

    chosen, catalog, settings = estimator_named(estimator), common.catalog(), common.fit_config(config)
    steps, n_left_out = possible_steps(load_observations(observations), catalog)
    if n_left_out:
        present.say(f"left out {n_left_out} step(s) faster than light")
    fitted = chosen.fit(chosen.features(steps, catalog), settings)
    origin, domain = provenance_of(steps, file_hashes(observations)), training_domain(steps, catalog)
    fitted = fitted.model_copy(update={"provenance": origin, "domain": domain})
    if with_intervals:
        fitted = fitted.model_copy(update={"intervals": cross_validated_intervals(chosen, steps, settings, common)})
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
    common: Common,
) -> None:
    """Write the input's rows plus predicted_step_time_us, in microseconds, its interval and its domain grade.

    Example: srfa predict observations.parquet --coefficients coefficients.json --out predicted.parquet
    """
    from srfa.predictions import predict_files  # noqa: PLC0415 - see above

    summary = predict_files(observations, read_coefficients(coefficients), common.catalog(), out)
    if common.as_json:
        present.show_json(summary)
    else:
        present.show_errors(summary)
    present.say(f"wrote {out}")


@app.command()
@with_common
def validate(  # noqa: PLR0913 - one parameter an option
    observations: ObservationFiles,
    *,
    split: Annotated[list[str], typer.Option(help="A split, for example leave-one-gpu-out; repeatable.")],
    out: Annotated[Path, typer.Option(help="Where the report is written.")],
    predictions: Annotated[Path | None, typer.Option(help="Also write held-out predictions (Parquet).")] = None,
    estimator: Estimator = "srfa-seed",
    config: ConfigFile = None,
    with_coverage: Annotated[
        bool, typer.Option("--coverage", help="Also measure how many steps prediction intervals hold (more fits).")
    ] = False,
    common: Common,
) -> None:
    """Fit on all groups but one, predict that one; for each group of each split.

    Example: srfa validate observations.parquet --split leave-one-gpu-out --split time --out report.json
    """
    from srfa.estimators import estimator_named  # noqa: PLC0415 - see above
    from srfa.validate import cross_predict  # noqa: PLC0415 - see above

    chosen, catalog, settings = estimator_named(estimator), common.catalog(), common.fit_config(config)
    splits, steps, results = [split_named(name) for name in split], load_observations(observations), []
    origin = provenance_of(steps, file_hashes(observations))
    for one in splits:
        with present.progress(one) as advance:
            found = cross_predict(
                chosen, steps, catalog, split=one, config=settings, n_jobs=common.jobs, progress=advance
            )
        if with_coverage:
            found = with_measured_coverage(found, chosen, steps, catalog, common.jobs)
        results.append(found.with_provenance(origin))
        if not common.as_json:
            present.show_report(results[-1].report)
    reports = tuple(result.report for result in results)
    write_reports(reports, out)
    if predictions:
        held_out = pa.concat_tables([result.held_out for result in results])
        pq.write_table(held_out, predictions, compression="zstd")
    if common.as_json:
        present.show_json(reports)
    present.say(f"wrote {out}")


@app.command()
@with_common
def gate(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="report.json of 'srfa validate'.")],
    *,
    limits: Annotated[Path, typer.Option(help="The limits (YAML).")] = Path("gate.yaml"),
    baseline: Annotated[Path | None, typer.Option(help="report.json to be no worse than.")] = None,
    physics_file: Annotated[Path | None, typer.Option("--physics", help="physics.json of 'srfa physics'.")] = None,
    common: Common,
) -> None:
    """Judge a validation by limits and a baseline; the exit code is the verdict.

    Example: srfa gate report.json --baseline releases/1f2e3d4c5b6a/report.json --limits gate.yaml
    """
    decision = check_gate(
        read_reports(report),
        load_limits(limits),
        read_reports(baseline) if baseline else None,
        physics=read_physics(physics_file) if physics_file else None,
    )
    if common.as_json:
        present.show_json(decision)
    else:
        present.show_decision(decision)
    decision.require_passed()


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
    common: Common,
) -> None:
    """Write coefficients for another program.

    Example: srfa export observations.parquet --coefficients coefficients.json --format blis --out export
    """
    from srfa.export import projection_of, write_blis  # noqa: PLC0415 - see above
    from srfa.speed_of_light import possible_steps  # noqa: PLC0415 - see above

    fitted = read_coefficients(coefficients)
    if target is ExportFormat.JSON:
        written: tuple[Path, ...] = (out / "coefficients.json",)
        write_coefficients(fitted, written[0])
    elif observations:
        catalog = common.catalog()
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
