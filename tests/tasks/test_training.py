"""From a candidate to its verdict: what validations, physics and yardsticks add to coefficients, without Prefect."""

from dataclasses import dataclass, replace

import pytest

from srfa import compare
from srfa.coefficients import FitConfig
from srfa.errors import CatalogError, GateFailed, InputError, UnknownConfigurationError
from srfa.estimators import ESTIMATORS
from srfa.fallback_file import read_fallbacks
from srfa.gate import Limits
from srfa.leaderboard import read_leaderboard
from tasks import stages, training
from tests.planted import GPUS, MODELS, LinearEstimator, planted_observations
from tests.simulated_jobs import ROWS, law, observed, simulated_run

JUDGED = {"leave-one-gpu-out": {"max_mape_pct": 1000}, "leave-one-model-out": {"max_mape_pct": 1000}}
SPLITS = ("leave-one-gpu-out", "time")


@dataclass(frozen=True)
class ByConfiguration(LinearEstimator):
    """Knows the planted models at the planted parallel sizes only."""

    name: str = "by-configuration"

    def features(self, observations, catalog):
        for one in observations.configurations:
            tp = one.tensor_parallel_size
            if one.model not in MODELS or one.expert_parallel_size > 1 or tp not in {1, 2, 4}:
                raise UnknownConfigurationError(f"planted: {one.model} at TP {tp} was not measured")
        return super().features(observations, catalog)


@pytest.fixture
def dataset(planted, shipped):
    return training.Dataset(planted, shipped, {"planted": "00"})


@pytest.fixture(autouse=True)
def two_yardsticks(monkeypatch):
    monkeypatch.setattr(compare, "YARDSTICKS", ("roofline", "srfa-seed"))


@pytest.fixture(scope="module")
def noisy(shipped):
    return training.Dataset(planted_observations(noise=0.02), shipped, {"planted": "00"})


@pytest.fixture(scope="module")
def candidate(noisy):
    config = FitConfig(lambda_gamma=(0.001,), lambda_beta=(0.001,), huber_delta=(0.1,))
    coefficients = training.fit(noisy, "srfa-seed", config)
    return training.with_validation(
        coefficients, [training.validate(noisy, "srfa-seed", split, config) for split in SPLITS]
    )


def candidate_of(dataset, estimator):
    coefficients = training.fit(dataset, estimator, FitConfig(huber_delta=(0.1,), lambda_gamma=(0.01,)))
    validations = [training.validate(dataset, estimator, split, FitConfig()) for split in JUDGED]
    return training.with_validation(coefficients, validations)


def judged(made, *, required):
    return training.judge(made, Limits.model_validate({"splits": JUDGED, "physics": {"required": required}}))


def test_a_fit_knows_its_domain_and_validations_that_ran_anyway_give_its_intervals(dataset):
    made = candidate_of(dataset, "roofline").coefficients
    assert made.domain.gpus == GPUS
    sources = [one.source for one in made.intervals.grades]
    assert sources[:4] == ["prior", "prior", "leave-one-model-out", "leave-one-gpu-out"]


def test_broken_physics_is_refused_where_it_is_required_and_told_where_not(dataset, monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "linear", LinearEstimator(slower=0.01, slower_from_us=0.5))
    made = training.with_physics(candidate_of(dataset, "linear"), dataset)
    with pytest.raises(GateFailed, match="roofline_floor BROKEN"):
        judged(made, required=True).require_passed()
    told = judged(made, required=False)
    assert told.passed
    assert any("told, not required" in finding.sentence for finding in told.findings)


def test_sound_physics_passes_and_a_check_that_was_not_made_does_not(dataset):
    made = candidate_of(dataset, "roofline")
    assert judged(training.with_physics(made, dataset), required=True).passed
    assert not judged(made, required=True).passed


def test_an_estimator_that_learns_by_configuration_is_asked_on_those_it_knows(dataset, monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "by-configuration", ByConfiguration())
    made = training.with_physics(candidate_of(dataset, "by-configuration"), dataset)
    found = {finding.rule: finding for finding in made.physics.findings}
    assert found["roofline_floor"].n_checked > 0
    assert found["monotone_in_model_size"].n_checked == 0
    assert made.physics.passed


def test_a_candidate_stands_beside_the_yardsticks_with_the_figures_of_its_own_validation(candidate, noisy):
    board = stages.compare.fn(candidate, noisy).leaderboard
    assert board.estimators == ("srfa-seed", "roofline")
    (data,) = board.datasets
    assert [split.split for split in data.splits] == list(SPLITS)
    for report, split in zip(candidate.reports, data.splits, strict=True):
        assert [group.entries[0].errors for group in split.groups] == [fold.errors for fold in report.folds]
    assert data.provenance == candidate.coefficients.provenance


