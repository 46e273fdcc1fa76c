import numpy as np
import pytest

from srfa.errors import UsageError
from srfa.simulate.workload import UNSHARED, arrival_times_us, shared_blocks, workload_load
from srfa.specs import Workload

# The reference figures come from vLLM 0.32.0 itself: get_sampling_params(np.random.default_rng(7), 5, 0.3, 100, 20, t)
# with a tokenizer t without special tokens, get_request(five requests, 4.0, burstiness) after np.random.seed(7) with
# asyncio.sleep recorded, and random.seed(7); random.shuffle([0, 0, 0, 1, 1, 1, 2, 2, 2]).
BENCH_PROMPTS, BENCH_OUTPUTS = [127, 108, 111, 124, 105], [24, 24, 16, 14, 17]
BENCH_DELAYS_S = {
    1.0: [0.013644698204544599, 0.2738561424821274, 0.3730379253630079, 0.5939982521222891, 1.25],
    0.5: [0.008325043160875246, 0.28311600144338456, 0.38613900756618985, 1.1312955390150545, 1.25],
    float("inf"): [0.25, 0.5, 0.75, 1.0, 1.25],
}
BENCH_ORDER = [0, 2, 2, 1, 0, 2, 1, 0, 1]


def random_words(**changes):
    return Workload(
        **{"name": "w", "random_input_len": 100, "random_output_len": 20, "random_range_ratio": 0.3, "num_prompts": 5}
        | changes
    )


def test_random_lengths_are_those_of_the_bench():
    load = workload_load(random_words(), seed=7)
    assert load.prompt_tokens.tolist() == BENCH_PROMPTS
    assert load.output_tokens.tolist() == BENCH_OUTPUTS


@pytest.mark.parametrize("burstiness", BENCH_DELAYS_S)
def test_arrivals_are_those_of_the_bench(burstiness):
    arrivals = arrival_times_us(5, 4.0, burstiness=burstiness, seed=7)
    np.testing.assert_allclose(arrivals, np.array(BENCH_DELAYS_S[burstiness]) * 1e6, rtol=1e-14)


def test_prefixes_go_in_the_order_of_the_bench():
    words = Workload(
        name="w",
        dataset_name="prefix_repetition",
        prefix_repetition_num_prefixes=3,
        prefix_repetition_prefix_len=16,
        num_prompts=9,
    )
    first_blocks = workload_load(words, seed=7).block_hashes.values
    _, order = np.unique(first_blocks, return_inverse=True)
    assert order.tolist() == BENCH_ORDER


def test_every_prefix_has_equally_many_prompts_rounded_down():
    words = Workload(name="w", dataset_name="prefix_repetition", prefix_repetition_num_prefixes=4, num_prompts=11)
    load = workload_load(words, seed=0)
    assert load.n_requests == 8
    assert set(load.prompt_tokens) == {512}


def test_an_infinite_rate_sends_all_at_once():
    assert not workload_load(random_words(), seed=0).arrival_us.any()


def test_the_last_request_goes_when_the_rate_says():
    assert arrival_times_us(300, 6.0, burstiness=0.7, seed=3)[-1] == pytest.approx(50e6)


def test_burstiness_is_the_inverse_square_of_the_variation_of_delays():
    for burstiness in (0.25, 1.0, 4.0):
        delays = np.diff(arrival_times_us(20_000, 1.0, burstiness=burstiness, seed=1))
        assert (delays.std() / delays.mean()) ** -2 == pytest.approx(burstiness, rel=0.1)


def test_a_random_prefix_is_shared_by_all_as_far_as_blocks_are_full():
    load = workload_load(random_words(random_prefix_len=50), seed=7, block_size=16)
    assert load.prompt_tokens.tolist() == [50 + tokens for tokens in BENCH_PROMPTS]
    assert np.diff(load.block_hashes.offsets).tolist() == [3] * 5
    assert len(set(load.block_hashes.values.tolist())) == 3


def test_larger_blocks_share_fewer_of_them():
    load = workload_load(random_words(random_prefix_len=50), seed=7, block_size=64)
    assert load.block_hashes.values.size == 0


def test_names_differ_between_groups_and_along_a_prefix():
    names = shared_blocks(np.array([0, 1, UNSHARED, 0]), np.array([48, 32, 64, 16]), 16)
    lists = [names.values[a:b].tolist() for a, b in zip(names.offsets[:-1], names.offsets[1:], strict=True)]
    assert lists[2] == []
    assert lists[3] == lists[0][:1]
    assert len(set(lists[0]) | set(lists[1])) == 5


def test_max_concurrency_goes_to_the_client():
    assert workload_load(random_words(max_concurrency=3), seed=0).max_concurrency == 3


def test_equal_seeds_give_equal_loads_and_others_do_not():
    words = random_words(request_rate=3.0, num_prompts=50)
    first, second, other = (workload_load(words, seed=seed) for seed in (1, 1, 2))
    assert first.arrival_us.tobytes() == second.arrival_us.tobytes()
    assert first.prompt_tokens.tobytes() == second.prompt_tokens.tobytes()
    assert first.arrival_us.tobytes() != other.arrival_us.tobytes()


def test_conversations_are_refused_with_what_to_do():
    with pytest.raises(UsageError, match=r"sharegpt takes its lengths from a file.*--requests"):
        workload_load(Workload(name="chat", dataset_name="sharegpt", dataset_path="f.json"), seed=0)


def test_fewer_prompts_than_prefixes_are_refused():
    words = Workload(name="w", dataset_name="prefix_repetition", num_prompts=4)
    with pytest.raises(UsageError, match="num_prompts=4 is less than prefix_repetition_num_prefixes=10"):
        workload_load(words, seed=0)


def test_prompts_of_no_tokens_are_refused():
    with pytest.raises(UsageError, match=r"random_input_len=1 .* may draw a prompt of no tokens"):
        workload_load(random_words(random_input_len=1), seed=0)
