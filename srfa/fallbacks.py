"""A black box for each configuration on which an estimator misses the closed loop's limit, where it does better."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from srfa.closed_loop import Learned, learned_by_folds, replay_learned
from srfa.closed_loop_report import ClosedLoopReport, Replay, nearest
from srfa.coefficients import Coefficients
from srfa.errors import FitError
from srfa.estimators import estimator_named
from srfa.fallback_file import Fallback
from srfa.folds import Split, why_impossible
from srfa.measurements import Measurements
from srfa.observations import Observations
from srfa.provenance import provenance_of
from srfa.validate import cross_predict

_BLACKBOX = "blackbox"
_LEAST_GAIN = 0.1
"""Share of the error that a black box must take away to count as better: less is the luck of a few jobs."""
_STRICTEST_FIRST: tuple[Split, ...] = ("leave-one-workload-out", "leave-one-job-out")


@dataclass(frozen=True, slots=True)
class FallbackSearch:
    """What was found for the configurations above the limit.

    Parameters
    ----------
    declined
        One sentence a configuration above the limit that gets no fallback.
    """

    fallbacks: tuple[Fallback, ...] = ()
    declined: tuple[str, ...] = ()


def search_fallbacks(report: ClosedLoopReport, measurements: Measurements, *, limit_pct: float) -> FallbackSearch:
    """Fit a black box to each configuration whose median E2E error is above the limit; keep it where it is better.

    Better means a median error lower by a tenth: of replays of held-out workloads, or of held-out jobs where all jobs
    have one workload; with a single job, of a replay in sample that also keeps to the limit.
    """
    if report.estimator == _BLACKBOX:
        return FallbackSearch()
    outcomes = [
        _fallback(configuration, replays, error_pct, measurements, limit_pct)
        for configuration, replays in _by_configuration(report).items()
        if (error_pct := _median_e2e_pct(replays)) is not None and error_pct > limit_pct
    ]
    return FallbackSearch(
        tuple(one for one in outcomes if isinstance(one, Fallback)),
        tuple(one for one in outcomes if isinstance(one, str)),
    )


def _by_configuration(report: ClosedLoopReport) -> dict[str, list[Replay]]:
    found: dict[str, list[Replay]] = defaultdict(list)
    for replay in nearest(report.replays):
        found[replay.configuration].append(replay)
    return dict(sorted(found.items()))


def _median_e2e_pct(replays: Sequence[Replay]) -> float | None:
    errors = [abs(error) for one in replays if (error := one.error_pct("e2e")) is not None]
    return float(np.median(errors)) if errors else None


def _fallback(
    configuration: str, replays: Sequence[Replay], error_pct: float, measurements: Measurements, limit_pct: float
) -> Fallback | str:
    """Return the fallback of one configuration, or why there is none."""
    job_ids, missed = tuple(one.job_id for one in replays), f"{configuration}: median E2E error {error_pct:.1f} %"
    missed += f" is above the limit {limit_pct:g} %"
    steps = _steps_of(job_ids, measurements.observations)
    try:
        coefficients = _fit(steps, measurements)
    except FitError as error:
        return f"{missed}, and a black box cannot be fitted: {error}"
    split, in_sample = _split_of(steps, measurements), _replayed_in_sample(coefficients, job_ids, measurements)
    judged = _replayed_held_out(steps, split, measurements) if split else in_sample
    in_sample_pct, own_pct = _median_e2e_pct(in_sample.replays), _median_e2e_pct(judged.replays)
    lost = _lost(replays, judged) or _lost(replays, in_sample)
    if lost or own_pct is None or in_sample_pct is None:
        return (
            f"{missed}, and its black box could not be replayed on {len(lost)} of {len(job_ids)} jobs: {_named(lost)}"
        )
    how = f"held out ({split}, {len(job_ids)} jobs)" if split else "in sample, of its one job"
    if own_pct > (1.0 - _LEAST_GAIN) * error_pct or (split is None and own_pct > limit_pct):
        return f"{missed}, and its black box is no better: {own_pct:.1f} % {how}"
    return Fallback(
        configuration=configuration,
        sentence=f"{missed}; its own black box has {own_pct:.1f} % {how}",
        job_ids=job_ids,
        estimator_e2e_pct=error_pct,
        held_out_e2e_pct=own_pct if split else None,
        in_sample_e2e_pct=in_sample_pct,
        coefficients=coefficients,
    )


def _steps_of(job_ids: Sequence[str], observations: Observations) -> Observations:
    return observations.take(np.flatnonzero(np.isin(np.array(observations.job_ids), job_ids)))


def _fit(steps: Observations, measurements: Measurements) -> Coefficients:
    blackbox = estimator_named(_BLACKBOX)
    fitted = blackbox.fit(blackbox.features(steps, measurements.catalog), measurements.config)
    return fitted.model_copy(update={"provenance": provenance_of(steps, {})})


def _replayed_in_sample(
    coefficients: Coefficients, job_ids: Sequence[str], measurements: Measurements
) -> ClosedLoopReport:
    """Replay each job by itself, with what lies outside the steps learned from all others."""
    n_steps = coefficients.provenance.n_steps
    learned = [Learned("", "", n_steps, (job_id,), coefficients, {}, seen=True) for job_id in job_ids]
    return replay_learned(_BLACKBOX, learned, measurements)


def _lost(replays: Sequence[Replay], report: ClosedLoopReport) -> dict[str, str]:
    """Return the estimator's jobs that have no E2E here, each with the reason: a median of the others may flatter."""
    expected = [one.job_id for one in replays if one.error_pct("e2e") is not None]
    there = {one.job_id for one in report.replays if one.error_pct("e2e") is not None}
    reasons = {one.job_id: one.reason for one in report.not_replayed}
    return {job_id: reasons.get(job_id, "no fold of it was fitted") for job_id in expected if job_id not in there}


def _named(lost: Mapping[str, str]) -> str:
    return "; ".join(f"{job_id}: {reason}" for job_id, reason in lost.items())


def _split_of(steps: Observations, measurements: Measurements) -> Split | None:
    """Return the strictest split that a configuration's jobs allow; None for a single job."""
    possible = (split for split in _STRICTEST_FIRST if not why_impossible(steps, measurements.catalog, split))
    return next(possible, None)


def _replayed_held_out(steps: Observations, split: Split, measurements: Measurements) -> ClosedLoopReport:
    """Replay each job on a fit that never saw it."""
    validation = cross_predict(
        estimator_named(_BLACKBOX), steps, measurements.catalog, split=split, config=measurements.config
    )
    return replay_learned(_BLACKBOX, list(learned_by_folds(validation)), measurements)
