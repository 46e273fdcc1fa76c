import numpy as np
import pytest

from srfa.operator_kernels import LINEAR, StepTotals
from srfa.operators import KINDS, constants, kind_of, operator_times, step_totals
from srfa.roofline import floor_us, places
from srfa.step_kernel import step_us
from tests.steps import catalog, observations, random_steps, step

CATALOG = catalog()
BANDWIDTH = 3.35e6  # bytes a microsecond of an H100
PEAK = 989e6  # operations a microsecond


def times_of(*rows):
    seen = observations(rows)
    return operator_times(step_totals(seen), seen.configuration_index, constants(places(seen, CATALOG)))


def operator(times, name):
    at = times.operators.index(name)
    return times.memory_us[:, at], times.compute_us[:, at]


def linear(times, name):
    return times.linear[:, [term for term, _ in LINEAR].index(name)]


def test_every_operator_belongs_to_a_kind():
    times = times_of(*random_steps(4))
    assert {KINDS[kind_of(name)] for name in times.operators} == set(KINDS)


def test_a_product_by_hand():
    """Llama 3.1 8B's gate and up matrices: 28,672 x 4,096, 32 layers, one decoding token."""
    memory, compute = operator(times_of(step()), "gemm.gate_up")
    assert memory[0] == pytest.approx(32 * 2 * (28672 * 4096 + 28672 + 4096) / BANDWIDTH)
    waves = 28672 / 128 / 132
    assert compute[0] == pytest.approx(32 * 2 * 64 * 28672 * 4096 / PEAK * (np.ceil(waves) / waves) ** 0.75)


def test_the_head_multiplies_a_row_a_request_and_not_a_token():
    long, short = (
        step(prefill_new_tokens=[n], prefill_context_tokens=[0], decode_context_tokens=[]) for n in (4096, 16)
    )
    memory, _ = operator(times_of(long, short), "gemm.lm_head")
    assert memory[0] == memory[1]


def test_attention_by_hand():
    row = step(prefill_new_tokens=[100], prefill_context_tokens=[50], decode_context_tokens=[])
    memory, compute = operator(times_of(row, step(decode_context_tokens=[70, 30])), "prefill_attention")
    kv = 2 * 8 * 128 * 2 * 32
    assert memory.tolist() == pytest.approx([150 * kv / BANDWIDTH, 0])
    assert compute.tolist() == pytest.approx([100 * (50 + 50) * 4 * 32 * 128 * 32 / PEAK, 0])
    memory, compute = operator(times_of(step(decode_context_tokens=[70, 30])), "decode_attention")
    assert memory[0] == pytest.approx(100 * kv / BANDWIDTH)
    assert compute[0] == pytest.approx(100 * 4 * 32 * 128 * 32 / PEAK)


def test_a_decode_beside_a_prefill_fills_a_tile_of_queries():
    alone = step(decode_context_tokens=[1000])
    mixed = step(decode_context_tokens=[1000], prefill_new_tokens=[8], prefill_context_tokens=[0])
    memory, compute = operator(times_of(alone, mixed), "decode_attention")
    assert memory[1] == memory[0]
    assert compute[1] == pytest.approx(32 * compute[0])


def test_kv_heads_are_divided_down_to_one_a_gpu():
    times = [operator(times_of(step(tensor_parallel_size=tp)), "decode_attention")[0][0] for tp in (1, 8, 16)]
    assert times[0] == pytest.approx(8 * times[1])
    assert times[2] == times[1]


def test_latent_attention_reads_its_compressed_vector_on_every_gpu():
    rows = [step(model="deepseek-ai/DeepSeek-V3", tensor_parallel_size=tp) for tp in (1, 8)]
    memory, compute = operator(times_of(*rows), "decode_attention")
    assert memory[0] == memory[1] == pytest.approx(100 * 61 * (512 + 64) * 2 / BANDWIDTH)
    assert compute[0] == pytest.approx(8 * compute[1])


def test_communication_is_there_on_several_gpus_alone():
    one, four = (times_of(step(tensor_parallel_size=tp)) for tp in (1, 4))
    assert linear(one, "collective_latency")[0] == linear(one, "collective_traffic")[0] == 0.0
    assert linear(four, "collective_latency")[0] == pytest.approx(65 / 1830)
    assert linear(four, "collective_traffic")[0] == pytest.approx(65 * 2 * 3 / 4 * 4096 * 2 / 450e3)


def test_a_link_over_pcie_has_the_longer_latency():
    fast, slow = (times_of(step(gpu=gpu, tensor_parallel_size=2)) for gpu in ("h100-sxm-80gb", "l40s-48gb"))
    cycles = [linear(fast, "collective_latency")[0] * 1830, linear(slow, "collective_latency")[0] * 2520]
    assert cycles[1] == pytest.approx(2.5 * cycles[0])