def test_a_release_holds_the_leaderboard_of_its_candidate(candidate, noisy, tmp_path):
    compared = training.with_leaderboard(candidate, noisy)
    decision = training.judge(compared, Limits.model_validate({"splits": {"time": {}}}))
    release = training.write_release(compared, decision, noisy, tmp_path)
    assert read_leaderboard(tmp_path / release.release_id / "leaderboard.json") == compared.leaderboard
    assert {"leaderboard.json", "leaderboard.png"} <= set(release.files)


def test_a_comparison_that_fails_is_no_condition_for_a_release(candidate, noisy, monkeypatch):
    def fail(*_):
        raise CatalogError("planted")

    monkeypatch.setattr(training, "with_leaderboard", fail)
    assert stages.compare.fn(candidate, noisy) is candidate


def test_a_release_holds_the_leaderboard_and_the_physics_of_its_candidate(candidate, noisy, tmp_path):
    judged_on = stages.check_physics.fn(stages.compare.fn(candidate, noisy), noisy)
    assert judged_on.leaderboard is not None
    decision = training.judge(judged_on, Limits.model_validate({"splits": {"time": {}}}))
    release = training.write_release(judged_on, decision, noisy, tmp_path)
    assert {"leaderboard.json", "physics.json"} <= set(release.files)
    report = (tmp_path / release.release_id / "report.md").read_text()
    order = ["Verdict", "Folds: time", "Leaderboard", "Physics", "Coefficients of srfa-seed"]
    places = [report.index(f"## {heading}") for heading in order]
    assert places == sorted(places)


@pytest.fixture(scope="module")
def of_a_run(shipped):
    """Twelve jobs that a simulation served by the law of a black box, with their tables."""
    tables = simulated_run(law(), ROWS)
    return training.Dataset(observed(tables), shipped, {"simulated": "00"}, tables)


def replayed(of_a_run, estimator, limits):
    coefficients = training.fit(of_a_run, estimator, FitConfig())
    validation = training.validate(of_a_run, estimator, "leave-one-job-out", FitConfig())
    return stages.replay_jobs.fn(training.with_validation(coefficients, [validation]), of_a_run, limits)


def loop_limits(**figures):
    return Limits.model_validate({"splits": {"leave-one-job-out": {}}, "closed_loop": figures})


def test_observations_without_tables_are_not_replayed_and_the_verdict_says_so(candidate, noisy):
    made = stages.replay_jobs.fn(candidate, noisy, loop_limits())
    assert "came without the tables of a run" in made.closed_loop.impossible
    (broken,) = (one for one in training.judge(made, loop_limits()).broken if one.rule == "closed_loop")
    assert "came without the tables of a run" in broken.sentence
    assert not [one for one in training.judge(made, loop_limits(required=False)).broken if one.rule == "closed_loop"]


def test_a_run_is_replayed_judged_and_released(of_a_run, tmp_path):
    limits = loop_limits(max_median_e2e_pct=5, max_median_ttft_pct=5, max_median_tpot_pct=5)
    made = replayed(of_a_run, "blackbox", limits)
    assert made.closed_loop.headline.n_jobs == len(ROWS)
    decision = training.judge(made, limits)
    assert not [one for one in decision.broken if one.rule == "closed_loop"]
    release = training.write_release(made, decision, of_a_run, tmp_path)
    assert {"closed_loop.json", "closed_loop.png"} <= set(release.files)
    assert "fallbacks.json" not in release.files


def test_the_replays_of_a_run_belong_to_its_reports_and_to_no_others(of_a_run):
    limits = loop_limits()
    made = replayed(of_a_run, "blackbox", limits)
    assert made.closed_loop.provenance == made.reports[0].provenance
    again = replayed(replace(of_a_run, data_sha256={"simulated": "11"}), "blackbox", limits)
    with pytest.raises(InputError, match="closed loop is of other data"):
        training.judge(replace(again, closed_loop=made.closed_loop), limits)


def test_an_estimator_that_misses_the_limit_is_released_with_fallbacks_that_say_why(of_a_run, tmp_path):
    limits = loop_limits(max_median_e2e_pct=5)
    made = replayed(of_a_run, "roofline", limits)
    decision = training.judge(made, limits)
    assert "max_median_e2e_pct" in [one.held_out for one in decision.broken]
    release = training.write_release(made, decision, of_a_run, tmp_path)
    fallbacks = read_fallbacks(tmp_path / release.release_id)
    assert len(fallbacks) == 2
    report = (tmp_path / release.release_id / "report.md").read_text()
    assert all(one.sentence in report for one in fallbacks)
