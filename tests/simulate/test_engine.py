"""The simulated server against closed forms, queueing theory and what must be conserved."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srfa.errors import CoefficientsError, InputError
from srfa.observations import from_table
from srfa.operator_kernels import StepTotals
from srfa.operators import step_totals
from srfa.simulate.clock import linear_clock
from srfa.simulate.engine import simulate
from srfa.simulate.load import BlockHashes, RequestLoad
from srfa.simulate.outside import Outside
from srfa.simulate.server import Server
from srfa.simulate.times import OUTSIDE

SERVER = Server(max_num_batched_tokens=64, max_num_seqs=8, max_model_len=512, block_size=16, num_gpu_blocks=200)
STEP_US = 100.0
CLOCK = linear_clock(STEP_US)


def load_of(*requests, arrival_us=None, names=None, **changes) -> RequestLoad:
    """Requests as ``(prompt, output)``, all at once unless told otherwise; ``names`` are those of their blocks."""
    prompt, output = (np.array(column, dtype=np.int64) for column in zip(*requests, strict=True))
    load = RequestLoad.of(np.array(arrival_us or [0.0] * len(requests)), prompt, output)
    if names is not None:
        offsets = np.cumsum([0, *(len(one) for one in names)])
        load = replace(load, block_hashes=BlockHashes(np.array(list(chain(*names)), dtype=np.int64), offsets))
    return replace(load, **changes)


def lists(served, step):
    """``(request, new, computed)`` of a step."""
    log = served.steps
    part = slice(log.offsets[step], log.offsets[step + 1])
    return list(
        zip(*(column[part].tolist() for column in (log.request, log.new_tokens, log.computed_tokens)), strict=True)
    )


@pytest.mark.parametrize("is_async", [False, True])
def test_one_request_takes_its_chunks_and_its_tokens(is_async):
    """150 prompt tokens are three chunks of 64; the last chunk's step gives the first of 10 tokens."""
    served = simulate(load_of((150, 10)), replace(SERVER, async_scheduling=is_async), CLOCK, record_steps=True)
    assert served.t_first_token_us.tolist() == [3 * STEP_US]
    assert served.t_finished_us.tolist() == [12 * STEP_US]
    assert [lists(served, step)[0][1] for step in range(served.n_steps)] == [64, 64, 22, *[1] * 9]
    assert served.tpot_us.tolist() == [STEP_US]


def test_times_outside_the_steps_are_the_clients():
    outside = Outside(np.array([7.0]), np.array([5.0]), np.array([2.0]), wall_ratio=1.5)
    served = simulate(load_of((10, 4)), SERVER, CLOCK, outside)
    assert served.t_queued_us.tolist() == served.t_first_scheduled_us.tolist() == [7.0]
    assert served.ttft_us.tolist() == [7.0 + 1.5 * STEP_US + 5.0 + 2.0]
    assert served.e2e_us.tolist() == [7.0 + 4 * 1.5 * STEP_US + 5.0 + 4 * 2.0]


def test_time_between_steps_is_no_part_of_them():
    outside = replace(Outside.none(load_of((10, 4))), between_steps_us=30.0)
    served = simulate(load_of((10, 4)), SERVER, CLOCK, outside, record_steps=True)
    assert served.t_finished_us.tolist() == [4 * STEP_US + 3 * 30.0]
    assert np.all(served.steps.step_time_us == STEP_US)


def test_the_time_between_steps_grows_with_the_requests_that_run_and_not_with_the_seats():
    """Three requests of 2, 3 and 4 tokens, 8 seats: 3, 2 and 1 run after the first three steps."""
    load = load_of((10, 2), (10, 3), (10, 4))
    outside = replace(Outside.none(load), between_steps_us=30.0, between_steps_request_us=4.0)
    served = simulate(load, SERVER, CLOCK, outside, record_steps=True)
    gaps_us = served.steps.t_start_us[1:] - served.steps.t_output_us[:-1]
    assert gaps_us.tolist() == [30.0 + 3 * 4.0, 30.0 + 2 * 4.0, 30.0 + 4.0]


@pytest.mark.parametrize(("lockstep", "running"), [(True, 2), (False, 1)])
def test_ranks_in_lockstep_wait_for_the_fullest_and_others_for_themselves(lockstep, running):
    """Three requests on two ranks: two on the first, which end with their second token, one on the other."""
    load = load_of((10, 2), (10, 3), (10, 2))
    outside = replace(Outside.none(load), between_steps_request_us=4.0)
    server = replace(SERVER, data_parallel_size=2, lockstep=lockstep)
    served = simulate(load, server, CLOCK, outside)
    assert served.t_finished_us.tolist()[0] == 2 * STEP_US + 2 * 4.0
    assert served.t_finished_us.tolist()[1] == 3 * STEP_US + (running + 1) * 4.0


