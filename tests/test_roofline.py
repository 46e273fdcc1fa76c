import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srfa.roofline import floor_us, places, step_work
from tests.steps import catalog, observations, random_steps, step

CATALOG = catalog()


def work_of(*rows):
    seen = observations(rows)
    return step_work(seen, places(seen, CATALOG))


def test_a_decode_step_of_llama_8b_reads_its_weights_by_hand():
    """8.03 billion parameters less the embedding table of 128256 x 4096, two bytes each."""
    assert work_of(step()).weight_bytes[0] == pytest.approx((8.03e9 - 128256 * 4096) * 2, rel=0.002)


def test_prefill_operations_are_twice_the_parameters_a_token_plus_attention():
    tokens, layers, hidden = 1000, 32, 4096
    work = work_of(step(prefill_new_tokens=[tokens], prefill_context_tokens=[0], decode_context_tokens=[]))
    body = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    expected = 2 * body * tokens + 2 * 128256 * hidden + layers * 4 * hidden * tokens**2 / 2
    assert work.prefill_flops[0] == pytest.approx(expected, rel=1e-12)


def test_cached_context_costs_attention_and_kv_reads_only():
    fresh = step(prefill_new_tokens=[64], prefill_context_tokens=[0], decode_context_tokens=[])
    cached = step(prefill_new_tokens=[64], prefill_context_tokens=[512], decode_context_tokens=[])
    work = work_of(fresh, cached)
    assert work.prefill_flops[1] - work.prefill_flops[0] == pytest.approx(32 * 4 * 4096 * 64 * 512)
    assert work.prefill_kv_bytes.tolist() == [0.0, 512 * 2 * 8 * 128 * 2 * 32]


def test_one_token_activates_top_k_experts_and_many_activate_all():
    one, many = (
        work_of(step(model="mistralai/Mixtral-8x7B-v0.1", decode_context_tokens=[8] * tokens)) for tokens in (1, 512)
    )
    assert one.weight_bytes[0] == pytest.approx(one.least_weight_bytes[0])
    all_experts = 8 * 3 * 4096 * 14336 * 32 * 2
    assert many.weight_bytes[0] - one.least_weight_bytes[0] == pytest.approx(all_experts * 6 / 8, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_more_tokens_or_longer_context_never_lower_the_floor(seed):
    rows = list(random_steps(1, seed=seed))
    longer = rows[0] | {"decode_context_tokens": [entry + 100 for entry in rows[0]["decode_context_tokens"]]}
    larger = rows[0] | {
        "decode_context_tokens": [*rows[0]["decode_context_tokens"], 1],
        "num_decode_reqs": rows[0]["num_decode_reqs"] + 1,
        "decode_tokens": rows[0]["decode_tokens"] + 1,
    }
    floor = floor_us(observations([rows[0], longer, larger]), CATALOG)
    assert (floor[1:] >= floor[0]).all()


def test_a_faster_gpu_has_a_lower_floor_by_its_bandwidth():
    floor = floor_us(observations([step(gpu="a100-sxm-80gb"), step()]), CATALOG)
    assert floor[0] / floor[1] == pytest.approx(3.35 / 2.039, rel=1e-6)


def test_the_floor_of_mixed_configurations_equals_each_alone():
    rows = list(random_steps(12))
    together = floor_us(observations(rows), CATALOG)
    alone = np.concatenate([floor_us(observations([row]), CATALOG) for row in rows])
    assert together == pytest.approx(alone)
