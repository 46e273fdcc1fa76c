import numpy as np
import pytest

from srfa.fit.convex import convex_start
from srfa.fit.objective import Penalty, Problem, column_scale, predicted_us
from srfa.fit.softplus import refine


def planted(seed: int, noise: float = 0.0):
    """Labels made by the model itself: overheads plus softplus of compute."""
    rng = np.random.default_rng(seed)
    linear = np.column_stack([np.ones(400), rng.uniform(0, 50, 400)])
    compute = np.column_stack([np.ones(400), rng.uniform(0, 20_000, 400), rng.uniform(0, 5_000, 400)])
    gamma, beta = np.array([300.0, 20.0]), np.array([-500.0, 1.2, 0.7])
    label = linear @ gamma + 400 * np.logaddexp(0, compute @ beta / 400)
    label *= rng.normal(1, noise, 400)
    ls, cs = column_scale(linear, label), column_scale(compute, label)
    case = Problem(linear / ls, compute / cs, label, ls, cs, np.zeros(2), np.full(2, np.inf), 400.0)
    return case, np.concatenate([gamma * ls, beta * cs])


@pytest.mark.parametrize("seed", range(3))
def test_planted_coefficients_are_recovered(seed):
    case, truth = planted(seed)
    setting = Penalty(0.0, 0.0, 0.1)
    start = convex_start(case, setting, max_rows=1_000, seed=0)
    solution = refine(case, setting, start, max_iterations=5_000)
    assert solution.converged
    assert solution.loss <= solution.start_loss
    assert solution.theta == pytest.approx(truth, rel=0.05, abs=2e-3)


def test_noise_is_averaged_out():
    case, _ = planted(0, noise=0.05)
    setting = Penalty(1e-5, 1e-5, 0.1)
    solution = refine(case, setting, convex_start(case, setting, max_rows=1_000, seed=0), max_iterations=5_000)
    error = np.abs(predicted_us(solution.theta, case) / case.step_time_us - 1)
    assert np.mean(error) < 0.045


def test_running_out_of_iterations_is_a_result_that_says_so():
    case, _ = planted(0, noise=0.05)
    solution = refine(case, Penalty(0.0, 0.0, 0.1), np.zeros(5), max_iterations=1)
    assert not solution.converged
    assert "raise max_iterations" in solution.message


def test_overheads_never_leave_their_bounds():
    case, _ = planted(1)
    below = Problem(
        case.linear, case.compute, case.step_time_us * 0.5, case.linear_scale, case.compute_scale,
        np.array([0.0, 0.2]), np.array([0.01, 0.3]), 400.0,
    )  # fmt: skip
    theta = refine(below, Penalty(0.0, 0.0, 0.1), np.array([0.0, 0.2, 0, 0, 0]), max_iterations=500).theta
    assert 0.0 <= theta[0] <= 0.01
    assert 0.2 <= theta[1] <= 0.3
