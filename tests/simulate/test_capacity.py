import pytest

from srfa.errors import UsageError
from srfa.memory import kv_bytes_per_token, weight_bytes
from srfa.simulate.capacity import GPU_MEMORY_UTILIZATION, configuration_for, resolved_engine, server_for
from srfa.specs import EngineArgs
from tests.steps import catalog

LLAMA, MIXTRAL, DEEPSEEK = "meta-llama/Llama-3.1-8B", "mistralai/Mixtral-8x7B-v0.1", "deepseek-ai/DeepSeek-V3"


def server(model=LLAMA, gpu="h100-sxm-80gb", **engine):
    known = catalog()
    return server_for(known.resolve_model(model), known.resolve_gpu(gpu), EngineArgs(**engine))


# vllm/engine/arg_utils.py of vLLM 0.32.0, EngineArgs.get_batch_defaults, UsageContext.OPENAI_API_SERVER
@pytest.mark.parametrize(
    ("gpu", "seqs", "tokens"),
    [
        ("b200-sxm-180gb", 1024, 16_384),
        ("h100-sxm-80gb", 1024, 8192),
        ("h200-sxm-141gb", 1024, 8192),
        ("a100-sxm-80gb", 256, 2048),
        ("l40s-48gb", 256, 2048),
    ],
)
def test_limits_are_those_vllm_chooses_for_the_gpu(gpu, seqs, tokens):
    found = server(gpu=gpu, max_model_len=8192)
    assert (found.max_num_seqs, found.max_num_batched_tokens) == (seqs, tokens)


def test_arguments_win_over_defaults():
    found = server(max_num_seqs=64, max_num_batched_tokens=512, block_size=32, enable_prefix_caching=False)
    assert (found.max_num_seqs, found.max_num_batched_tokens, found.block_size) == (64, 512, 32)
    assert not found.enable_prefix_caching


def test_without_chunks_a_step_takes_a_whole_prompt():
    assert server(enable_chunked_prefill=False, max_model_len=32_768).max_num_batched_tokens == 32_768


def test_a_small_token_budget_seats_no_more_requests_than_tokens():
    assert server(max_num_batched_tokens=128, max_model_len=4096).max_num_seqs == 128


def test_kv_blocks_fill_what_memory_leaves_beside_the_weights():
    known, found = catalog(), server(max_model_len=8192)
    model, gpu = known.resolve_model(LLAMA), known.resolve_gpu("h100-sxm-80gb")
    block_bytes = 16 * kv_bytes_per_token(model, 1)
    total = found.num_gpu_blocks * block_bytes + weight_bytes(model, EngineArgs())
    share = total / (gpu.datasheet.memory_gib * 2**30)
    assert GPU_MEMORY_UTILIZATION - 0.05 < share < GPU_MEMORY_UTILIZATION


def test_two_tensor_ranks_hold_more_than_twice_the_blocks():
    assert server(tensor_parallel_size=2).num_gpu_blocks > 2 * server().num_gpu_blocks


def test_kv_cache_memory_and_an_override_go_before_the_estimate():
    block_bytes = 16 * kv_bytes_per_token(catalog().resolve_model(LLAMA), 1)
    gib = 20 * 2**30
    assert server(kv_cache_memory_bytes=gib).num_gpu_blocks == int(gib // block_bytes)
    assert server(num_gpu_blocks_override=777).num_gpu_blocks == 777


def test_weights_on_the_host_make_room_and_are_read_in_every_step():
    offloading = server(cpu_offload_gb=4)
    assert offloading.cpu_offload_bytes == 4 * 2**30
    assert offloading.num_gpu_blocks > server().num_gpu_blocks


def test_an_offload_buffer_is_counted_over_the_tensor_ranks():
    model = catalog().resolve_model(LLAMA)
    for ranks in (1, 2):
        found = server(tensor_parallel_size=ranks, kv_offloading_size=8.0)
        assert found.kv_offload_blocks == int(8 * 2**30 // (16 * ranks * kv_bytes_per_token(model, ranks)))


def test_scheduling_is_asynchronous_on_a_gpu_and_not_on_a_cpu():
    assert server().async_scheduling
    tiny = server("srfa/tiny-dense", "cpu-1t", max_model_len=512, kv_cache_memory_bytes=2**28, dtype="float32")
    assert not tiny.async_scheduling
    assert tiny.block_size == 128


def test_data_parallel_ranks_wait_for_each_other_where_the_model_has_experts():
    assert server(MIXTRAL, tensor_parallel_size=2, data_parallel_size=2).lockstep
    assert not server(data_parallel_size=2).lockstep


def test_compressed_keys_have_larger_blocks():
    assert server(DEEPSEEK, "h200-sxm-141gb", tensor_parallel_size=8, max_model_len=8192).block_size == 64


def test_a_server_that_would_not_start_is_refused_with_a_remedy():
    with pytest.raises(UsageError, match="raise tensor_parallel_size"):
        server("meta-llama/Llama-3.1-70B")


def test_the_configuration_has_the_dtype_that_is_computed_in():
    known = catalog()
    found = configuration_for(known.resolve_model(LLAMA), known.resolve_gpu("h100-sxm-80gb"), EngineArgs())
    assert (found.dtype, found.expert_parallel_size, found.gpu) == ("bfloat16", 1, "h100-sxm-80gb")


def test_what_was_given_stays_when_defaults_are_filled_in():
    known = catalog()
    given = EngineArgs(max_num_seqs=8, tensor_parallel_size=2)
    found = resolved_engine(known.resolve_model(LLAMA), known.resolve_gpu("a100-sxm-80gb"), given)
    assert (found.max_num_seqs, found.tensor_parallel_size, found.max_num_batched_tokens) == (8, 2, 2048)
