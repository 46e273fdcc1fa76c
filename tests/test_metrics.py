import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from srfa.metrics import Errors, Scored, errors, job_errors, mean_interval


def scored(measured, predicted, jobs):
    return Scored(np.array(measured, float), np.array(predicted, float), np.array(jobs))


def test_every_figure_of_a_case_by_hand():
    found = errors(scored([100, 100, 200, 400], [110, 80, 200, 600], ["a", "a", "b", "b"]))
    assert (found.n_steps, found.n_jobs) == (4, 2)
    assert found.mape_pct == pytest.approx((10 + 20 + 0 + 50) / 4)
    assert found.median_ape_pct == pytest.approx(15)
    assert found.p90_ape_pct == pytest.approx(20 + 0.7 * 30)
    assert found.mae_us == pytest.approx((10 + 20 + 0 + 200) / 4)
    assert found.bias_pct == pytest.approx((10 - 20 + 0 + 50) / 4)
    assert found.mape_interval_pct.low <= found.mape_pct <= found.mape_interval_pct.high


def test_one_job_has_no_interval():
    assert errors(scored([1, 1], [2, 2], ["a", "a"])).mape_interval_pct is None


def test_bias_shows_what_errors_of_opposite_sign_hide_from_a_mean():
    found = errors(scored([10, 10], [12, 8], ["a", "b"]))
    assert found.bias_pct == pytest.approx(0)
    assert found.mape_pct == pytest.approx(20)


@given(st.permutations(range(30)))
def test_the_order_of_steps_changes_nothing(order):
    rng = np.random.default_rng(1)
    measured, predicted = rng.uniform(1, 9, 30), rng.uniform(1, 9, 30)
    jobs = np.array([f"j{n % 7}" for n in range(30)])
    one, other = Scored(measured, predicted, jobs), Scored(measured[order], predicted[order], jobs[order])
    assert errors(one) == errors(other)
    assert job_errors(one) == job_errors(other)


def test_the_interval_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        jobs = rng.gamma(4.0, 2.5, size=40)
        interval = mean_interval(list(jobs), [10] * 40, seed=trial)
        covered += interval.low <= 10.0 <= interval.high
    assert 0.88 <= covered / 300 <= 0.98


def test_the_interval_of_equal_jobs_is_a_point_whatever_their_size():
    interval = mean_interval([7.0] * 5, [1, 20, 300, 4, 5])
    assert interval.low == interval.high == 7.0


def test_the_interval_of_normal_means_agrees_with_theory():
    means = np.random.default_rng(3).normal(20.0, 4.0, size=400)
    interval = mean_interval(list(means), [1] * 400)
    half = 1.96 * means.std() / np.sqrt(400)
    assert interval.low == pytest.approx(means.mean() - half, abs=0.1)
    assert interval.high == pytest.approx(means.mean() + half, abs=0.1)


def test_a_large_job_weighs_by_its_steps():
    found = errors(scored([10] * 10, [11] * 9 + [20], ["big"] * 9 + ["small"]))
    assert found.mape_pct == pytest.approx((9 * 10 + 100) / 10)


@pytest.mark.parametrize(
    ("name", "value"), [("mape_pct", -1), ("mae_us", "NaN"), ("bias_pct", "Infinity"), ("p90_ape_pct", -0.1)]
)
def test_figures_no_prediction_can_have_are_refused(name, value):
    found = errors(scored([10, 10], [11, 9], ["a", "b"]))
    with pytest.raises(ValidationError, match=name):
        Errors.model_validate({**found.model_dump(), name: float(value)})
