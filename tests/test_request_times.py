import numpy as np
import pyarrow as pa
import pytest

from srfa.request_times import compare_times, measured_means, measured_times, pair_of, served_times
from srfa.schema import REQUESTS
from srfa.simulate.served import Served, StepLog


def requests(*rows):
    known = {"job_id": "job", "t_arrived_ns": 0, "t_first_token_ns": 2_000_000, "t_finished_ns": 5_000_000}
    return pa.Table.from_pylist([{**known, "output_tokens": 4, **row} for row in rows], schema=REQUESTS)


def served(**changes):
    """Two requests: first tokens at 10 and 20, three more and none."""
    arrays = {
        "t_arrived_us": [0.0, 5.0],
        "t_first_token_us": [10.0, 20.0],
        "t_finished_us": [40.0, 20.0],
        "t_departed_us": [40.0 + 2.0 + 4 * 0.5, 20.0 + 2.5],
        "first_outside_us": [2.5, 2.5],
        "prompt_tokens": [8, 4],
        "output_tokens": [4, 1],
    } | changes
    whole = ("prompt_tokens", "output_tokens")
    nothing = dict.fromkeys(
        ("cached_tokens", "num_preemptions", "running_at_queue", "waiting_at_queue"), np.zeros(2, dtype=np.int64)
    )
    times = {name: np.array(values, dtype=np.int64 if name in whole else float) for name, values in arrays.items()}
    steps = times.pop("steps", None)
    times["t_queued_us"] = times["t_first_scheduled_us"] = times["t_arrived_us"]
    return Served(**times, **nothing, kv_usage_at_queue=np.zeros(2), n_steps=0, steps=steps)


def step_log(steps):
    """Steps of (time of output, [(request, new, computed), ...])."""
    entries = [entry for _, each in steps for entry in each]
    request, new, computed = (np.array(column, dtype=np.int64) for column in zip(*entries, strict=True))
    zeros = np.zeros(len(steps), dtype=np.int64)
    return StepLog(
        t_start_us=zeros.astype(float),
        t_output_us=np.array([t for t, _ in steps], dtype=float),
        step_time_us=zeros.astype(float),
        totals=zeros,
        running_depth=zeros,
        waiting_depth=zeros,
        num_preempted=zeros,
        num_finished=zeros,
        kv_blocks_free=zeros,
        offsets=np.cumsum([0, *(len(each) for _, each in steps)]),
        request=request,
        new_tokens=new,
        computed_tokens=computed,
    )


def gaps(steps, **changes):
    times = served(**changes)
    log = step_log(steps)
    kept = {name: getattr(times, name) for name in Served.__dataclass_fields__}
    return served_times(Served(**kept | {"steps": log}), "client").itl_us


def test_the_clients_view_is_taken_where_there_is_one_and_the_engines_where_not():
    engine = measured_times(requests({}, {}))
    assert (engine.view, engine.ttft_us.tolist(), engine.e2e_us.tolist()) == ("engine", [2_000.0] * 2, [5_000.0] * 2)
    client = measured_times(requests({"ttft_us": 2_300.0, "e2e_us": 5_600.0, "itl_us": [1.0, 2.0]}, {}))
    assert (client.view, client.ttft_us[0], client.e2e_us[0]) == ("client", 2_300.0, 5_600.0)
    assert np.isnan(client.ttft_us[1])
    assert client.itl_us.tolist() == [1.0, 2.0]


def test_tpot_is_the_mean_time_of_a_token_after_the_first_and_throughput_tokens_over_the_span():
    times = measured_times(requests({}, {"output_tokens": 1, "t_finished_ns": 8_000_000}))
    assert times.tpot_us[0] == pytest.approx(1_000.0)
    assert np.isnan(times.tpot_us[1])
    assert times.throughput_tokens_per_s == pytest.approx(5 / 0.008)