@pytest.mark.parametrize("step_us", [np.nan, np.inf, 0.0, -5.0])
def test_a_clock_that_knows_no_time_of_a_step_is_refused_with_its_name_and_the_step(step_us):
    answers = iter([100.0, step_us])
    asked = CLOCK.kernel._replace(kind=OUTSIDE)
    clock = replace(CLOCK, estimator="planted", kernel=asked, ask=lambda _step: next(answers))
    with pytest.raises(CoefficientsError, match=r"planted: step 1 \(0 prefill tokens of 0 requests, 2 decode tokens"):
        simulate(load_of((10, 4), (10, 4)), SERVER, clock)


@pytest.mark.parametrize("name", ["between_steps_us", "between_steps_request_us", "wall_ratio"])
@pytest.mark.parametrize("value", [-1.0, np.inf, np.nan])
def test_impossible_times_outside_the_steps_are_refused_by_name(name, value):
    load = load_of((10, 4))
    with pytest.raises(InputError, match=f"outside: {name} is {value}"):
        simulate(load, SERVER, CLOCK, replace(Outside.none(load), **{name: value}))


def test_waiting_in_a_queue_of_one_server_is_that_of_m_d_1():
    """Mean wait of M/D/1: ``rho d / (2 (1 - rho))``; a request that finds the server idle does not wait at all."""
    rng, rho, count = np.random.default_rng(3), 0.7, 400_000
    arrival_us = np.cumsum(rng.exponential(STEP_US / rho, count))
    load = RequestLoad.of(arrival_us, np.ones(count, dtype=np.int64), np.ones(count, dtype=np.int64))
    served = simulate(load, replace(SERVER, max_num_seqs=1), CLOCK)
    wait_us = (served.t_first_scheduled_us - served.t_queued_us).mean()
    assert wait_us == pytest.approx(rho * STEP_US / (2.0 * (1.0 - rho)), rel=0.02)


def test_equal_prefixes_are_computed_once_but_for_the_last_token():
    names = [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 9, 4]]
    served = simulate(load_of((64, 1), (64, 1), (64, 1), arrival_us=[0.0, 500.0, 900.0], names=names), SERVER, CLOCK)
    assert served.cached_tokens.tolist() == [0, 48, 32]


def test_without_prefix_caching_nothing_is_cached():
    load = load_of((64, 1), (64, 1), arrival_us=[0.0, 500.0], names=[[1, 2, 3, 4]] * 2)
    assert simulate(load, replace(SERVER, enable_prefix_caching=False), CLOCK).cached_tokens.tolist() == [0, 0]


def test_the_block_used_longest_ago_is_evicted_first():
    """Three usable blocks: the third prompt takes the tail of the first's, so only its head is found again."""
    names = [[1, 2], [5], [1, 2]]
    load = load_of((32, 1), (17, 1), (33, 1), arrival_us=[0.0, 500.0, 900.0], names=names)
    assert simulate(load, replace(SERVER, num_gpu_blocks=4), CLOCK).cached_tokens.tolist() == [0, 0, 16]


def test_host_memory_gives_back_what_the_cache_has_lost():
    names = [[1, 2], [5, 6, 7], [1, 2]]
    load = load_of((33, 1), (48, 1), (33, 1), arrival_us=[0.0, 500.0, 900.0], names=names)
    small = replace(SERVER, num_gpu_blocks=4)
    clock = replace(CLOCK, kv_token_bytes=10.0)
    assert simulate(load, small, clock).cached_tokens.tolist() == [0, 0, 0]
    served = simulate(load, replace(small, kv_offload_blocks=8), clock, record_steps=True)
    assert served.cached_tokens.tolist() == [0, 0, 32]
    assert served.steps.totals["offloaded_bytes"].tolist() == [0.0, 0.0, 2 * 16 * 10.0]


def test_offloaded_weights_are_fetched_in_every_step():
    served = simulate(load_of((10, 3)), replace(SERVER, cpu_offload_bytes=1e9), CLOCK, record_steps=True)
    assert served.steps.totals["offloaded_bytes"].tolist() == [1e9] * 3


