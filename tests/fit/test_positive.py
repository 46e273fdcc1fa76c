import numpy as np
import pytest
from scipy.optimize import OptimizeResult, linprog

from srfa.errors import FitError
from srfa.features import Block
from srfa.fit import positive
from srfa.fit.positive import fit_between


def block(**columns):
    return Block.of({(name, "us"): column for name, column in columns.items()}, len(next(iter(columns.values()))))


def drawn(seed, n=300):
    rng = np.random.default_rng(seed)
    return rng, block(intercept=np.ones(n), tokens=rng.integers(1, 4000, n).astype(float))


def test_targets_known_exactly_give_the_median_whatever_the_outliers():
    rng = np.random.default_rng(0)
    times = np.concatenate([rng.normal(500.0, 20.0, 600), np.full(250, 1e7)])
    found = fit_between(block(intercept=np.ones(850)), times, times, what="x", max_rows=5000)
    assert found.values[0] == pytest.approx(np.median(times), rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_linear_program_it_says_it_is(seed):
    """The oracle is HiGHS on the same loss without the pull towards 0."""
    rng, columns = drawn(seed)
    least = 300.0 + 0.5 * columns.values[:, 1] + rng.laplace(0.0, 200.0, 300)
    most = least + rng.exponential(100.0, 300)
    found = np.array(fit_between(columns, least, most, what="x", max_rows=5000).values)

    def loss(x):
        fitted = columns.values @ x
        return np.mean(np.maximum(0, least - fitted) + np.maximum(0, fitted - most))

    upper = np.block([[-columns.values, -np.eye(300)], [columns.values, -np.eye(300)]])
    best = linprog(np.r_[0, 0, np.ones(300)], A_ub=upper, b_ub=np.r_[-least, most], bounds=[(0, None)] * 302).fun / 300
    assert loss(found) == pytest.approx(best, rel=1e-3)


def test_what_bounds_leave_open_ends_at_the_smallest():
    least, most = np.full(50, 200.0), np.full(50, 9_000.0)
    found = fit_between(block(intercept=np.ones(50)), least, most, what="x", max_rows=5000)
    assert found.values[0] == pytest.approx(200.0, rel=0.01)


def test_many_rows_are_thinned_evenly():
    times = np.repeat([100.0, 300.0, 500.0], 2000)
    found = fit_between(block(intercept=np.ones(6000)), times, times, what="x", max_rows=31)
    assert found.values[0] == pytest.approx(300.0, rel=0.01)


def test_a_cost_that_would_be_negative_and_a_feature_that_never_occurs_are_0_and_at_their_bound():
    _, columns = drawn(1)
    with_nothing = Block.of(
        {("intercept", "us"): 1.0, ("tokens", "us"): columns.values[:, 1], ("never", "us"): 0.0}, 300
    )
    times = 5_000.0 - columns.values[:, 1]
    found = fit_between(with_nothing, times, times, what="x", max_rows=5000)
    assert found.values[1:] == (0.0, 0.0)
    assert found.at_bound == (False, True, True)


def test_rows_that_were_not_measured_are_left_out_and_too_few_are_a_named_error():
    times = np.array([10.0, np.nan, 10.0, np.nan])
    assert fit_between(block(intercept=np.ones(4)), times, times, what="x", max_rows=9).values[0] == pytest.approx(10.0)
    with pytest.raises(FitError, match="alpha: 0 usable requests for 1 coefficients"):
        fit_between(block(intercept=np.ones(4)), times * np.nan, times, what="alpha", max_rows=9)


def test_a_linear_program_that_fails_is_no_fit_of_zeros(monkeypatch):
    gave_up = OptimizeResult(success=False, x=None, message="Time limit reached. (HiGHS Status 13)")
    monkeypatch.setattr(positive, "linprog", lambda *_given, **_options: gave_up)
    times = np.full(4, 10.0)
    with pytest.raises(FitError, match=r"alpha: the linear program of 4 requests .* \(HiGHS Status 13\)"):
        fit_between(block(intercept=np.ones(4)), times, times, what="alpha", max_rows=9)
