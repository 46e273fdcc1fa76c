"""From observations to a release: fit, validation on every split of the limits, verdict, folder. Thin over ``srfa``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from srfa.catalog import Catalog
from srfa.closed_loop import NO_TABLES, replay_validations
from srfa.closed_loop_report import ClosedLoopReport
from srfa.coefficients import Coefficients, FitConfig
from srfa.compare import compare_with_yardsticks
from srfa.domain import training_domain
from srfa.estimators import estimator_named
from srfa.fallbacks import FallbackSearch, search_fallbacks
from srfa.fit.outside import OutsideFit, fit_outside
from srfa.folds import Split
from srfa.gate import GateDecision, Limits, check_gate
from srfa.intervals import intervals_of
from srfa.leaderboard import Leaderboard
from srfa.measurements import Measurements
from srfa.observations import Observations, load_observations
from srfa.physics import check_physics
from srfa.physics_report import PhysicsReport
from srfa.provenance import file_hashes, provenance_of
from srfa.release import Material, Release, publish
from srfa.requests import request_observations
from srfa.run_tables import Tables
from srfa.specs import JobOutcome, Skipped
from srfa.speed_of_light import possible_steps
from srfa.trials import Progress, silent
from srfa.validate import CrossPrediction, cross_predict, fold_summaries
from srfa.validation_report import ValidationReport


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a fit learns from.

    Parameters
    ----------
    catalog
        With the figures that CPU profiles had where the steps were measured.
    data_sha256
        Of each file the observations came from, by its name.
    tables
        None where observations came without them.
    """

    observations: Observations
    catalog: Catalog
    data_sha256: dict[str, str]
    tables: Tables | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """Coefficients with the proof that comes with them, before the verdict.

    Parameters
    ----------
    physics, leaderboard, closed_loop
        None before physics was checked, the candidate was compared, and measured jobs were replayed.
    fallbacks
        What stands in where the replays miss their limit, and where nothing does.
    """

    coefficients: Coefficients
    validations: tuple[CrossPrediction, ...]
    physics: PhysicsReport | None = None
    leaderboard: Leaderboard | None = None
    closed_loop: ClosedLoopReport | None = None
    fallbacks: FallbackSearch = field(default_factory=FallbackSearch)

    @property
    def reports(self) -> tuple[ValidationReport, ...]:
        """One report a split."""
        return tuple(validation.report for validation in self.validations)


def dataset_of_files(paths: Sequence[Path], catalog: Catalog) -> Dataset:
    """Read observation files.

    Raises
    ------
    ObservationsError, WrongClockError, DataInvalidError
        A file cannot be used, or its labels are impossible.
    """
    observations = load_observations(paths)
    return possible_dataset(Dataset(observations, catalog, file_hashes(paths)))


def possible_dataset(dataset: Dataset) -> Dataset:
    """Leave out labels under the speed of light.

    Raises
    ------
    DataInvalidError
        In some job they are more than single glitches.
    """
    observations, _ = possible_steps(dataset.observations, dataset.catalog)
    return replace(dataset, observations=observations)


def fit(dataset: Dataset, estimator: str, config: FitConfig) -> Coefficients:
    """Fit the step model to all steps.

    Raises
    ------
    FitError
        The steps cannot carry the fit.
    """
    one = estimator_named(estimator)
    coefficients = one.fit(one.features(dataset.observations, dataset.catalog), config)
    origin = provenance_of(dataset.observations, dataset.data_sha256)
    domain = training_domain(dataset.observations, dataset.catalog)
    return coefficients.model_copy(update={"provenance": origin, "domain": domain})


def fit_requests(dataset: Dataset, config: FitConfig) -> OutsideFit:
    """Fit what lies outside the steps; empty where observations came without the tables of a run."""
    if dataset.tables is None:
        return OutsideFit({}, {})
    tables = dataset.tables
    requests = request_observations(tables.requests, tables.jobs, tables.steps, dataset.catalog)
    return fit_outside(requests, config, steps=tables.steps, jobs=tables.jobs, observations=dataset.observations)


def validate(dataset: Dataset, estimator: str, split: Split, config: FitConfig) -> CrossPrediction:
    """Fit on all groups of the split but one and predict that one."""
    return cross_predict(estimator_named(estimator), dataset.observations, dataset.catalog, split=split, config=config)


