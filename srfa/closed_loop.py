"""Measured jobs replayed through the simulator, on coefficients that never saw them, against what was measured.

A fold of a validation holds some jobs out; each of them is replayed on that fold's coefficients, with models of what
lies outside the steps that were fitted without the same jobs. What cannot be replayed is listed with its reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from srfa.closed_loop_report import ClosedLoopReport, NoiseFloor, NotReplayed, Pair, Replay
from srfa.closed_loop_summary import Means, closed_loop_report, noise_floor
from srfa.coefficients import Coefficients, Provenance
from srfa.errors import InputError, SrfaError, UnknownConfigurationError
from srfa.estimators import estimator_named
from srfa.estimators.blackbox import configuration_name
from srfa.fit.outside import OutsideFit
from srfa.measurements import MeasuredJob, Measurements
from srfa.ragged import FloatArray
from srfa.replay import SIMULATED_BLOCKS, finished_requests, job_load, outside_of, server_of
from srfa.request_times import compare_times, measured_means, measured_times, pair_of, served_times
from srfa.simulate.clock import clock_of
from srfa.simulate.engine import simulate
from srfa.trials import Progress, silent
from srfa.validate import CrossPrediction

NO_TABLES = "the observations came without the tables of a run, so there are no requests to replay"


@dataclass(frozen=True, slots=True)
class Learned:
    """Coefficients and the jobs they are to replay.

    Parameters
    ----------
    step_times_us
        By job: mean step time, measured and predicted batch by batch.
    seen
        They were fitted to the jobs themselves.
    """

    split: str
    held_out: str
    n_train_steps: int
    job_ids: tuple[str, ...]
    coefficients: Coefficients
    step_times_us: Mapping[str, Pair]
    seen: bool = False


def replay_validations(
    validations: Sequence[CrossPrediction], measurements: Measurements, *, progress: Progress = silent
) -> ClosedLoopReport:
    """Replay every job that a fold held out on what the fold learned without it, for each validation.

    Raises
    ------
    CatalogError
        A GPU or model of the jobs is unknown.
    """
    learned = [one for validation in validations for one in learned_by_folds(validation)]
    estimator = validations[0].report.estimator if validations else ""
    origin = validations[0].report.provenance if validations else Provenance()
    lost = [
        NotReplayed(job_id=job.job_id, place=job.place, reason=_why_never_held_out(validations))
        for job in measurements.jobs.values()
        if not any(job.job_id in one.job_ids for one in learned)
    ]
    report = replay_learned(estimator, learned, measurements, lost=lost, progress=progress)
    return _with_measured(report, measurements, origin)


def replay_coefficients(
    coefficients: Coefficients, measurements: Measurements, *, progress: Progress = silent
) -> ClosedLoopReport:
    """Replay every job on given coefficients; those that they were fitted to are marked as seen.

    Raises
    ------
    CatalogError
        A GPU or model of the jobs is unknown.
    """
    fitted_to, there = set(coefficients.provenance.job_ids), list(measurements.jobs)
    steps = _step_times_on(coefficients, measurements)
    learned = [
        Learned("", "", coefficients.provenance.n_steps, (job_id,), coefficients, steps, seen=job_id in fitted_to)
        for job_id in there
    ]
    report = replay_learned(coefficients.estimator, learned, measurements, progress=progress)
    return _with_measured(report, measurements, coefficients.provenance)


def learned_by_folds(validation: CrossPrediction) -> Iterator[Learned]:
    """Yield what each fold of a validation learned, with the step times it predicted of the jobs it never saw."""
    for fit in validation.fits:
        held_out = validation.held_out.filter(pc.equal(validation.held_out["held_out"], fit.held_out))
        steps = _step_times(held_out["job_id"], held_out["step_time_us"], held_out["predicted_step_time_us"])
        yield Learned(validation.report.split, fit.held_out, fit.n_train_steps, fit.job_ids, fit.coefficients, steps)


def replay_learned(
    estimator: str,
    learned: Sequence[Learned],
    measurements: Measurements,
    *,
    lost: Sequence[NotReplayed] = (),
    progress: Progress = silent,
) -> ClosedLoopReport:
    """Replay the jobs of each, with models of what lies outside the steps that never saw them."""
    total, found = sum(len(one.job_ids) for one in learned), []
    for one in learned:
        outside = measurements.outside_without(one.job_ids)
        for job_id in one.job_ids:
            found.append(_replay(measurements, job_id, one, outside))
            progress(len(found), total)
    replays = [one for one in found if isinstance(one, Replay)]
    not_replayed = [*lost, *(one for one in found if isinstance(one, NotReplayed))]
    return closed_loop_report(estimator, replays, not_replayed)


def _with_measured(report: ClosedLoopReport, measurements: Measurements, origin: Provenance) -> ClosedLoopReport:
    """Add what is the same whatever was replayed: repeats, models of requests, and where the fits came from."""
    measured = {"noise": noise_of(measurements), "request_models": measurements.request_models}
    return report.model_copy(update={**measured, "provenance": origin})


def noise_of(measurements: Measurements) -> NoiseFloor | None:
    """Return what repeats of a cell say of each other; None where no cell was measured twice."""
    means = ((job.cell, _means_of(job)) for job in measurements.jobs.values())
    return noise_floor((cell, found) for cell, found in means if found)


def _means_of(job: MeasuredJob) -> Means:
    try:
        return measured_means(measured_times(finished_requests(job.requests, job.job_id)))
    except InputError:
        return {}


def _missing(outside: OutsideFit) -> str:
    """Say which of the delays that a replay needs could not be fitted, and why."""
    names_by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in outside.refusals.items():
        if name in SIMULATED_BLOCKS:
            names_by_reason[reason].append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in names_by_reason.items())


def _replay(measurements: Measurements, job_id: str, learned: Learned, outside: OutsideFit) -> Replay | NotReplayed:
    job = measurements.jobs.get(job_id)
    if job is None:
        return NotReplayed(job_id=job_id, split=learned.split, reason="the tables of the run do not hold this job")
    try:
        return _replayed(job, learned, outside, measurements)
    except SrfaError as error:
        return NotReplayed(job_id=job_id, split=learned.split, place=job.place, reason=str(error))


def _replayed(job: MeasuredJob, learned: Learned, outside: OutsideFit, measurements: Measurements) -> Replay:
    load, server = job_load(job.requests, job.row), server_of(job.row, measurements.catalog)
    clock = clock_of(learned.coefficients, job.configuration, measurements.catalog)
    delays = outside_of(outside.blocks, load, server, gpu=str(job.row["gpu"]), catalog=measurements.catalog)
    served = simulate(load, server, clock, delays, record_steps=True)
    measured = measured_times(finished_requests(job.requests, job.job_id))
    wall_ratio = measurements.wall_ratios.get(job.job_id)
    return Replay(
        job_id=job.job_id,
        split=learned.split,
        held_out=learned.held_out,
        n_train_steps=learned.n_train_steps,
        seen=learned.seen,
        configuration=configuration_name(job.configuration),
        workload=job.workload,
        n_requests=load.n_requests,
        view=measured.view,
        longest_answer_tokens=int(load.output_tokens.max()),
        without_outside=_missing(outside),
        step_time_us=learned.step_times_us.get(job.job_id),
        wall_ratio=pair_of(wall_ratio, delays.wall_ratio) if wall_ratio else None,
        n_steps=pair_of(job.steps.num_rows, served.n_steps),
        metrics=compare_times(measured, served_times(served, measured.view)),
    )


def _step_times_on(coefficients: Coefficients, measurements: Measurements) -> Mapping[str, Pair]:
    """Return the step times that an estimator predicts of every job; none where it refuses them."""
    estimator, steps = estimator_named(coefficients.estimator), measurements.observations
    try:
        predicted_us = estimator.predict(coefficients, estimator.features(steps, measurements.catalog))
    except UnknownConfigurationError:
        return {}
    return _step_times(steps.job_ids, steps.step_time_us, predicted_us)


def _step_times(job_ids: Sequence[str], measured_us: FloatArray, predicted_us: FloatArray) -> dict[str, Pair]:
    """Return mean step times by job."""
    names, index = np.unique(np.asarray(job_ids, dtype=np.str_), return_inverse=True)
    sums = (np.bincount(index, weights=np.asarray(values)) for values in (measured_us, predicted_us))
    means = zip(names, *(total / np.bincount(index) for total in sums), strict=True)
    pairs = ((str(name), pair_of(float(measured), float(predicted))) for name, measured, predicted in means)
    return {name: pair for name, pair in pairs if pair}


def _why_never_held_out(validations: Sequence[CrossPrediction]) -> str:
    """Return what each validation says of a job that none of its folds held out and fitted."""
    reasons = []
    for report in (validation.report for validation in validations):
        failed = [f"{fold.held_out}: {fold.failure}" for fold in report.folds if fold.failure]
        reasons.append(f"{report.split}: {report.impossible or '; '.join(failed) or 'no fold holds its steps out'}")
    return "; ".join(reasons) or "nothing was validated"
