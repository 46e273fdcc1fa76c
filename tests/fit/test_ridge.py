import numpy as np
import pytest

from srfa.coefficients import FitConfig
from srfa.features import Block
from srfa.fit.ridge import LOG_US_LIMITS, exp_us, fit_log_ridge, fit_relative_ridge

WEAK = FitConfig(lambda_beta=(1e-12,))
TRUTH = np.array([2.0, 0.5, -0.3])


def block(n=200, seed=0):
    rng = np.random.default_rng(seed)
    columns = {("one", "1"): 1.0, ("wide", "us"): rng.uniform(0, 10, n), ("narrow", "1"): rng.uniform(5, 6, n)}
    return Block.of(columns, n)


def test_planted_logarithms_are_recovered_in_the_columns_own_units():
    drawn = block()
    found = fit_log_ridge(drawn, np.exp(drawn.values @ TRUTH), groups=np.arange(200) % 5, config=WEAK)
    assert found.block.values == pytest.approx(TRUTH, rel=1e-4)


def test_planted_times_are_recovered():
    drawn = block()
    truth = np.array([900.0, 40.0, 300.0])
    found = fit_relative_ridge(drawn, drawn.values @ truth, groups=np.arange(200) % 5, config=WEAK)
    assert found.block.values == pytest.approx(truth, rel=1e-3)


def test_without_ridge_relative_weights_make_it_least_squares_of_relative_errors():
    drawn, rng = block(), np.random.default_rng(1)
    target = drawn.values @ [900.0, 40.0, 300.0] * rng.normal(1, 0.1, 200)
    expected, *_ = np.linalg.lstsq(drawn.values / target[:, None], np.ones(200))
    found = fit_relative_ridge(drawn, target, groups=np.arange(200) % 5, config=WEAK)
    assert found.block.values == pytest.approx(expected, rel=1e-4)


def test_an_endless_ridge_leaves_the_mean_logarithm():
    drawn = block()
    target = np.exp(drawn.values @ TRUTH)
    found = fit_log_ridge(drawn, target, groups=np.zeros(200, dtype=int), config=FitConfig(lambda_beta=(1e12,)))
    assert drawn.values @ found.block.values == pytest.approx(np.full(200, np.log(target).mean()), rel=1e-6)


def test_a_column_that_never_varied_has_no_effect():
    drawn = Block.of({("one", "1"): 1.0, ("zero", "us"): 0.0, ("five", "us"): 5.0}, 50)
    found = fit_log_ridge(drawn, np.full(50, 100.0), groups=np.arange(50) % 5, config=WEAK)
    assert found.block.values == pytest.approx([np.log(100.0), 0.0, 0.0])


def test_the_strength_is_chosen_by_groups_that_are_held_out_whole():
    """Each group has its own level and its own position of a column: followed within groups, it misleads between."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 40)
    position = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])[group] + rng.normal(0, 0.01, 240)
    level = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])[group]
    drawn = Block.of({("one", "1"): 1.0, ("position", "1"): position}, 240)
    config = FitConfig(lambda_beta=(1e-8, 1e4))
    assert fit_log_ridge(drawn, np.exp(5 + level), groups=group, config=config).strength == pytest.approx(1e4)


def test_with_one_group_the_middle_strength_is_taken_unsearched():
    drawn = block()
    config = FitConfig(lambda_beta=(1e-8, 1e-6, 1e-4))
    found = fit_log_ridge(drawn, np.exp(drawn.values @ TRUTH), groups=np.zeros(200, dtype=int), config=config)
    assert found.strength == pytest.approx(1e-6)


def test_exponents_are_cut_to_a_microsecond_and_an_hour():
    assert exp_us(np.array([-1e9, 1e9])) == pytest.approx([1.0, 3.6e9])
    assert exp_us(np.array([LOG_US_LIMITS[1] / 2])) == pytest.approx([6e4])