def test_a_simulation_is_seen_as_the_measurement_was():
    client, engine = (served_times(served(), view) for view in ("client", "engine"))
    assert client.ttft_us.tolist() == [12.5, 17.5]
    assert client.e2e_us.tolist() == [44.0, 17.5]
    assert engine.ttft_us.tolist() == [10.0, 15.0]
    assert engine.e2e_us.tolist() == [40.0, 15.0]


def test_gaps_between_tokens_are_those_of_the_steps_that_made_them_and_the_token_outside():
    steps = [(5, [(0, 4, 0)]), (10, [(0, 4, 4)]), (20, [(0, 1, 8), (1, 4, 0)]), (33, [(0, 1, 9)]), (40, [(0, 1, 10)])]
    assert gaps(steps).tolist() == [10.5, 13.5, 7.5]


def test_a_recomputation_after_a_preemption_makes_no_token_but_its_last_step():
    steps = [(10, [(0, 8, 0)]), (12, [(0, 1, 8)]), (20, [(0, 6, 0)]), (30, [(0, 4, 6)]), (40, [(0, 1, 10)])]
    assert gaps(steps).tolist() == [2.5, 18.5, 10.5]


def test_equal_times_have_no_error_and_twice_the_time_is_a_hundred_percent():
    rng = np.random.default_rng(0)
    rows = [
        {"ttft_us": float(first), "e2e_us": float(first + rest), "itl_us": [float(rest) / 3] * 3}
        for first, rest in rng.uniform(1_000, 9_000, (20, 2))
    ]
    twice = [{name: np.multiply(2.0, value).tolist() for name, value in row.items()} for row in rows]
    for given, error in ((rows, 0.0), (twice, 100.0)):
        found = compare_times(measured_times(requests(*rows)), measured_times(requests(*given)))
        for metric in ("ttft", "tpot", "itl", "e2e"):
            assert found[metric].mean.error_pct == pytest.approx(error)
            assert found[metric].p90.error_pct == pytest.approx(error)
        assert found["e2e"].median_ape_pct == pytest.approx(error)
        assert found["throughput"].mean.error_pct == 0.0


@pytest.mark.parametrize(("n", "tails"), [(9, []), (10, ["p90"]), (99, ["p90"]), (100, ["p90", "p99"])])
def test_a_percentile_needs_the_requests_that_carry_it(n, tails):
    times = measured_times(requests(*[{"ttft_us": 1.0, "e2e_us": 4.0, "itl_us": [1.0]}] * n))
    found = compare_times(times, times)["e2e"]
    assert found.p50 is not None
    assert [name for name in ("p90", "p99") if getattr(found, name)] == tails


def test_requests_are_matched_by_order_so_that_exchanged_ones_show_request_by_request_only():
    one, other = ({"ttft_us": t, "e2e_us": 10 * t, "itl_us": [t]} for t in (100.0, 400.0))
    found = compare_times(measured_times(requests(one, other)), measured_times(requests(other, one)))["e2e"]
    assert found.mean.error_pct == 0.0
    assert found.median_ape_pct == pytest.approx((300 + 75) / 2)


def test_requests_without_the_clients_view_are_left_out_of_both_sides():
    seen, unseen = {"ttft_us": 100.0, "e2e_us": 400.0, "itl_us": [100.0] * 3}, {}
    other = {"ttft_us": 9e9, "e2e_us": 9.1e9, "itl_us": [100.0] * 3}
    found = compare_times(measured_times(requests(seen, unseen)), measured_times(requests(seen, other)))
    assert (found["e2e"].n, found["e2e"].mean.error_pct) == (1, 0.0)


def test_a_metric_that_was_not_measured_is_left_out():
    one_token = {"output_tokens": 1}
    times = measured_times(requests(one_token, one_token))
    assert set(compare_times(times, times)) == {"ttft", "e2e", "throughput"}
    assert set(measured_means(times)) == {"ttft", "e2e", "throughput"}


@pytest.mark.parametrize(("measured", "predicted"), [(0.0, 1.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_nothing_is_related_to_nothing(measured, predicted):
    assert pair_of(measured, predicted) is None
