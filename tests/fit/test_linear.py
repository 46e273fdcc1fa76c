import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, lsq_linear

from srfa.fit.linear import LinearProblem, fit_linear, linear_loss


def case(seed, truth=(3.0, 0.5, -2.0), lower=(0.0, 0.0, -np.inf), noise=0.0):
    rng = np.random.default_rng(seed)
    columns = rng.uniform(1, 1_000, (300, len(truth))) + np.array([5_000.0, 0.0, 0.0])
    label = columns @ np.array(truth) * rng.normal(1.0, noise, 300)
    return LinearProblem.of(columns, label, lower=np.array(lower)), columns, label


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.1, 10.0]))
def test_the_gradient_equals_finite_differences(seed, delta):
    problem, _, _ = case(seed, noise=0.1)
    theta, ridge = np.random.default_rng(seed).uniform(-1, 1, 3), np.array([0.01, 0.0, 0.1])
    _, gradient = linear_loss(theta, problem, ridge, delta)
    numeric = approx_fprime(theta, lambda at: linear_loss(at, problem, ridge, delta)[0], 1e-7)
    assert gradient == pytest.approx(numeric, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_without_ridge_and_with_a_large_threshold_it_is_bounded_least_squares_of_relative_errors(seed):
    problem, columns, label = case(seed, truth=(3.0, -0.4, 2.0), noise=0.05)
    expected = lsq_linear(columns / label[:, None], np.ones(300), bounds=(problem.lower, np.inf)).x
    found = fit_linear(problem, np.zeros(3), 100.0, start=np.zeros(3), max_iterations=2_000)
    assert found.converged
    assert found.theta / problem.scale == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_the_start_does_not_matter():
    problem, _, _ = case(0, noise=0.1)
    starts = (np.zeros(3), np.full(3, 50.0), np.array([1.0, 9.0, -30.0]))
    found = [fit_linear(problem, np.full(3, 1e-4), 0.1, start=start, max_iterations=5_000).theta for start in starts]
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    assert found[2] == pytest.approx(found[0], abs=1e-3)


def test_planted_coefficients_are_recovered_under_outliers():
    _, columns, label = case(1)
    label[::30] *= 20
    problem = LinearProblem.of(columns, label, lower=np.array([0.0, 0.0, -np.inf]))
    found = fit_linear(problem, np.zeros(3), 0.02, start=np.zeros(3), max_iterations=5_000)
    assert found.theta / problem.scale == pytest.approx([3.0, 0.5, -2.0], rel=0.05)


def test_running_out_of_iterations_is_a_result_that_says_so():
    problem, _, _ = case(0, noise=0.1)
    found = fit_linear(problem, np.zeros(3), 0.1, start=np.full(3, 50.0), max_iterations=1)
    assert not found.converged
    assert "raise max_iterations" in found.message
