"""What the command line says of how well a fit transfers: ``srfa validate``, ``srfa compare`` and ``srfa gate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from srfa import present
from srfa.closed_loop_report import read_closed_loop, read_closed_loop_beside
from srfa.coefficients import read_coefficients
from srfa.errors import NothingMeasuredError
from srfa.estimator_names import DEFAULT_ESTIMATOR, ESTIMATOR_NAMES
from srfa.files import require_writable, writing
from srfa.folds import SPLITS, split_named
from srfa.gate import check_gate, load_limits
from srfa.observations import load_observations
from srfa.options import Calibrations, Common, ConfigFile, Estimator, ObservationFiles, calibrated, with_common
from srfa.physics_report import read_physics
from srfa.provenance import file_hashes, provenance_of
from srfa.validation_report import read_reports, write_reports

if TYPE_CHECKING:
    from srfa.catalog import Catalog
    from srfa.estimators.protocol import Estimator as FittedEstimator
    from srfa.observations import Observations
    from srfa.validate import CrossPrediction

# As in srfa.cli, what loads cvxpy, scipy or matplotlib is imported when a verb runs.


@with_common
def validate(  # noqa: PLR0913 - one parameter an option
    observations: ObservationFiles,
    *,
    split: Annotated[list[str], typer.Option(help="A split, for example leave-one-gpu-out; repeatable.")],
    out: Annotated[Path, typer.Option(help="Where the report is written.")],
    predictions: Annotated[Path | None, typer.Option(help="Also write held-out predictions (Parquet).")] = None,
    estimator: Estimator = DEFAULT_ESTIMATOR,
    config: ConfigFile = None,
    calibrate: Calibrations = None,
    with_coverage: Annotated[
        bool, typer.Option("--coverage", help="Also measure how many steps prediction intervals hold (more fits).")
    ] = False,
    common: Common,
) -> None:
    """Fit on all groups but one, predict that one; for each group of each split.

    Code 4 where no split is possible.

    Example: srfa validate observations.parquet --split leave-one-gpu-out --split time --out report.json
    """
    from srfa.estimators import estimator_named  # noqa: PLC0415 - see above
    from srfa.validate import cross_predict  # noqa: PLC0415 - see above

    for path in (out, predictions) if predictions else (out,):
        require_writable(path)
    chosen, catalog, settings = estimator_named(estimator), calibrated(common, calibrate), common.fit_config(config)
    splits, steps, results = [split_named(name) for name in split], load_observations(observations), []
    origin = provenance_of(steps, file_hashes(observations), microbenchmarks=calibrate or ())
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
        with writing(predictions) as temporary:
            pq.write_table(held_out, temporary, compression="zstd")
    if common.as_json:
        present.show_json(reports)
    present.say(f"wrote {out}")
    if all(one.impossible for one in reports):
        reasons = "\n".join(f"  {one.impossible}" for one in reports)
        raise NothingMeasuredError(f"nothing was validated, no split is possible; add observation files:\n{reasons}")


@with_common
def compare(
    observations: ObservationFiles,
    *,
    out: Annotated[Path, typer.Option(help="Where the leaderboard is written.")],
    estimators: Annotated[
        str, typer.Option(help=f"With commas between, of: {', '.join(ESTIMATOR_NAMES)}; all where absent.")
    ] = "",
    split: Annotated[list[str] | None, typer.Option(help="A split; repeatable; all that are possible.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it (.png, .svg or .pdf).")] = None,
    config: ConfigFile = None,
    common: Common,
) -> None:
    """Compare estimators on the same held-out groups; every file is a data set by itself.

    Example: srfa compare a.parquet b.parquet --estimators srfa,roofline --out leaderboard.json
    """
    from srfa.compare import compare_files, estimators_named  # noqa: PLC0415 - see above
    from srfa.leaderboard import write_leaderboard  # noqa: PLC0415 - see above
    from srfa.leaderboard_figure import check_picture, draw_leaderboard  # noqa: PLC0415 - see above

    chosen, splits = estimators_named(estimators), [split_named(name) for name in dict.fromkeys(split or SPLITS)]
    catalog, settings = common.catalog(), common.fit_config(config)
    require_writable(out)
    if plot:
        check_picture(plot)
        require_writable(plot)
    with present.progress("compare") as advance:
        found = compare_files(
            observations, chosen, catalog, splits=splits, config=settings, n_jobs=common.jobs, progress=advance
        )
    if common.as_json:
        present.show_json(found.board)
    else:
        present.show_leaderboard(found.board)
    if not found.is_empty:
        write_leaderboard(found.board, out)
        present.say(f"wrote {out}")
        if plot:
            draw_leaderboard(found.board, plot)
            present.say(f"wrote {plot}")
    found.require_complete()


@with_common
def gate(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="report.json of 'srfa validate'.")],
    *,
    limits: Annotated[Path, typer.Option(help="The limits (YAML).")] = Path("gate.yaml"),
    baseline: Annotated[
        Path | None, typer.Option(help="report.json to be no worse than, and the closed_loop.json beside it.")
    ] = None,
    physics_file: Annotated[Path | None, typer.Option("--physics", help="physics.json of 'srfa physics'.")] = None,
    closed_loop: Annotated[Path | None, typer.Option(help="closed_loop.json of 'srfa replay'.")] = None,
    coefficients: Annotated[
        Path | None, typer.Option(help="coefficients.json that the reports and the physics must be of.")
    ] = None,
    common: Common,
) -> None:
    """Judge a validation by limits and a baseline; the exit code is the verdict.

    Example: srfa gate report.json --physics physics.json --closed-loop closed_loop.json --limits gate.yaml
    """
    decision = check_gate(
        read_reports(report),
        load_limits(limits),
        read_reports(baseline) if baseline else None,
        physics=read_physics(physics_file) if physics_file else None,
        coefficients=read_coefficients(coefficients) if coefficients else None,
        closed_loop=read_closed_loop(closed_loop) if closed_loop else None,
        baseline_closed_loop=read_closed_loop_beside(baseline) if baseline else None,
    )
    if common.as_json:
        present.show_json(decision)
    else:
        present.show_decision(decision)
    decision.require_passed()


def with_measured_coverage(
    found: CrossPrediction, estimator: FittedEstimator, steps: Observations, catalog: Catalog, n_jobs: int
) -> CrossPrediction:
    """Add to a cross-validation how many steps its intervals hold."""
    from srfa.coverage import coverage  # noqa: PLC0415 - see above

    groups = coverage(estimator, steps, catalog, found=found, config=found.report.config, n_jobs=n_jobs)
    return replace(found, report=found.report.model_copy(update={"coverage": groups}))
