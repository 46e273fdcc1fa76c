import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srfa.estimators.quantities import StepQuantities, architecture_imbalance
from tests.steps import catalog, observations, step

CATALOG = catalog()
MIXTRAL = {"model": "mistralai/Mixtral-8x7B-v0.1", "tensor_parallel_size": 4}


def quantities(*rows) -> StepQuantities:
    return StepQuantities.of(observations(rows), CATALOG)


def test_a_batch_is_counted_in_tokens_requests_and_lengths():
    row = step(prefill_new_tokens=[10, 4], prefill_context_tokens=[90, 0], decode_context_tokens=[50, 60])
    one = quantities(row)
    assert (one.tokens[0], one.batch[0], one.longest_prefill[0], one.longest_sequence[0]) == (16, 4, 100, 100)
    assert (one.decode_context[0], one.kv_tokens[0]) == (110, 10 + 4 + 90 + 110)


def test_limits_that_were_not_recorded_are_those_of_vllm_and_the_model():
    said = {"max_model_len": 4096, "max_num_batched_tokens": 512, "block_size": 32, "kv_usage_ratio": 0.5}
    one = quantities(step(**dict.fromkeys(said)), step(**said))
    assert one.max_model_len.tolist() == [131072, 4096]
    assert one.max_num_batched_tokens.tolist() == [8192, 512]
    assert one.block_tokens.tolist() == [16, 32]
    assert one.kv_usage.tolist() == [0.0, 0.5]


def test_the_expected_spread_of_tokens_is_that_of_drawn_routings():
    """2 of 8 experts a token; drawn independently of the formula by numpy."""
    rng, tokens = np.random.default_rng(0), 64
    draws = rng.random((4_000, tokens, 8)).argsort(axis=2)[:, :, :2]
    counts = np.stack([(draws == expert).sum(axis=(1, 2)) for expert in range(8)], axis=1)
    observed = counts.std() / counts.mean()
    expected = quantities(step(**MIXTRAL, decode_context_tokens=[8] * tokens)).expert_spread[0]
    assert expected == pytest.approx(observed, rel=0.02)


@given(st.integers(1, 600))
def test_the_activated_share_grows_from_top_k_to_all(tokens):
    one = quantities(*(step(**MIXTRAL, decode_context_tokens=[8] * count) for count in (1, tokens, tokens + 1)))
    assert one.activated_share[0] == pytest.approx(0.25)
    assert 0.25 - 1e-12 <= one.activated_share[1] <= one.activated_share[2] <= 1.0


def test_routing_of_a_dense_model_is_nothing():
    one = quantities(step())
    assert (one.expert_spread[0], one.activated_share[0], one.expert_us[0]) == (0.0, 0.0, 0.0)
    assert one.fact(architecture_imbalance)[0] == 0.0


def test_experts_are_part_of_the_operations_of_their_tokens():
    one = quantities(step(**MIXTRAL, prefill_new_tokens=[512], prefill_context_tokens=[0], decode_context_tokens=[]))
    by_hand = 512 * 2 * 2 * 3 * 4096 * (14336 / 4) * 32 / (989e6 * 0.65)
    assert one.expert_us[0] == pytest.approx(by_hand)
    assert one.expert_us[0] < one.prefill_us[0]


def test_the_architectures_imbalance_by_hand():
    assert quantities(step(**MIXTRAL)).fact(architecture_imbalance)[0] == pytest.approx(np.sqrt((8 - 2) / (8 * 2)))


def test_communication_is_a_latency_a_layer_and_free_on_one_gpu():
    one = quantities(
        step(expert_parallel_size=1), step(tensor_parallel_size=2), step(**MIXTRAL, expert_parallel_size=4)
    )
    assert one.tp_us.tolist() == [0.0, 320.0, 320.0]
    assert one.ep_us.tolist() == [0.0, 0.0, 1600.0]
