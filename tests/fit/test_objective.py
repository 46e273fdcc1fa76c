from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from srfa.fit.objective import Penalty, Problem, column_scale, huber, loss_and_gradient, predicted_us


def problem(seed: int, *, softplus_scale_us: float = 1_000.0, n_rows: int = 60) -> Problem:
    rng = np.random.default_rng(seed)
    linear, compute = rng.uniform(0, 5_000, (n_rows, 3)), rng.uniform(-1_000, 20_000, (n_rows, 4))
    label = linear.sum(axis=1) + np.abs(compute).sum(axis=1) * rng.uniform(0.8, 1.2, n_rows)
    linear_scale, compute_scale = column_scale(linear, label), column_scale(compute, label)
    return Problem(
        linear / linear_scale,
        compute / compute_scale,
        label,
        linear_scale,
        compute_scale,
        np.zeros(3),
        np.full(3, np.inf),
        softplus_scale_us,
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.1, 1.0]))
def test_the_gradient_equals_finite_differences(seed, delta):
    setting = Penalty(0.01, 0.003, delta)
    case = problem(seed)
    theta = np.random.default_rng(seed).uniform(0, 1, 7)
    _, gradient = loss_and_gradient(theta, case, setting)
    numeric = approx_fprime(theta, lambda at: loss_and_gradient(at, case, setting)[0], 1e-7)
    assert gradient == pytest.approx(numeric, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_with_a_prior_equals_finite_differences(seed):
    rng = np.random.default_rng(seed)
    case, theta = replace(problem(seed), prior=rng.uniform(-1, 2, 7)), rng.uniform(0, 1, 7)
    setting = Penalty(0.3, 0.1, 0.1)
    _, gradient = loss_and_gradient(theta, case, setting)
    numeric = approx_fprime(theta, lambda at: loss_and_gradient(at, case, setting)[0], 1e-7)
    assert gradient == pytest.approx(numeric, rel=1e-3, abs=1e-6)


def test_the_ridge_costs_nothing_at_the_prior_and_a_prior_of_zeros_is_none():
    case, theta = problem(1), np.linspace(0.1, 0.7, 7)
    strong, none = Penalty(5.0, 7.0, 0.1), Penalty(0.0, 0.0, 0.1)
    at_prior = loss_and_gradient(theta, replace(case, prior=theta), strong)
    without = loss_and_gradient(theta, case, none)
    assert at_prior[0] == without[0]
    assert at_prior[1] == pytest.approx(without[1])
    zeros = loss_and_gradient(theta, replace(case, prior=np.zeros(7)), strong)
    assert zeros[0] == loss_and_gradient(theta, case, strong)[0]


def test_huber_with_large_delta_is_half_the_square():
    residual = np.linspace(-3, 3, 13)
    assert huber(residual, 100.0) == pytest.approx(residual**2 / 2)


def test_huber_is_continuous_and_smooth_at_delta():
    near = huber(np.array([1.0 - 1e-9, 1.0 + 1e-9]), 1.0)
    assert near[0] == pytest.approx(near[1], abs=1e-8)


def test_zero_softplus_width_is_the_hard_maximum():
    case = problem(3, softplus_scale_us=0.0)
    theta = np.concatenate([np.zeros(3), np.full(4, -1.0)])
    assert (predicted_us(theta, case) >= 0).all()
    inner = case.compute @ theta[3:]
    assert predicted_us(theta, case) == pytest.approx(np.maximum(inner, 0.0))


def test_the_loss_does_not_overflow_for_absurd_parameters():
    loss, gradient = loss_and_gradient(np.full(7, 1e6), problem(1), Penalty(0.0, 0.0, 0.1))
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_a_column_of_zeros_has_scale_one():
    columns = np.column_stack([np.zeros(4), np.full(4, 10.0)])
    assert column_scale(columns, np.full(4, 5.0)).tolist() == [1.0, 2.0]
