import numpy as np
import pytest
from scipy.optimize import nnls

from srfa.coefficients import FitConfig
from srfa.fit.physical import (
    LEAST_COMPUTE,
    LEAST_MEMORY,
    Layout,
    Prior,
    Setting,
    Task,
    local_model,
    objective,
    solve,
    tangent_start,
)
from srfa.smooth_roofline import Work, predicted_us, tangents

CONFIG = FitConfig()
LAYOUT = Layout(n_kinds=2, is_host=np.array([0.0, 1.0]), n_gpus=2, n_softwares=2)
N_PARAMETERS = sum(LAYOUT.sizes)
PLANTED = np.log([1.3, 1.1, 1.5, 2.5, 40.0, 3.0, 1.1, 0.95, 0.9, 1.05, 1.3, 0.8])


def task(n_steps=600, *, seed=0, noise=0.0, log_sd=5.0):
    """Steps of two kinds of operators, two GPUs and two software versions, timed by the planted law."""
    rng = np.random.default_rng(seed)
    work = Work(
        memory_us=rng.lognormal(6, 1, (n_steps, 3)),
        compute_us=rng.lognormal(6, 2, (n_steps, 3)),
        linear=rng.lognormal(3, 1, (n_steps, 2)),
        kind=np.array([0, 0, 1]),
        gpu=np.arange(n_steps) % 2,
        software=(np.arange(n_steps) // 2) % 2,
    )
    labels = predicted_us(work, LAYOUT.factors(PLANTED)) * rng.lognormal(0, noise, n_steps)
    return Task(work, labels, LAYOUT, Prior(np.zeros(N_PARAMETERS), np.full(N_PARAMETERS, log_sd)))


@pytest.mark.parametrize("at", [PLANTED, np.zeros(N_PARAMETERS) + 0.3])
@pytest.mark.parametrize("huber_delta", [0.05, 10.0])
def test_the_gradient_is_that_of_the_objective(at, huber_delta):
    one, setting = task(noise=0.2), Setting(0.01, huber_delta)
    _, gradient = objective(at, one, setting)
    for position in range(N_PARAMETERS):
        moved = [at.copy(), at.copy()]
        moved[0][position] -= 1e-6
        moved[1][position] += 1e-6
        numeric = np.diff([objective(point, one, setting)[0] for point in moved])[0] / 2e-6
        assert gradient[position] == pytest.approx(numeric, rel=1e-4, abs=1e-7)


def test_the_local_model_has_the_value_and_gradient_of_the_objective():
    one, setting = task(noise=0.2), Setting(0.01, 0.1)
    value, gradient = objective(PLANTED + 0.1, one, setting)
    model = local_model(PLANTED + 0.1, one, setting)
    assert model.value == pytest.approx(value, rel=1e-12)
    assert model.gradient == pytest.approx(gradient, rel=1e-9, abs=1e-12)


def test_the_curvature_is_the_derivative_of_the_gradient_where_nothing_is_left_to_explain():
    one, setting = task(), Setting(1e-9, 0.1)
    curvature = local_model(PLANTED, one, setting).curvature
    for position in range(N_PARAMETERS):
        moved = [PLANTED.copy(), PLANTED.copy()]
        moved[0][position] -= 1e-5
        moved[1][position] += 1e-5
        numeric = np.diff([objective(point, one, setting)[1] for point in moved], axis=0)[0] / 2e-5
        assert curvature[position] == pytest.approx(numeric, rel=1e-3, abs=1e-6)


def test_on_its_bound_a_factor_still_feels_what_would_lift_it():
    at = np.zeros(N_PARAMETERS)
    at[:2] = np.log(LEAST_MEMORY)
    one, setting = task(), Setting(1e-9, 10.0)
    slow = Task(one.work, 2.0 * one.step_time_us, LAYOUT, one.prior)
    _, gradient = objective(at, slow, setting)
    lifted = at + np.where(np.arange(N_PARAMETERS) < 4, 1e-6, 0.0)
    assert (gradient[:4] < 0).all()
    assert objective(lifted, slow, setting)[0] < objective(at, slow, setting)[0]


def test_the_tangent_plane_starts_from_groups_that_deviate():
    """Where the prior is the truth, deviations included, the start is the truth too."""
    one = task(400)
    prior = Prior(PLANTED, np.full(N_PARAMETERS, 5.0))
    start = tangent_start(Task(one.work, one.step_time_us, LAYOUT, prior), Setting(1e-12, 10.0), CONFIG)
    assert start == pytest.approx(PLANTED, abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_planted_factors_are_recovered(seed):
    found = solve(task(3000, seed=seed), Setting(1e-9, 0.1), CONFIG)
    assert found.converged
    factors, planted = LAYOUT.factors(found.theta), LAYOUT.factors(PLANTED)
    assert factors.memory[:2] == pytest.approx(planted.memory[:2], rel=0.01)
    assert factors.compute[:2] == pytest.approx(planted.compute[:2], rel=0.01)
    assert factors.linear[:2] == pytest.approx(planted.linear[:2], rel=0.02)


def test_outliers_do_not_move_the_fit():
    one = task(2000)
    one.step_time_us[::50] *= 30.0
    found = LAYOUT.factors(solve(one, Setting(1e-9, 0.1), CONFIG).theta)
    assert found.memory[:2] == pytest.approx(LAYOUT.factors(PLANTED).memory[:2], rel=0.03)


def test_without_steps_that_tell_the_prior_stands():
    one = task(100)
    prior = Prior(PLANTED + 0.2, np.full(N_PARAMETERS, 1e-4))
    found = solve(Task(one.work, one.step_time_us, LAYOUT, prior), Setting(10.0, 0.1), CONFIG)
    assert found.theta == pytest.approx(PLANTED + 0.2, abs=1e-3)


def test_no_factor_is_faster_than_the_hardware():
    one = task(500)
    fast = Task(one.work, one.step_time_us / 20.0, LAYOUT, one.prior)
    factors = LAYOUT.factors(solve(fast, Setting(1e-6, 0.1), CONFIG).theta)
    assert (factors.memory >= LEAST_MEMORY).all()
    assert (factors.compute >= LEAST_COMPUTE).all()


def test_the_unseen_group_deviates_from_nothing():
    factors = LAYOUT.factors(PLANTED)
    assert factors.memory[2] == pytest.approx([1.3, 1.1])
    assert factors.compute[2] == pytest.approx([1.5, 2.5])
    assert factors.linear[2] == pytest.approx([40.0, 3.0])
    assert factors.linear[0] == pytest.approx([40.0, 3.0 * 1.3])


def test_the_start_without_ridge_is_non_negative_least_squares_on_the_tangent_plane():
    one, setting = task(400, noise=0.3), Setting(1e-12, 1e6)
    start = np.exp(tangent_start(one, setting, CONFIG)[:6])
    factors = LAYOUT.factors(one.prior.log_mean)
    columns = np.hstack([*tangents(one.work, factors), one.work.linear]) / one.step_time_us[:, None]
    lower = np.array([LEAST_MEMORY] * 2 + [LEAST_COMPUTE] * 2 + [0.0] * 2)
    above, _ = nnls(columns, 1.0 - columns @ lower)
    assert start == pytest.approx(np.maximum(lower + above, 0.1), rel=1e-3, abs=1e-3)


def test_the_convex_start_is_better_than_the_prior():
    one, setting = task(noise=0.1), Setting(1e-6, 0.1)
    start = tangent_start(one, setting, CONFIG)
    assert objective(start, one, setting)[0] < objective(one.prior.log_mean, one, setting)[0]


def test_many_steps_are_fitted_like_few(monkeypatch):
    one = task(3000, noise=0.05)
    plain = solve(one, Setting(1e-6, 0.1), CONFIG)
    monkeypatch.setattr("srfa.fit.physical._FIRST_ROWS", 500)
    staged = solve(one, Setting(1e-6, 0.1), CONFIG)
    assert staged.theta == pytest.approx(plain.theta, abs=2e-3)
    assert staged.n_iterations < plain.n_iterations