def test_without_free_blocks_the_last_request_makes_way_and_computes_again():
    served = simulate(load_of((30, 20), (30, 20)), replace(SERVER, num_gpu_blocks=6), CLOCK, record_steps=True)
    assert served.num_preemptions.tolist() == [0, 1]
    assert served.steps.num_preempted.sum() == 1
    assert served.t_finished_us[0] == 20 * STEP_US


def test_priority_goes_first_and_makes_way_last():
    load = load_of((30, 20), (30, 20), priority=np.array([1, 0]))
    server = replace(SERVER, num_gpu_blocks=6, scheduling_policy="priority")
    served = simulate(load, server, CLOCK, record_steps=True)
    assert [request for request, _, _ in lists(served, 0)] == [1, 0]
    assert served.num_preemptions.tolist() == [1, 0]


def test_a_long_prompt_is_held_back_only_beside_others():
    server = replace(SERVER, long_prefill_token_threshold=16)
    alone = simulate(load_of((60, 1)), server, CLOCK)
    beside = simulate(load_of((60, 1), (4, 1)), server, CLOCK, record_steps=True)
    assert alone.n_steps == 1
    assert lists(beside, 0) == [(0, 16, 0), (1, 4, 0)]


def test_without_chunks_a_prompt_waits_until_it_fits_the_budget():
    server = replace(SERVER, enable_chunked_prefill=False, max_num_batched_tokens=512)
    served = simulate(load_of((300, 1), (300, 1)), server, CLOCK, record_steps=True)
    assert [lists(served, step) for step in range(2)] == [[(0, 300, 0)], [(1, 300, 0)]]


def test_a_client_without_a_seat_sends_later():
    served = simulate(load_of((10, 4), (10, 4), (10, 4), max_concurrency=2), SERVER, CLOCK)
    assert served.t_arrived_us.tolist() == [0.0, 0.0, 4 * STEP_US]


def test_ranks_share_requests_and_wait_for_each_other_only_in_lockstep():
    load = load_of((64, 1), (1, 1), (1, 1))
    clock = linear_clock(0.0, StepTotals(prefill_tokens=1.0, decode_tokens=1.0, is_measured=0.0))
    alone = simulate(load, replace(SERVER, data_parallel_size=2), clock)
    assert alone.t_finished_us.tolist() == [64.0, 1.0, 65.0]
    together = simulate(load, replace(SERVER, data_parallel_size=2, lockstep=True), clock)
    assert together.t_finished_us.tolist() == [64.0, 64.0, 65.0]


@st.composite
def situations(draw):
    """A load and a server that can serve it, small enough for everything to get scarce."""
    count = draw(st.integers(1, 12))
    whole = st.integers(0, 2)
    requests = [(draw(st.integers(1, 100)), draw(st.integers(1, 40))) for _ in range(count)]
    arrival_us = sorted(draw(st.floats(0.0, 3_000.0)) for _ in range(count))
    names = [[100 * draw(whole) + block for block in range(draw(st.integers(0, 5)))] for _ in range(count)]
    load = load_of(
        *requests,
        arrival_us=arrival_us,
        names=names,
        priority=np.array([draw(whole) for _ in range(count)]),
        max_concurrency=draw(st.sampled_from([None, 1, 3])),
    )
    server = Server(
        max_num_batched_tokens=draw(st.sampled_from([8, 37, 256])),
        max_num_seqs=draw(st.integers(1, 6)),
        max_model_len=256,
        block_size=draw(st.sampled_from([8, 16])),
        num_gpu_blocks=draw(st.integers(20, 40)),
        enable_prefix_caching=draw(st.booleans()),
        long_prefill_token_threshold=draw(st.sampled_from([0, 5])),
        scheduling_policy=draw(st.sampled_from(["fcfs", "priority"])),
        watermark=draw(st.sampled_from([0.0, 0.1])),
        scheduler_reserve_full_isl=draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
        data_parallel_size=draw(st.integers(1, 2)),
        lockstep=draw(st.booleans()),
        kv_offload_blocks=draw(st.sampled_from([0, 10])),
    )
    return load, server


