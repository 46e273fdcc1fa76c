"""From a candidate to its verdict: what validations and physics add to coefficients, without a store."""

from dataclasses import dataclass

import pytest

from srfa.coefficients import FitConfig
from srfa.errors import GateFailed, UnknownConfigurationError
from srfa.estimators import ESTIMATORS
from srfa.gate import Limits
from tasks import training
from tests.planted import GPUS, MODELS, LinearEstimator

SPLITS = {"leave-one-gpu-out": {"max_mape_pct": 1000}, "leave-one-model-out": {"max_mape_pct": 1000}}


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


def candidate(dataset, estimator):
    coefficients = training.fit(dataset, estimator, FitConfig(huber_delta=(0.1,), lambda_gamma=(0.01,)))
    validations = [training.validate(dataset, estimator, split, FitConfig()) for split in SPLITS]
    return training.with_validation(coefficients, validations)


def judged(made, *, required):
    return training.judge(made, Limits.model_validate({"splits": SPLITS, "physics": {"required": required}}))


def test_a_fit_knows_its_domain_and_validations_that_ran_anyway_give_its_intervals(dataset):
    made = candidate(dataset, "roofline").coefficients
    assert made.domain.gpus == GPUS
    sources = [one.source for one in made.intervals.grades]
    assert sources[:4] == ["prior", "prior", "leave-one-model-out", "leave-one-gpu-out"]


def test_broken_physics_is_refused_where_it_is_required_and_told_where_not(dataset, monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "linear", LinearEstimator(slower=0.01, slower_from_us=0.5))
    made = training.with_physics(candidate(dataset, "linear"), dataset)
    with pytest.raises(GateFailed, match="roofline_floor BROKEN"):
        judged(made, required=True).require_passed()
    told = judged(made, required=False)
    assert told.passed
    assert any("told, not required" in finding.sentence for finding in told.findings)


def test_sound_physics_passes_and_a_check_that_was_not_made_does_not(dataset):
    made = candidate(dataset, "roofline")
    assert judged(training.with_physics(made, dataset), required=True).passed
    assert not judged(made, required=True).passed


def test_an_estimator_that_learns_by_configuration_is_asked_on_those_it_knows(dataset, monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "by-configuration", ByConfiguration())
    made = training.with_physics(candidate(dataset, "by-configuration"), dataset)
    found = {finding.rule: finding for finding in made.physics.findings}
    assert found["roofline_floor"].n_checked > 0
    assert found["monotone_in_model_size"].n_checked == 0
    assert made.physics.passed
