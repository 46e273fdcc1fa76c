"""What a candidate is compared with before its release; tasks are called without Prefect."""

import pytest

from srfa import compare
from srfa.coefficients import FitConfig
from srfa.errors import CatalogError
from srfa.gate import Limits
from srfa.leaderboard import read_leaderboard
from tasks import stages, training
from tests.planted import planted_observations

SPLITS = ("leave-one-gpu-out", "time")


@pytest.fixture(autouse=True)
def two_yardsticks(monkeypatch):
    monkeypatch.setattr(compare, "YARDSTICKS", ("roofline", "srfa-seed"))


@pytest.fixture(scope="module")
def dataset(shipped):
    return training.Dataset(planted_observations(noise=0.02), shipped, {"planted": "00"})


@pytest.fixture(scope="module")
def candidate(dataset):
    config = FitConfig(lambda_gamma=(0.001,), lambda_beta=(0.001,), huber_delta=(0.1,))
    coefficients = training.fit(dataset, "srfa-seed", config)
    return training.with_validation(
        coefficients, [training.validate(dataset, "srfa-seed", split, config) for split in SPLITS]
    )


def test_a_candidate_stands_beside_the_yardsticks_with_the_figures_of_its_own_validation(candidate, dataset):
    board = stages.compare.fn(candidate, dataset).leaderboard
    assert board.estimators == ("srfa-seed", "roofline")
    (data,) = board.datasets
    assert [split.split for split in data.splits] == list(SPLITS)
    for report, split in zip(candidate.reports, data.splits, strict=True):
        assert [group.entries[0].errors for group in split.groups] == [fold.errors for fold in report.folds]
    assert data.provenance == candidate.coefficients.provenance


def test_a_release_holds_the_leaderboard_of_its_candidate(candidate, dataset, tmp_path):
    compared = training.with_leaderboard(candidate, dataset)
    decision = training.judge(compared, Limits.model_validate({"splits": {"time": {}}}))
    release = training.write_release(compared, decision, dataset, tmp_path)
    assert read_leaderboard(tmp_path / release.release_id / "leaderboard.json") == compared.leaderboard
    assert {"leaderboard.json", "leaderboard.png"} <= set(release.files)


def test_a_comparison_that_fails_is_no_condition_for_a_release(candidate, dataset, monkeypatch):
    def fail(*_):
        raise CatalogError("planted")

    monkeypatch.setattr(training, "with_leaderboard", fail)
    assert stages.compare.fn(candidate, dataset) is candidate
