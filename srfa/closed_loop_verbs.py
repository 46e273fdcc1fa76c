"""What the command line says of measured jobs in the simulator: ``srfa replay``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srfa import present
from srfa.closed_loop_page import (
    ERROR_HEADS,
    ERROR_LEGEND,
    LEGEND,
    LOST_HEADS,
    SUMMARY_HEADS,
    error_rows,
    headline,
    loop_sentence,
    lost_rows,
    noise_sentence,
    summary_rows,
)
from srfa.closed_loop_report import ClosedLoopReport, write_closed_loop
from srfa.coefficients import Provenance, read_coefficients
from srfa.errors import IncompleteError, NothingMeasuredError, UsageError
from srfa.estimator_names import DEFAULT_ESTIMATOR, ESTIMATOR_NAMES
from srfa.files import require_writable
from srfa.folds import split_named
from srfa.observations import Observations, load_observations
from srfa.options import Calibrations, Common, ConfigFile, calibrated, with_common
from srfa.provenance import file_hashes, provenance_of
from srfa.run_tables import Tables, observation_files, read_tables

if TYPE_CHECKING:
    from srfa.measurements import Measurements

# As in srfa.cli, what loads cvxpy, scipy or matplotlib is imported when a verb runs.


@with_common
def replay(  # noqa: PLR0913 - one parameter an option
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What 'srfa ingest --out DIR' wrote, or a store.")],
    *,
    coefficients: Annotated[Path | None, typer.Option(help="coefficients.json to replay on.")] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Replay on fits that never saw the job: those of this split; repeatable.")
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(help=f"With --split: {', '.join(ESTIMATOR_NAMES)}; {DEFAULT_ESTIMATOR} where absent."),
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="Of the runs in DIR, this one alone.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write closed_loop.json, for 'srfa gate --closed-loop'.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it (.png, .svg or .pdf).")] = None,
    config: ConfigFile = None,
    calibrate: Calibrations = None,
    common: Common,
) -> None:
    """Replay measured jobs through the simulator and compare TTFT, TPOT, E2E and throughput with what was measured.

    Code 3 where some job could not be replayed, 4 where none could.

    Example: srfa replay runs --split leave-one-workload-out --out closed_loop.json
    """
    from srfa.closed_loop_figure import draw_closed_loop  # noqa: PLC0415 - see above
    from srfa.leaderboard_figure import check_picture  # noqa: PLC0415 - see above
    from srfa.measurements import Measurements  # noqa: PLC0415 - see above

    if bool(coefficients) == bool(split):
        raise UsageError("give either --coefficients, or --split for fits that never saw the job")
    if coefficients and estimator:
        raise UsageError(f"--estimator {estimator}: the coefficients say which estimator they are of; leave it out")
    for path in (out, plot):
        if path:
            require_writable(path)
    if plot:
        check_picture(plot)
    catalog, settings = calibrated(common, calibrate), common.fit_config(config)
    files = observation_files(folder, run_id=run_id)
    steps, tables = load_observations(files), read_tables(folder, run_id=run_id)
    measurements = Measurements(steps, _of_observed_jobs(tables, steps), catalog, settings)
    if coefficients:
        report = _on_coefficients(coefficients, measurements)
    else:
        origin = provenance_of(steps, file_hashes(files), microbenchmarks=calibrate or ())
        report = _on_folds(split or [], estimator or DEFAULT_ESTIMATOR, measurements, origin, common.jobs)
    if common.as_json:
        present.show_json(report)
    else:
        show_closed_loop(report)
    if out:
        write_closed_loop(report, out)
        present.say(f"wrote {out}")
    if plot and report.replays:
        draw_closed_loop(report, plot)
        present.say(f"wrote {plot}")
    require_replayed(report)


def show_closed_loop(report: ClosedLoopReport) -> None:
    """Show every job, then what was not replayed, then the medians, and the headline last."""
    present.say(ERROR_LEGEND)
    present.show_table(ERROR_HEADS, error_rows(report), f"{report.estimator}: replays")
    if report.not_replayed:
        present.show_table(LOST_HEADS, lost_rows(report), "not replayed")
    if report.headline:
        present.say(LEGEND)
        present.show_table(SUMMARY_HEADS, summary_rows(report), "medians over jobs")
    present.show_line(headline(report))
    for sentence in filter(None, (loop_sentence(report), noise_sentence(report))):
        present.show_line(sentence)


def require_replayed(report: ClosedLoopReport) -> None:
    """Do nothing where every job was replayed at least once.

    Raises
    ------
    NothingMeasuredError
        None was.
    IncompleteError
        Some were not.
    """
    if not report.lost:
        return
    text = f"{len(report.lost)} of {len(report.lost) + len(report.job_ids)} jobs could not be replayed:\n"
    text += "\n".join(f"  {one.job_id}: {one.reason}" for one in report.lost)
    raise IncompleteError(text) if report.replays else NothingMeasuredError(text)


def _of_observed_jobs(tables: Tables, steps: Observations) -> Tables:
    """Return the tables of the jobs that have observations, and name the others: the data gates refused them."""
    observed = set(steps.job_ids)
    if refused := sorted(set(tables.jobs["job_id"].to_pylist()) - observed):
        present.say(f"{len(refused)} job(s) without observations are left out, as 'srfa ingest' refused their data:")
        present.say("\n".join(f"  {job_id}" for job_id in refused))
    return tables.of_jobs(observed)


def _on_coefficients(path: Path, measurements: Measurements) -> ClosedLoopReport:
    from srfa.closed_loop import replay_coefficients  # noqa: PLC0415 - see above

    fitted = read_coefficients(path)
    with present.progress("replay") as advance:
        return replay_coefficients(fitted, measurements, progress=advance)


def _on_folds(
    splits: list[str], estimator: str, measurements: Measurements, origin: Provenance, n_jobs: int
) -> ClosedLoopReport:
    from srfa.closed_loop import replay_validations  # noqa: PLC0415 - see above
    from srfa.estimators import estimator_named  # noqa: PLC0415 - see above
    from srfa.validate import cross_predict  # noqa: PLC0415 - see above

    chosen, steps, catalog = estimator_named(estimator), measurements.observations, measurements.catalog
    validations = []
    for one in dict.fromkeys(map(split_named, splits)):
        with present.progress(one) as advance:
            found = cross_predict(
                chosen, steps, catalog, split=one, config=measurements.config, n_jobs=n_jobs, progress=advance
            )
        validations.append(found.with_provenance(origin))
    with present.progress("replay") as advance:
        return replay_validations(validations, measurements, progress=advance)