@settings(deadline=None, max_examples=300)
@given(situations())
def test_nothing_is_lost_and_no_limit_is_passed(situation):
    load, server = situation
    served = simulate(load, server, CLOCK, record_steps=True)
    log = served.steps
    step = np.repeat(np.arange(log.n_steps), np.diff(log.offsets))
    assert log.num_finished.sum() == load.n_requests
    assert log.n_steps == served.n_steps
    order = [served.t_arrived_us, served.t_queued_us, served.t_first_scheduled_us, served.t_first_token_us]
    order += [served.t_finished_us, served.t_departed_us]
    assert all(np.all(after >= before) for before, after in pairwise(order))
    assert np.all(np.diff(log.t_output_us) >= 0)
    assert np.all(np.bincount(step, weights=log.new_tokens) <= server.max_num_batched_tokens)
    assert np.all(log.running_depth <= server.max_num_seqs)
    assert np.all(np.diff(log.offsets) <= log.running_depth)
    assert np.all((log.kv_blocks_free >= 0) & (log.kv_blocks_free <= server.num_gpu_blocks - 1))
    assert np.all(served.kv_usage_at_queue <= 1.0)
    computed = np.bincount(log.request, weights=log.new_tokens, minlength=load.n_requests)
    calm = served.num_preemptions == 0
    assert np.array_equal((computed + served.cached_tokens)[calm], (load.prompt_tokens + load.output_tokens - 1)[calm])


@settings(deadline=None, max_examples=50)
@given(situations())
def test_totals_are_bit_for_bit_those_of_the_steps_as_observations(situation):
    load, server = situation
    served = simulate(load, replace(server, kv_offload_blocks=0, cpu_offload_bytes=3e9), CLOCK, record_steps=True)
    log, rows = served.steps, []
    for step in range(log.n_steps):
        entries = [(new, computed, computed < load.prompt_tokens[row]) for row, new, computed in lists(served, step)]
        prefills = [(new, computed) for new, computed, is_prefill in entries if is_prefill]
        decodes = [(new, computed) for new, computed, is_prefill in entries if not is_prefill]
        rows.append(
            {
                "job_id": "job",
                "gpu": "h100-sxm-80gb",
                "model": "meta-llama/Llama-3.1-8B",
                "tensor_parallel_size": 1,
                "step_time_us": STEP_US,
                "num_prefill_reqs": len(prefills),
                "num_decode_reqs": len(decodes),
                "prefill_tokens": sum(new for new, _ in prefills),
                "decode_tokens": sum(new for new, _ in decodes),
                "prefill_new_tokens": [new for new, _ in prefills],
                "prefill_context_tokens": [computed for _, computed in prefills],
                "decode_context_tokens": [new + computed for new, computed in decodes],
                "cpu_offload_bytes": 3e9,
            }
        )
    assert step_totals(from_table(pa.Table.from_pylist(rows))).tobytes() == log.totals.tobytes()


@settings(deadline=None, max_examples=20)
@given(situations())
def test_equal_arguments_give_equal_bytes(situation):
    one, other = (simulate(*situation, CLOCK, record_steps=True) for _ in range(2))
    for field in fields(one):
        if field.name not in {"steps", "n_steps"}:
            assert getattr(one, field.name).tobytes() == getattr(other, field.name).tobytes()
    assert all(
        getattr(one.steps, f.name).tobytes() == getattr(other.steps, f.name).tobytes() for f in fields(one.steps)
    )


def test_a_long_record_is_whole():
    """More steps and entries than one piece of the log holds."""
    load, server = load_of(*[(10, 400)] * 200), replace(SERVER, num_gpu_blocks=400)
    served, again = simulate(load, server, CLOCK, record_steps=True), simulate(load, server, CLOCK)
    assert served.steps.n_steps == served.n_steps == again.n_steps > 2 * 4096
    assert served.steps.new_tokens.sum() == 200 * 409
    assert np.array_equal(served.t_finished_us, again.t_finished_us)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"max_model_len": 20}, r"request 1: 70 prompt and output tokens exceed max_model_len=20"),
        ({"num_gpu_blocks": 4}, r"request 1: 70 prompt and output tokens can never fit the KV cache of 48 tokens"),
        ({"num_gpu_blocks": 1}, "num_gpu_blocks is 1; expected at least 2"),
        ({"enable_chunked_prefill": False}, "max_num_batched_tokens=64 is below max_model_len=512"),
        ({"scheduling_policy": "lifo"}, "'lifo'"),
    ],
)
def test_what_can_never_be_served_is_refused_by_name(changes, text):
    with pytest.raises(InputError, match=text):
        simulate(load_of((10, 5), (60, 10)), replace(SERVER, **changes), CLOCK)


def test_delays_of_another_load_are_refused():
    with pytest.raises(InputError, match="alpha_us must hold 2"):
        simulate(load_of((10, 5), (60, 10)), SERVER, CLOCK, Outside.none(load_of((1, 1))))
