import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srfa.simulate.latency import latencies, summarise, trend_of
from srfa.simulate.served import Served


def served(arrived, departed, *, outputs=None, first_outside=0.0, first_token=None):
    arrived, departed = np.asarray(arrived, dtype=np.float64), np.asarray(departed, dtype=np.float64)
    count = len(arrived)
    zeros = np.zeros(count, dtype=np.int64)
    first = departed if first_token is None else np.asarray(first_token, dtype=np.float64)
    return Served(
        t_arrived_us=arrived, t_queued_us=arrived, t_first_scheduled_us=arrived, t_first_token_us=first,
        t_finished_us=departed, t_departed_us=departed, first_outside_us=np.full(count, first_outside),
        prompt_tokens=np.full(count, 10), output_tokens=np.ones(count, dtype=np.int64) if outputs is None else outputs,
        cached_tokens=zeros, num_preemptions=zeros, running_at_queue=zeros, waiting_at_queue=zeros,
        kv_usage_at_queue=np.zeros(count), n_steps=7,
    )  # fmt: skip


def single_server(arrived, service_us):
    """Departures of one server that takes requests in order."""
    free, departed = 0.0, []
    for one in arrived:
        free = max(free, one) + service_us
        departed.append(free)
    return departed


def test_figures_of_two_requests_by_hand():
    run = served([0.0, 1e6], [2e6, 2e6], outputs=np.array([3, 1]), first_token=[0.5e6, 1.5e6], first_outside=0.1e6)
    found = summarise(run)
    assert found.duration_s == 2.0
    assert found.request_throughput == 1.0
    assert found.output_throughput == 2.0
    assert found.mean_in_flight == pytest.approx(1.5)
    assert found.latency.ttft_ms.mean == pytest.approx(600.0)
    assert found.latency.e2e_ms.mean == pytest.approx(1500.0)
    assert found.latency.tpot_ms.p99 == pytest.approx((2000.0 - 600.0) / 2)


def test_there_is_no_time_per_output_token_without_a_second_token():
    found = latencies(served([0.0], [1.0]))
    assert found.tpot_ms is None
    assert found.value_ms("tpot", "p99") == 0.0


@given(st.floats(min_value=0.1, max_value=0.8), st.integers(min_value=0, max_value=20))
def test_a_server_that_keeps_up_has_no_growing_queue(load, seed):
    arrived = np.cumsum(np.random.default_rng(seed).exponential(1.0, 900)) * 1e6
    assert trend_of(served(arrived, single_server(arrived, load * 1e6))) != "grows"


@given(st.floats(min_value=1.15, max_value=1.4), st.integers(min_value=0, max_value=20))
def test_an_overloaded_server_has_one(load, seed):
    arrived = np.cumsum(np.random.default_rng(seed).exponential(1.0, 900)) * 1e6
    assert trend_of(served(arrived, single_server(arrived, load * 1e6))) == "grows"


def test_a_hopeless_overload_is_growth_or_too_short_to_tell():
    arrived = np.arange(900) * 1e6
    assert trend_of(served(arrived, single_server(arrived, 5e6))) != "steady"


def test_the_filling_of_an_empty_system_is_no_growth():
    arrived = np.arange(3000) * 1e6
    assert trend_of(served(arrived, arrived + 40e6)) == "steady"
    assert trend_of(served(arrived, arrived + 1500e6)) == "short"


@pytest.mark.parametrize("arrived", [np.zeros(50), np.zeros(1), np.arange(2) * 1e6, np.zeros(0)])
def test_requests_that_come_at_once_or_are_too_few_tell_no_trend(arrived):
    assert trend_of(served(arrived, arrived + 1.0)) == "short"


@pytest.mark.parametrize("seed", range(40))
def test_what_may_be_luck_is_too_short_until_requests_are_many(seed):
    arrived = np.cumsum(np.random.default_rng(seed).exponential(1.0, 6000)) * 1e6
    assert trend_of(served(arrived[:300], arrived[:300] + 40e6)) != "steady"
    assert trend_of(served(arrived, arrived + 40e6)) == "steady"


@pytest.mark.parametrize("seed", range(8))
def test_a_light_load_is_steady_however_few_its_requests_once_they_are_repeated(seed):
    arrived = np.cumsum(np.random.default_rng(seed).exponential(1.0, 600)) * 1e6
    assert trend_of(served(arrived, single_server(arrived, 0.5e6))) == "steady"
