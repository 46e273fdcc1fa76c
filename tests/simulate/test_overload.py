import heapq

import numpy as np
import pytest

from srfa.simulate.overload import MOST_REQUESTS, capacity_rate, delivered
from srfa.simulate.served import Served


def run(arrived_us, service_us, seats=1):
    """Requests served in order of arrival on some seats, one each."""
    free_us = [0.0] * seats
    begun, done = np.zeros(len(arrived_us)), np.zeros(len(arrived_us))
    for row, (arrival, service) in enumerate(zip(arrived_us, service_us, strict=True)):
        begun[row] = max(heapq.heappop(free_us), arrival)
        done[row] = begun[row] + service
        heapq.heappush(free_us, done[row])
    whole = np.ones(len(begun), dtype=np.int64)
    return Served(
        t_arrived_us=arrived_us, t_queued_us=arrived_us, t_first_scheduled_us=begun, t_first_token_us=done,
        t_finished_us=done, t_departed_us=done, first_outside_us=0.0 * done, prompt_tokens=whole, output_tokens=whole,
        cached_tokens=0 * whole, num_preemptions=0 * whole, running_at_queue=0 * whole, waiting_at_queue=0 * whole,
        kv_usage_at_queue=0.0 * done, n_steps=1,
    )  # fmt: skip


def server(seats, draw, n_requests=100, seed=0):
    """Serves a demand of Poisson arrivals, its services drawn in units of a second."""
    asked = []

    def serve(rate, repeats):
        rng, count = np.random.default_rng(seed), repeats * n_requests
        asked.append(count)
        return run(np.cumsum(rng.exponential(1.0 / rate, count)) * 1e6, draw(rng, count) * 1e6, seats)

    return serve, asked


def even(rng, count):
    return np.full(count, 1.0)


def varied(rng, count):
    return rng.uniform(0.5, 1.5, count)


def heavy(rng, count):
    return rng.lognormal(-0.5, 1.0, count)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("draw", [even, varied, heavy])
@pytest.mark.parametrize("seats", [1, 8, 64])
def test_seats_that_serve_a_second_each_deliver_as_many_a_second(seats, draw, seed):
    serve, _ = server(seats, draw, seed=seed)
    found = capacity_rate(serve, 0.5 * seats, 100)
    assert 0.96 * seats <= found <= 1.01 * seats


@pytest.mark.parametrize("start", [0.01, 1.0, 8.0])
def test_the_answer_does_not_hang_on_where_the_search_starts(start):
    serve, _ = server(8, varied)
    assert capacity_rate(serve, start, 100) == pytest.approx(8.0, rel=0.03)


def test_an_even_service_needs_few_requests_and_a_wild_one_more_but_not_without_end():
    counts = []
    for draw in (even, varied, heavy):
        serve, asked = server(4, draw)
        capacity_rate(serve, 4.0, 100)
        counts.append(max(asked))
    assert counts == sorted(counts)
    assert counts[0] <= 1000
    assert counts[-1] <= MOST_REQUESTS


def test_a_demand_beyond_the_most_is_still_served_once():
    serve, asked = server(1, even, n_requests=MOST_REQUESTS + 1)
    capacity_rate(serve, 1.0, MOST_REQUESTS + 1)
    assert asked == [MOST_REQUESTS + 1]


def test_a_run_without_a_queue_is_not_settled():
    assert not delivered(run(np.arange(400) * 2e6, np.full(400, 1e6))).is_settled
    assert delivered(run(np.arange(400) * 0.5e6, np.full(400, 1e6))).is_settled


def test_requests_that_leave_at_once_have_the_rate_of_the_whole_run():
    found = delivered(run(np.zeros(100), np.full(100, 2e6), seats=100))
    assert found.rate == 50.0
    assert not found.is_settled
