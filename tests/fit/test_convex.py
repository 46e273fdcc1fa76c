from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import nnls

from srfa.fit.convex import convex_start, stratified_rows
from srfa.fit.objective import Penalty, Problem, column_scale


def linear_problem(seed: int, truth: np.ndarray, noise: float = 0.0) -> Problem:
    rng = np.random.default_rng(seed)
    columns = rng.uniform(10, 1_000, (300, len(truth)))
    label = columns @ truth * rng.normal(1.0, noise, 300)
    linear, compute = columns[:, :2], columns[:, 2:]
    ls, cs = column_scale(linear, label), column_scale(compute, label)
    return Problem(linear / ls, compute / cs, label, ls, cs, np.zeros(2), np.full(2, np.inf), 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_without_ridge_it_equals_non_negative_least_squares_of_relative_errors(seed):
    case = linear_problem(seed, np.array([2.0, 0.0, 1.0, 3.0]), noise=0.05)
    relative = np.hstack([case.linear, case.compute]) / case.step_time_us[:, None]
    expected, _ = nnls(relative, np.ones(300))
    start = convex_start(case, Penalty(0.0, 0.0, 100.0), max_rows=1_000, seed=0)
    assert start == pytest.approx(expected, abs=1e-5)


def test_planted_coefficients_are_recovered_under_outliers():
    case = linear_problem(1, np.array([2.0, 5.0, 1.0, 3.0]))
    case.step_time_us[::50] *= 10
    start = convex_start(case, Penalty(0.0, 0.0, 0.05), max_rows=1_000, seed=0)
    scale = np.concatenate([case.linear_scale, case.compute_scale])
    assert start / scale == pytest.approx([2.0, 5.0, 1.0, 3.0], rel=0.02)


def test_a_fit_with_a_prior_starts_there_within_the_bounds():
    case = linear_problem(1, np.array([2.0, 5.0, 1.0, 3.0]))
    start = convex_start(
        replace(case, prior=np.array([0.5, -0.5, 0.2, -0.1])), Penalty(1.0, 1.0, 0.1), max_rows=1_000, seed=0
    )
    assert start.tolist() == [0.5, 0.0, 0.2, -0.1]


def test_bounds_hold():
    case = linear_problem(2, np.array([2.0, 5.0, 1.0, 3.0]))
    tight = Problem(
        case.linear, case.compute, case.step_time_us, case.linear_scale, case.compute_scale,
        np.array([0.0, 0.0]), np.array([np.inf, 0.001]), 1.0,
    )  # fmt: skip
    start = convex_start(tight, Penalty(0.0, 0.0, 0.1), max_rows=1_000, seed=0)
    assert start.min() >= 0
    assert start[1] <= 0.001


def test_a_stratified_sample_covers_the_range_of_labels():
    labels = np.random.default_rng(0).lognormal(8, 2, 10_000)
    rows = stratified_rows(labels, 500, seed=1)
    assert len(set(rows.tolist())) == 500
    assert np.quantile(labels[rows], [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(labels, [0.1, 0.5, 0.9]), rel=0.1)
