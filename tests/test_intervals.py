from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srfa.coefficients import FitConfig
from srfa.coverage import coverage
from srfa.grades import N_GRADES, GradeInterval, Intervals
from srfa.intervals import (
    PRIOR_LOG_SD,
    LogInterval,
    Residuals,
    group_conformal,
    group_interval,
    inside,
    intervals_of,
    prior_interval,
    random_effects,
)
from srfa.observations import from_table
from srfa.validate import cross_predict
from tests.planted import GPUS, LinearEstimator, planted_table, scaled_labels

PRIOR = 0.1


def drawn(n_groups, *, between, within, seed, skewed=False):
    """Groups of 20 to 80 steps with normal (or exponential) group effects and uneven spread within."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(20, 80, n_groups)
    effects = rng.exponential(1.0, n_groups) - 1.0 if skewed else rng.standard_normal(n_groups)
    group = np.repeat(np.arange(n_groups), sizes)
    spread = within * rng.uniform(0.5, 1.5, n_groups)
    return Residuals(between * effects[group] + spread[group] * rng.standard_normal(len(group)), group)


def mean_inside(make, n_groups, *, n_draws=200, **law):
    shares = []
    for seed in range(n_draws):
        all_groups = drawn(n_groups + 1, seed=seed, **law)
        rest, new = all_groups.group < n_groups, all_groups.group == n_groups
        interval = make(Residuals(all_groups.log_ratio[rest], all_groups.group[rest]))
        fresh = Residuals(all_groups.log_ratio[new], np.zeros(int(new.sum()), dtype=np.int64))
        shares.append(inside(fresh, interval)[0])
    return float(np.mean(shares))


def chosen(residuals):
    return group_interval(residuals, prior_log_sd=PRIOR)


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("between", [0.02, 0.2])
@pytest.mark.parametrize("n_groups", [3, 6, 12, 40])
def test_ninety_percent_of_a_new_groups_steps_are_inside(n_groups, between, skewed):
    share = mean_inside(chosen, n_groups, between=between, within=0.05, skewed=skewed)
    assert 0.85 <= share <= 0.96


def test_two_groups_hold_the_nominal_share_where_the_prior_is_right():
    assert 0.85 <= mean_inside(chosen, 2, between=PRIOR, within=0.03) <= 1.0


def test_plain_quantiles_over_steps_would_promise_too_much():
    def plain(residuals):
        low, high = np.quantile(residuals.log_ratio, [0.05, 0.95])
        return LogInterval(float(low), float(high), residuals.n_groups, "group-conformal")

    law = {"between": 0.1, "within": 0.05}
    assert mean_inside(plain, 4, **law) < 0.82
    assert mean_inside(chosen, 4, **law) > 0.85


def test_without_group_effects_the_interval_is_that_of_the_steps():
    residuals = drawn(12, between=0.0, within=0.05, seed=3)
    found = random_effects(residuals, prior_log_sd=PRIOR)
    low, high = np.quantile(residuals.log_ratio, [0.05, 0.95])
    assert (found.low, found.high) == (pytest.approx(low, rel=0.15), pytest.approx(high, rel=0.15))


def test_groups_without_spread_inside_give_students_t():
    means = np.array([-0.1, 0.0, 0.05, 0.15])
    residuals = Residuals(np.repeat(means, 10), np.repeat(np.arange(4), 10))
    found = random_effects(residuals, prior_log_sd=PRIOR)
    half = 2.353 * means.std(ddof=1) * np.sqrt(1.25)  # t of 3 degrees of freedom at 95 %
    assert found.low == pytest.approx(means.mean() - half, abs=0.01)
    assert found.high == pytest.approx(means.mean() + half, abs=0.01)


@given(st.integers(0, 1000), st.floats(-0.5, 0.5))
def test_a_common_bias_moves_both_ends_by_itself(seed, bias):
    residuals = drawn(5, between=0.1, within=0.05, seed=seed)
    here, there = chosen(residuals), chosen(Residuals(residuals.log_ratio + bias, residuals.group))
    assert there.low == pytest.approx(here.low + bias, abs=1e-9)
    assert there.high == pytest.approx(here.high + bias, abs=1e-9)


def test_every_group_counts_equally_whatever_its_steps():
    residuals = drawn(40, between=0.1, within=0.05, seed=1)
    of_first = np.flatnonzero(residuals.group == 0)
    rows = np.concatenate([np.arange(len(residuals.group)), np.tile(of_first, 9)])
    many = Residuals(residuals.log_ratio[rows], residuals.group[rows])
    for make in (group_conformal, lambda one: random_effects(one, prior_log_sd=PRIOR)):
        assert make(many).low == pytest.approx(make(residuals).low, abs=1e-3)
        assert make(many).high == pytest.approx(make(residuals).high, abs=1e-3)


def test_conformal_ends_are_infinite_under_nineteen_groups_and_used_from_thirty_nine():
    few, some, many = (drawn(n, between=0.1, within=0.05, seed=1) for n in (18, 19, 39))
    assert np.isinf(group_conformal(few).high)
    assert np.isfinite(group_conformal(some).high)
    assert chosen(some).method == "random-effects"
    assert chosen(many).method == "group-conformal"


def test_conformal_quantiles_by_hand():
    """Forty groups of one step: the missing 1/41 at infinity makes the 95 % end the 39th of 40 values."""
    residuals = Residuals(np.arange(1.0, 41.0), np.arange(40))
    found = group_conformal(residuals)
    assert (found.low, found.high) == (2.0, 39.0)


def held_out(effects, *, n_steps=50, noise=0.02, seed=0):
    """A table as cross_predict leaves it, with planted log errors by group."""
    rng = np.random.default_rng(seed)
    names = np.repeat(list(effects), n_steps)
    log_ratio = np.repeat(list(effects.values()), n_steps) + noise * rng.standard_normal(len(names))
    columns = {"held_out": names, "job_id": names, "predicted_step_time_us": np.full(len(names), 100.0)}
    return pa.table({**columns, "step_time_us": 100.0 * np.exp(log_ratio)})


def test_grades_name_their_split_and_none_is_narrower_than_the_one_before():
    tables = {
        "leave-one-job-out": held_out({f"j{n}": 0.01 * (-1) ** n for n in range(10)}),
        "leave-one-workload-out": held_out({"a": -0.05, "b": 0.05, "c": 0.0}),
        "leave-one-tp-out": held_out({"tp1": 0.01, "tp2": 0.0, "tp4": -0.01}),
        "leave-one-model-out": held_out({"m": 0.01, "n": 0.0, "o": -0.01}),
        "leave-one-gpu-out": held_out({"g": 0.2, "h": -0.1, "i": 0.0}),
    }
    grades = intervals_of(tables).grades
    assert [one.source for one in grades] == [
        "leave-one-job-out",
        "leave-one-workload-out and leave-one-tp-out",
        "leave-one-model-out",
        "leave-one-gpu-out",
        "leave-one-model-out and leave-one-gpu-out",
    ]
    for before, after in pairwise(grades):
        assert after.p05 <= before.p05 < 0 < before.p95 <= after.p95
    assert (grades[2].p05, grades[2].p95) == (grades[1].p05, grades[1].p95)  # models transferred better than workloads
    assert grades[3].p95 - grades[3].p05 > 2 * (grades[1].p95 - grades[1].p05)
    assert grades[4].p95 > grades[3].p95


def test_a_grade_without_a_split_rests_on_its_prior_and_says_so():
    grades = intervals_of({}).grades
    assert {one.source for one in grades} == {"prior"}
    assert all(one.n_groups == 0 and one.method == "prior" for one in grades)
    assert grades[3].p95 == pytest.approx(prior_interval(PRIOR_LOG_SD[3]).high)
    one_gpu = intervals_of({"leave-one-gpu-out": held_out({"g": 0.5})}).grades
    assert one_gpu[3].source == "prior"


def test_a_prior_widens_what_was_measured_where_less_was_asked_and_never_narrows_it():
    jobs = held_out({f"j{n}": 0.3 * (-1) ** n for n in range(10)}, noise=0.1)
    grades = intervals_of({"leave-one-job-out": jobs}).grades
    assert [one.source for one in grades] == ["leave-one-job-out", *["prior"] * 4]
    assert grades[3].p95 > np.hypot(0.3, prior_interval(PRIOR_LOG_SD[3]).high) > prior_interval(PRIOR_LOG_SD[3]).high
    assert grades[0].p95 <= grades[1].p95 <= grades[2].p95 <= grades[3].p95
    loose = intervals_of({"leave-one-gpu-out": held_out({"g": 0.0, "h": 0.1, "i": -0.1}, noise=0.4)}).grades
    assert loose[0].p95 > 1.6 * 0.4 * 0.8  # steps spread by 0.4 within every GPU, so they do within a job


def test_the_jobs_that_time_holds_out_measure_grade_0():
    table = held_out({"j1": 0.1, "j2": -0.1, "j3": 0.0})
    table = table.set_column(0, "held_out", pa.array(["last 20% of jobs"] * table.num_rows))
    assert intervals_of({"time": table}).grades[0].n_groups == 3


def test_bounds_are_the_offsets_of_each_steps_grade():
    grades = tuple(
        GradeInterval(grade=n, p05=-0.1 * (n + 1), p95=0.2 * (n + 1), n_groups=3, source="x", method="random-effects")
        for n in range(N_GRADES)
    )
    low, high = Intervals(grades=grades).bounds_us(np.array([100.0, 200.0]), np.array([0, 4]))
    assert low == pytest.approx([100 * np.exp(-0.1), 200 * np.exp(-0.5)])
    assert high == pytest.approx([100 * np.exp(0.2), 200 * np.exp(1.0)])


def jobs_with_effects(seed, *, between=0.1, noise=0.03):
    """The planted law with an effect of each job (18 of them) and noise of each step."""
    table = planted_table(noise=noise, seed=seed, steps_per_job=20)
    effects = between * np.random.default_rng(seed).standard_normal(18)
    _, job = np.unique(table["job_id"].to_pylist(), return_inverse=True)
    return from_table(scaled_labels(table, np.exp(effects)[job]))


def test_intervals_cover_held_out_jobs_of_a_planted_law_as_they_promise(shipped):
    shares = []
    for seed in range(6):
        steps, config = jobs_with_effects(seed), FitConfig()
        found = cross_predict(LinearEstimator(), steps, shipped, split="leave-one-job-out", config=config)
        groups = coverage(LinearEstimator(), steps, shipped, found=found, config=config)
        assert [one.held_out for one in groups] == [fold.held_out for fold in found.report.folds]
        assert all(one.n_groups == 17 and one.n_steps == 20 for one in groups)
        shares += [one.share_inside for one in groups]
    assert 0.85 <= np.mean(shares) <= 0.95


def test_coverage_of_two_gpus_rests_on_the_prior_and_tells_it(planted, shipped):
    found = cross_predict(LinearEstimator(), planted, shipped, split="leave-one-gpu-out", config=FitConfig())
    groups = coverage(LinearEstimator(), planted, shipped, found=found, config=FitConfig())
    assert [one.held_out for one in groups] == list(GPUS)
    assert [one.n_groups for one in groups] == [0, 0]
    assert [one.share_inside for one in groups] == [1.0, 1.0]


def test_a_group_that_breaks_the_law_is_outside(shipped):
    table = planted_table(noise=0.02, steps_per_job=20)
    slow = np.where(np.array(table["job_id"].to_pylist()) == "job-03", 3.0, 1.0)
    steps = from_table(scaled_labels(table, slow))
    found = cross_predict(LinearEstimator(), steps, shipped, split="leave-one-job-out", config=FitConfig())
    groups = coverage(LinearEstimator(), steps, shipped, found=found, config=FitConfig())
    assert next(one.share_inside for one in groups if one.held_out == "job-03") == 0.0


def test_a_split_that_predicted_nothing_measures_nothing():
    nothing = held_out({"g": 0.0}).slice(0, 0)
    assert intervals_of({"leave-one-gpu-out": nothing}) == intervals_of({})
