"""What the command line says of how far a fit can be trusted: ``srfa physics``, ``srfa identify``, and intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srfa import present
from srfa.coefficients import read_coefficients
from srfa.errors import DataInvalidError
from srfa.files import require_writable
from srfa.observations import load_observations
from srfa.options import Calibrations, Common, ObservationFiles, calibrated, with_common
from srfa.physics_report import write_physics
from srfa.report import PHYSICS_HEADS, physics_rows

if TYPE_CHECKING:
    from srfa.catalog import Catalog
    from srfa.coefficients import FitConfig
    from srfa.estimators.protocol import Estimator
    from srfa.grades import Intervals
    from srfa.identification import Helpful, Identification
    from srfa.identify import Jacobian
    from srfa.observations import Observations

_LARGEST_INFLATION = 1_000_000.0
CoefficientsFile = Annotated[Path, typer.Option(help="coefficients.json of a fit.")]


@with_common
def physics(
    *,
    coefficients: CoefficientsFile,
    batches: Annotated[int, typer.Option(min=1, help="Random batches to ask for.")] = 10_000,
    out: Annotated[Path | None, typer.Option(help="Also write physics.json, for 'srfa gate --physics'.")] = None,
    calibrate: Calibrations = None,
    common: Common,
) -> None:
    """Ask a fit for batches nobody measured and compare its answers with physics; code 5 where a rule is broken.

    Example: srfa physics --coefficients coefficients.json --out physics.json
    """
    from srfa.estimators import estimator_named  # noqa: PLC0415 - loads cvxpy and scipy, which 'srfa --help' need not
    from srfa.physics import check_physics  # noqa: PLC0415 - as above

    if out:
        require_writable(out)
    fitted = read_coefficients(coefficients)
    catalog = calibrated(common, calibrate)
    report = check_physics(estimator_named(fitted.estimator), fitted, catalog, n_batches=batches, seed=common.seed or 0)
    if out:
        write_physics(report, out)
        present.say(f"wrote {out}")
    if common.as_json:
        present.show_json(report)
    else:
        present.show_table(PHYSICS_HEADS, physics_rows(report), f"{fitted.estimator}: physics on {batches} batches")
    if not report.passed:
        raise DataInvalidError("physics is broken:\n" + "\n".join(f"  {one.sentence}" for one in report.broken))


@with_common
def identify(
    observations: ObservationFiles,
    *,
    coefficients: CoefficientsFile,
    calibrate: Calibrations = None,
    common: Common,
) -> None:
    """Say which coefficients the measured steps identify, which move together, and which jobs would tell more.

    Example: srfa identify observations.parquet --coefficients coefficients.json
    """
    from srfa.candidate_jobs import candidate_steps  # noqa: PLC0415 - as above
    from srfa.estimators import estimator_named  # noqa: PLC0415 - as above
    from srfa.identify import candidate_jacobians, jacobian  # noqa: PLC0415 - as above
    from srfa.identify import identify as identified  # noqa: PLC0415 - as above
    from srfa.speed_of_light import possible_steps  # noqa: PLC0415 - as above

    fitted, catalog = read_coefficients(coefficients), calibrated(common, calibrate)
    estimator = estimator_named(fitted.estimator)

    def jacobian_of(steps: Observations) -> Jacobian:
        return jacobian(estimator, fitted, estimator.features(steps, catalog))

    steps, _ = possible_steps(load_observations(observations), catalog)
    found = jacobian_of(steps)
    candidates = candidate_jacobians(jacobian_of, candidate_steps(fitted, catalog, seed=common.seed or 0))
    _, job_index = steps.codes("job_id")
    result = identified(found, fitted, job_index, candidates=candidates, seed=common.seed or 0)
    if common.as_json:
        present.show_json(result)
    else:
        show_identification(result)


def show_identification(found: Identification) -> None:
    """Show every coefficient with what is known of it, then what moves together."""
    rows = [
        (
            one.name,
            f"{one.influence:.3f}",
            _inflation(one.variance_inflation),
            f"{one.log_sd:.3f}",
            "yes" if one.at_bound else "",
            "WEAK" if one.weak else "",
            _best(found.best_job(one.name)),
        )
        for one in found.parameters
    ]
    heads = ("coefficient", "influence", "inflation", "log sd", "at bound", "identified", "a job that would help")
    title = f"{found.estimator}: {found.n_steps} steps of {found.n_jobs} jobs, condition {found.condition_number:.3g}"
    present.show_table(heads, rows, title)
    for group in found.groups:
        present.say(f"move together, only their sum is known: {', '.join(group)}")


def _inflation(factor: float) -> str:
    """Write a variance inflation; beyond a million it is rounding, or infinite."""
    return f"{factor:.3g}" if factor <= _LARGEST_INFLATION else ">1e6"


def _best(job: Helpful | None) -> str:
    if job is None:
        return ""
    left = f"{job.variance_left:.0%}"
    return "none" if left == "100%" else f"{job.job} (leaves {left} of the variance)"


def cross_validated_intervals(
    estimator: Estimator, steps: Observations, catalog: Catalog, *, config: FitConfig, n_jobs: int
) -> Intervals:
    """Cross-validate by every split a grade rests on and return the intervals, showing progress."""
    from srfa.intervals import GRADED_SPLITS, intervals_of  # noqa: PLC0415 - as above
    from srfa.validate import cross_predict  # noqa: PLC0415 - as above

    held_out = {}
    for split in GRADED_SPLITS:
        with present.progress(split) as advance:
            found = cross_predict(
                estimator, steps, catalog, split=split, config=config, n_jobs=n_jobs, progress=advance
            )
        held_out[split] = found.held_out
    intervals = intervals_of(held_out)
    if all(one.n_groups == 0 for one in intervals.grades):
        present.say(
            "no split held out two groups (one job?): every interval rests on a prior width, none on a measurement"
        )
    return intervals
