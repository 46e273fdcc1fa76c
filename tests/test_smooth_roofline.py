import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srfa.smooth_roofline import Factors, Work, loss_and_slopes, predicted_us, smooth_roofline, tangents

TIMES = st.floats(1e-3, 1e6)


def random_work(n_steps=40, seed=0):
    """Steps with three operators of two kinds, one of them absent in half of the steps."""
    rng = np.random.default_rng(seed)
    memory, compute = rng.lognormal(5, 1, (n_steps, 3)), rng.lognormal(5, 1.5, (n_steps, 3))
    memory[::2, 2] = compute[::2, 2] = 0.0
    return Work(
        memory, compute, rng.lognormal(2, 1, (n_steps, 2)), np.array([0, 0, 1]), np.arange(n_steps) % 2,
        np.arange(n_steps) % 3,
    )  # fmt: skip


def random_factors(seed=1):
    rng = np.random.default_rng(seed)
    return Factors(rng.uniform(0.9, 2, (2, 2)), rng.uniform(1, 3, (2, 2)), rng.uniform(0.5, 5, (3, 2)))


@given(TIMES, TIMES)
def test_it_is_never_under_the_hard_roofline_and_never_far_over_the_sum(memory, compute):
    (value,) = smooth_roofline(np.array([memory]), np.array([compute]))
    assert value >= max(memory, compute) * (1 - 1e-12)
    assert value <= 1.2 * (memory + compute)


@given(TIMES, TIMES, st.floats(1.0, 10.0))
def test_it_grows_in_both_times(memory, compute, factor):
    at = smooth_roofline(np.array([memory, memory * factor, memory]), np.array([compute, compute, compute * factor]))
    assert at[1] >= at[0] * (1 - 1e-12)
    assert at[2] >= at[0] * (1 - 1e-12)


@given(TIMES, TIMES, st.floats(0.1, 1000.0))
def test_it_has_no_time_scale_of_its_own(memory, compute, factor):
    small, large = smooth_roofline(np.array([memory, factor * memory]), np.array([compute, factor * compute]))
    assert large == pytest.approx(factor * small)


@given(TIMES, TIMES, TIMES, TIMES)
def test_it_is_convex(m1, c1, m2, c2):
    ends = smooth_roofline(np.array([m1, m2]), np.array([c1, c2]))
    (middle,) = smooth_roofline(np.array([(m1 + m2) / 2]), np.array([(c1 + c2) / 2]))
    assert middle <= ends.mean() * (1 + 1e-9)


def test_far_from_the_bend_it_is_the_larger_of_both():
    assert smooth_roofline(np.array([1.0, 1e-6]), np.array([1e-6, 1.0])) == pytest.approx([1.15, 1.0], rel=0.01)


def test_a_step_is_the_sum_of_its_rooflines_and_linear_terms():
    work, factors = random_work(), random_factors()
    memory = work.memory_us * factors.memory[work.gpu][:, work.kind]
    compute = work.compute_us * factors.compute[work.gpu][:, work.kind]
    present = memory > 0
    rooflines = np.where(present, smooth_roofline(np.where(present, memory, 1.0), compute), 0.0).sum(axis=1)
    expected = rooflines + (work.linear * factors.linear[work.software]).sum(axis=1)
    assert predicted_us(work, factors) == pytest.approx(expected)


@pytest.mark.parametrize("huber_delta", [0.05, 10.0])
@pytest.mark.parametrize("part", ["memory", "compute", "linear"])
def test_slopes_are_those_of_the_loss(part, huber_delta):
    work, factors = random_work(), random_factors()
    labels = predicted_us(work, factors) * np.random.default_rng(2).lognormal(0, 0.2, work.n_steps)
    _, slopes = loss_and_slopes(work, factors, labels, huber_delta)
    for place in np.ndindex(getattr(factors, part).shape):
        step = 1e-6 * getattr(factors, part)[place]
        around = []
        for sign in (-1, 1):
            moved = Factors(factors.memory.copy(), factors.compute.copy(), factors.linear.copy())
            getattr(moved, part)[place] += sign * step
            around.append(loss_and_slopes(work, moved, labels, huber_delta)[0])
        assert getattr(slopes, part)[place] == pytest.approx((around[1] - around[0]) / (2 * step), rel=1e-4, abs=1e-9)


def test_a_large_threshold_makes_the_loss_half_the_mean_square():
    work, factors = random_work(), random_factors()
    labels = predicted_us(work, factors) * np.random.default_rng(3).lognormal(0, 0.3, work.n_steps)
    loss, _ = loss_and_slopes(work, factors, labels, 1e9)
    assert loss == pytest.approx(np.mean((predicted_us(work, factors) / labels - 1) ** 2) / 2)


def test_the_tangent_plane_touches_and_lies_below():
    work, factors = random_work(), random_factors()
    plane = tangents(work, factors)
    other = random_factors(seed=9)

    def on_plane(at):
        rows = zip(plane, (at.memory, at.compute), strict=True)
        return sum((column * factor[work.gpu]).sum(axis=1) for column, factor in rows)

    def rooflines(at):
        return predicted_us(work, Factors(at.memory, at.compute, np.zeros_like(at.linear)))

    assert on_plane(factors) == pytest.approx(rooflines(factors))
    assert (on_plane(other) <= rooflines(other) * (1 + 1e-9)).all()