def test_experts_over_data_parallel_ranks_exchange_tokens_and_an_all_to_all_sends_fewer():
    job = {"model": "deepseek-ai/DeepSeek-V3", "data_parallel_size": 16, "expert_parallel_size": 16}
    gather, deepep = (
        linear(times_of(step(**job, moe_kernel=kernel)), "collective_traffic")[0] for kernel in (None, "deepep")
    )
    assert gather == pytest.approx(58 * 2 * 15 * 7168 * 2 / 450e3)
    assert deepep == pytest.approx(gather * (8 * 15 / 16) / 15)


def test_a_dense_model_has_no_expert_terms():
    times = times_of(step())
    for name in ("experts", "experts_untuned"):
        assert operator(times, name)[0][0] == operator(times, name)[1][0] == 0.0
    assert linear(times, "moe_latency")[0] == linear(times, "moe_traffic")[0] == 0.0


def test_quantised_weights_and_kv_are_read_in_fewer_bytes():
    plain, fp8, int4, kv8 = (
        times_of(step(**changes))
        for changes in ({}, {"quantization": "fp8"}, {"quantization": "awq"}, {"kv_cache_dtype": "fp8"})
    )
    weights = [operator(times, "gemm.qkv")[0][0] for times in (plain, fp8, int4)]
    assert weights[1] == pytest.approx(weights[0] / 2, rel=0.01)
    assert weights[2] == pytest.approx(weights[0] * 4.25 / 16, rel=0.01)
    assert operator(kv8, "decode_attention")[0][0] == pytest.approx(operator(plain, "decode_attention")[0][0] / 2)
    assert operator(fp8, "gemm.qkv")[1][0] == pytest.approx(operator(plain, "gemm.qkv")[1][0] / 2)


def test_attention_and_head_multiply_in_16_bits_whatever_the_weights_are():
    prompt = {"prefill_new_tokens": [512], "prefill_context_tokens": [0]}
    plain, fp8 = (times_of(step(**prompt, **changes)) for changes in ({}, {"quantization": "fp8"}))
    for name in ("prefill_attention", "decode_attention", "gemm.lm_head"):
        assert operator(fp8, name)[1][0] == operator(plain, name)[1][0]


def test_weights_of_4_bits_are_widened_before_they_are_multiplied():
    plain, int4 = (times_of(step(**changes)) for changes in ({}, {"quantization": "awq"}))
    assert operator(int4, "gemm.qkv")[1][0] == operator(plain, "gemm.qkv")[1][0]


def test_experts_cut_over_data_parallel_ranks_exchange_tokens_too():
    job = {"model": "mistralai/Mixtral-8x7B-v0.1", "data_parallel_size": 4}
    traffic = linear(times_of(step(**job)), "collective_traffic")[0]
    assert traffic == pytest.approx(32 * 2 * 3 * 4096 * 2 / 450e3)


def test_offload_is_taken_from_the_knob_where_bytes_are_not_recorded():
    knob, recorded = times_of(step(cpu_offload_gb=2.0)), times_of(step(cpu_offload_bytes=2 * 2**30))
    assert linear(knob, "offload_traffic")[0] == linear(recorded, "offload_traffic")[0] > 0


def test_offloaded_weights_cross_pcie_in_every_step():
    times = times_of(step(cpu_offload_bytes=2**30))
    pcie = CATALOG.resolve_gpu("h100-sxm-80gb").datasheet.pcie_gbps
    assert linear(times, "offload_traffic")[0] == pytest.approx(2**30 / (pcie * 1e3))


def test_composed_steps_hold_no_time_of_the_host():
    composed, measured = (times_of(step(step_time_method=method)) for method in ("composed", "output"))
    for name in ("host_layer", "host_step", "host_request", "elementwise_traffic"):
        assert linear(composed, name)[0] == 0.0
        assert linear(measured, name)[0] > 0.0
    assert linear(composed, "kernel_latency")[0] < linear(measured, "kernel_latency")[0]


@pytest.mark.parametrize("seed", range(3))
def test_no_operator_sum_undercuts_the_speed_of_light(seed):
    seen = observations(random_steps(200, seed=seed))
    times = operator_times(step_totals(seen), seen.configuration_index, constants(places(seen, CATALOG)))
    hard = np.maximum(times.memory_us, times.compute_us).sum(axis=1)
    assert (hard >= 0.999 * floor_us(seen, CATALOG)).all()


def test_a_single_step_is_computed_by_the_same_functions_bit_for_bit():
    seen = observations(random_steps(50))
    of = constants(places(seen, CATALOG))
    totals = step_totals(seen)
    times = operator_times(totals, seen.configuration_index, of)
    kind = np.array([kind_of(name) for name in of.operators])
    factors = (np.full(5, 1.2), np.full(5, 1.4), np.full(len(LINEAR), 2.0))
    for row, at in enumerate(seen.configuration_index):
        scratch = (np.ones(len(kind)), np.ones(len(kind)), np.ones(len(LINEAR)))
        step_us(StepTotals(*totals[row]), (of.gemm_facts[at], of.facts[at], of.loads[at]), kind, factors, scratch)
        assert scratch[0].tolist() == times.memory_us[row].tolist()
        assert scratch[1].tolist() == times.compute_us[row].tolist()
        assert scratch[2].tolist() == times.linear[row].tolist()
