"""Times by hand: steps of 10 ms with 0.2 ms between them, from 100 ms on."""

import numpy as np
import pyarrow as pa
import pytest

from srfa.handover import EngineClock
from srfa.units import NS_PER_US, US_PER_MS

MS = int(NS_PER_US * US_PER_MS)


def clock(starts_ms, outputs_ms):
    columns = {"t_schedule_start_ns": starts_ms, "t_output_ns": outputs_ms}
    return EngineClock.of(pa.table({name: [int(one * MS) for one in ms] for name, ms in columns.items()}))


def ns(*times_ms):
    return np.array([int(one * MS) for one in times_ms], dtype=np.int64)


SYNCHRONOUS = clock([100.0, 110.2, 120.4], [110.0, 120.2, 130.4])


def test_a_request_that_waited_for_a_step_was_ready_some_time_after_that_steps_start():
    least = SYNCHRONOUS.least_handover_us(ns(109.0, 115.0), ns(120.3, 120.3))
    assert least == pytest.approx([1_200.0, 0.0])


def test_on_an_idle_engine_the_hand_over_is_all_of_it():
    least = SYNCHRONOUS.least_handover_us(ns(20.0, 129.0, 200.0), ns(50.0, 145.0, 203.0))
    assert least == pytest.approx([30_000.0, 16_000.0, 3_000.0])


def test_without_steps_the_engine_was_idle():
    assert clock([], []).least_handover_us(ns(1.0), ns(4.0)) == pytest.approx([3_000.0])
    assert clock([], []).queued_after_us(ns(1.0), np.array([7.0])).tolist() == [7.0]


def test_a_request_is_queued_when_the_step_that_runs_has_ended_and_at_once_when_none_does():
    queued = SYNCHRONOUS.queued_after_us(ns(109.0, 109.0, 200.0, 20.0), np.array([500.0, 5_000.0, 5_000.0, 5_000.0]))
    assert queued == pytest.approx([1_000.0, 11_200.0, 5_000.0, 5_000.0])


def test_with_asynchronous_scheduling_the_engine_also_looks_before_it_submits_the_next_step():
    overlapping = clock([100.0, 101.0, 110.1], [110.0, 120.0, 130.0])
    assert overlapping.queued_after_us(ns(100.0), np.array([500.0])) == pytest.approx([1_000.0])
    assert overlapping.queued_after_us(ns(100.0), np.array([1_500.0])) == pytest.approx([10_000.0])


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_steps_the_true_hand_over_lies_within_its_bounds(seed):
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.uniform(5.2, 50.0, 200))
    ran = clock(steps, np.concatenate([steps[1:] - 0.2, [steps[-1] + 5.0]]))
    arrived = ns(*np.sort(rng.uniform(0.0, steps[-1], 300)))
    handover_us = rng.uniform(0.0, 40_000.0, 300)
    whole_us = ran.queued_after_us(arrived, handover_us)
    queued = arrived + np.round(whole_us * NS_PER_US).astype(np.int64)
    least_us = ran.least_handover_us(arrived, queued + 1)
    assert (whole_us >= handover_us - 1e-2).all()
    assert (least_us <= handover_us + 1e-2).all()