def with_validation(coefficients: Coefficients, validations: Iterable[CrossPrediction]) -> Candidate:
    """Join coefficients and what validations found of them: summaries, and intervals without a fit more."""
    proof = tuple(validation.with_provenance(coefficients.provenance) for validation in validations)
    summaries = tuple(row for validation in proof for row in fold_summaries(validation.report))
    intervals = intervals_of({validation.report.split: validation.held_out for validation in proof})
    return Candidate(coefficients.model_copy(update={"validation": summaries, "intervals": intervals}), proof)


def with_physics(candidate: Candidate, dataset: Dataset) -> Candidate:
    """Join the candidate and what its predictions say of batches nobody measured.

    An estimator that learns by configuration is asked on those it was fitted to.
    """
    coefficients = candidate.coefficients
    ask = partial(
        check_physics,
        estimator_named(coefficients.estimator),
        coefficients,
        dataset.catalog,
        seed=coefficients.config.seed,
    )
    report = ask()
    if any(finding.n_checked == 0 for finding in report.broken):
        report = ask(configurations=dataset.observations.configurations)
    return replace(candidate, physics=report)


def with_leaderboard(candidate: Candidate, dataset: Dataset) -> Candidate:
    """Set the candidate beside the yardsticks, on the folds it was validated on; it is not fitted again.

    Raises
    ------
    SrfaError
        A yardstick could not be validated.
    """
    board = compare_with_yardsticks("observations", candidate.reports, dataset.observations, dataset.catalog)
    return replace(candidate, leaderboard=board)


def with_closed_loop(candidate: Candidate, dataset: Dataset, *, progress: Progress = silent) -> Candidate:
    """Replay every measured job on the folds that never saw it; without the tables of a run the report says so."""
    if dataset.tables is None:
        fitted = candidate.coefficients
        left_out = ClosedLoopReport(estimator=fitted.estimator, impossible=NO_TABLES, provenance=fitted.provenance)
        return replace(candidate, closed_loop=left_out)
    measurements = _measurements(candidate, dataset, dataset.tables)
    return replace(candidate, closed_loop=replay_validations(candidate.validations, measurements, progress=progress))


def with_fallbacks(candidate: Candidate, dataset: Dataset, limits: Limits) -> Candidate:
    """Search what stands in for the estimator where the closed loop's limit of E2E is missed; none without a limit."""
    limit_pct = limits.closed_loop.max_median_e2e_pct if limits.closed_loop else None
    if candidate.closed_loop is None or dataset.tables is None or limit_pct is None:
        return candidate
    measurements = _measurements(candidate, dataset, dataset.tables)
    search = search_fallbacks(candidate.closed_loop, measurements, limit_pct=limit_pct)
    return replace(candidate, fallbacks=search)


def _measurements(candidate: Candidate, dataset: Dataset, tables: Tables) -> Measurements:
    return Measurements(dataset.observations, tables, dataset.catalog, candidate.coefficients.config)


def judge(candidate: Candidate, limits: Limits, baseline: Sequence[ValidationReport] | None = None) -> GateDecision:
    """Return the verdict on the candidate's reports, its physics and its closed loop."""
    return check_gate(
        candidate.reports,
        limits,
        baseline,
        physics=candidate.physics,
        coefficients=candidate.coefficients,
        closed_loop=candidate.closed_loop,
    )


def write_release(
    candidate: Candidate,
    decision: GateDecision,
    dataset: Dataset,
    releases: Path,
    *,
    skipped: tuple[Skipped, ...] = (),
    outcomes: tuple[JobOutcome, ...] = (),
) -> Release:
    """Write the release's folder under ``releases``; the figures show the first split that has folds."""
    held_out = next((each.held_out for each in candidate.validations if each.held_out.num_rows), None)
    material = Material(
        coefficients=candidate.coefficients,
        reports=candidate.reports,
        decision=decision,
        observations=dataset.observations,
        catalog=dataset.catalog,
        held_out=held_out,
        requests=dataset.tables.requests if dataset.tables else None,
        physics=candidate.physics,
        skipped=skipped,
        outcomes=outcomes,
        leaderboard=candidate.leaderboard,
        closed_loop=candidate.closed_loop,
        fallbacks=candidate.fallbacks.fallbacks,
    )
    return publish(material, releases)
