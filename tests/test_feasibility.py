from pathlib import Path

import pytest

from srfa.catalog import load_catalog
from srfa.feasibility import infeasible, infeasible_server, infeasible_workload
from srfa.hf_config import load_model_spec
from srfa.specs import BenchmarkJob, Calibration, Datasheet, EngineArgs, GpuSpec, Workload

ROOT = Path(__file__).parent.parent
CATALOG = load_catalog(ROOT / "hardware", ROOT / "models")
LLAMA_8B = CATALOG.resolve_model("llama-3.1-8b")
LLAMA_70B = CATALOG.resolve_model("llama-3.1-70b")
MIXTRAL = CATALOG.resolve_model("mixtral-8x7b-v0.1")
QWEN_MOE = CATALOG.resolve_model("qwen3-30b-a3b")
DEEPSEEK = CATALOG.resolve_model("deepseek-v3")
H100 = CATALOG.resolve_gpu("h100-sxm-80gb")
H200 = CATALOG.resolve_gpu("h200-sxm-141gb")
CPU = GpuSpec(
    name="cpu-x",
    vendor_name="a processor",
    datasheet=Datasheet(
        source="here",
        kind="cpu",
        bf16_tflops=1,
        memory_gib=4,
        memory_bandwidth_tbps=0.01,
        link_gbps_per_direction=1,
        pcie_gbps=1,
        sm_count=1,
        boost_clock_mhz=2000,
        gpus_per_node=2,
    ),
    calibration=Calibration(
        source="here",
        mfu_prefill=0.5,
        mfu_decode=0.5,
        bandwidth_efficiency=0.5,
        allreduce_latency_us=0,
        alltoall_latency_us=0,
        launch_overhead_us=0,
        scheduler_overhead_us=0,
    ),
)
TINY = load_model_spec(
    "org/tiny",
    {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
        "max_position_embeddings": 4096,
    },
)


def engine(**arguments):
    return EngineArgs(**{"max_model_len": 4096, **arguments})


def refusal(model, gpu, **arguments):
    reason = infeasible_server(engine(**arguments), model, gpu)
    assert reason is not None
    return reason


def test_a_plain_server_is_feasible():
    assert infeasible_server(engine(), LLAMA_8B, H100) is None
    assert infeasible_server(engine(max_model_len=2048, kv_cache_memory_bytes=2**28, block_size=32), TINY, CPU) is None


def test_tensor_parallel_must_divide_the_heads_and_the_message_lists_what_does():
    assert refusal(LLAMA_8B, H100, tensor_parallel_size=3) == (
        "tensor_parallel_size=3 does not divide num_attention_heads=32 of meta-llama/Llama-3.1-8B; use 1, 2, 4 or 8"
    )


def test_kv_heads_are_divided_or_copied_whole():
    model = LLAMA_8B.model_copy(update={"num_attention_heads": 24, "num_key_value_heads": 6})
    said = refusal(model, H100, tensor_parallel_size=4)
    assert "tensor_parallel_size=4 neither divides num_key_value_heads=6" in said
    assert said.endswith("use 1, 2, 3 or 6")
    assert infeasible_server(engine(tensor_parallel_size=8), QWEN_MOE, H100) is None


def test_multi_query_attention_runs_at_any_degree_that_divides_its_heads():
    model = LLAMA_8B.model_copy(update={"num_key_value_heads": 1})
    assert infeasible_server(engine(tensor_parallel_size=8), model, H100) is None


def test_tensor_parallel_must_divide_the_width_of_the_mlp():
    model = LLAMA_8B.model_copy(update={"intermediate_size": 14338})
    assert "does not divide intermediate_size=14338" in refusal(model, H100, tensor_parallel_size=4)


def test_expert_slices_must_divide_unless_whole_experts_move():
    model = QWEN_MOE.model_copy(update={"moe_intermediate_size": 772})
    assert "8 ranks do not divide moe_intermediate_size=772" in refusal(model, H100, tensor_parallel_size=8)
    assert infeasible_server(engine(tensor_parallel_size=8, enable_expert_parallel=True), model, H100) is None


def test_shared_experts_are_divided_too():
    model = DEEPSEEK.model_copy(update={"shared_expert_intermediate_size": 2047})
    assert "the shared experts' width 2047" in refusal(model, H200, tensor_parallel_size=8)


def test_expert_parallel_needs_experts():
    said = refusal(LLAMA_8B, H100, tensor_parallel_size=2, enable_expert_parallel=True)
    assert said.startswith("enable_expert_parallel=true needs experts, meta-llama/Llama-3.1-8B is dense")


def test_expert_parallel_must_divide_the_experts():
    model = MIXTRAL.model_copy(update={"num_experts": 6})
    said = refusal(model, H100, tensor_parallel_size=4, enable_expert_parallel=True)
    assert "expert parallel size 4 (tensor x data ranks) does not divide num_experts=6" in said
    assert said.endswith("use 1, 2 or 3 ranks")


def test_a_server_fits_a_node():
    said = refusal(LLAMA_70B, H100, tensor_parallel_size=8, data_parallel_size=2)
    assert "needs 16 GPUs, a node of h100-sxm-80gb has 8; use at most 8" in said


def test_max_model_len_stays_within_the_models_positions():
    said = refusal(MIXTRAL, H100, tensor_parallel_size=8, max_model_len=65536)
    assert said.startswith("max_model_len=65536 is more than max_position_embeddings=32768")


def test_a_prompt_fits_one_step_when_chunked_prefill_is_off():
    said = refusal(LLAMA_8B, H100, enable_chunked_prefill=False, max_num_batched_tokens=2048)
    assert "max_num_batched_tokens=2048 is less than max_model_len=4096" in said
    assert infeasible_server(engine(max_num_batched_tokens=2048), LLAMA_8B, H100) is None


def test_a_step_holds_one_token_of_each_sequence():
    said = refusal(LLAMA_8B, H100, max_num_batched_tokens=512, max_num_seqs=1024)
    assert said.startswith("max_num_batched_tokens=512 is less than max_num_seqs=1024")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tensor_parallel_size": 2}, "CPU profile cpu-x runs one worker; use 1"),
        ({"cpu_offload_gb": 1.0}, "cpu-x is a CPU; leave them out"),
        ({"kv_offloading_size": 1.0}, "cpu-x is a CPU; leave them out"),
        ({"block_size": 16}, "block_size=16 is no multiple of 32"),
    ],
)
def test_a_cpu_profile_refuses_what_vllm_cannot_do_there(arguments, said):
    assert said in refusal(TINY, CPU, **arguments)
    if "block_size" not in arguments and "tensor_parallel_size" not in arguments:
        assert infeasible_server(engine(**arguments), TINY, H100) is None


def test_llama_70b_in_bf16_needs_two_h100s_and_the_message_says_what_it_weighs():
    said = refusal(LLAMA_70B, H100)
    assert "weights 131.4" in said
    assert "raise tensor_parallel_size" in said
    assert infeasible_server(engine(tensor_parallel_size=2), LLAMA_70B, H100) is None


def test_offload_and_quantization_make_room():
    assert infeasible_server(engine(cpu_offload_gb=80), LLAMA_70B, H100) is None
    assert infeasible_server(engine(quantization="awq"), LLAMA_70B, H100) is None


def test_a_smaller_share_of_memory_makes_less_room():
    assert infeasible_server(engine(gpu_memory_utilization=0.2), LLAMA_8B, H100) is not None


def test_the_kv_cache_must_hold_one_sequence_of_full_length():
    l4 = CATALOG.resolve_gpu("l4-24gb")
    assert infeasible_server(engine(max_model_len=8192), LLAMA_8B, l4) is None
    said = infeasible_server(EngineArgs(), LLAMA_8B, l4)
    assert said is not None
    assert "sequence of 131072 tokens 16.0" in said


def test_a_fixed_kv_cache_must_hold_one_sequence_and_fit():
    too_small = refusal(LLAMA_8B, H100, kv_cache_memory_bytes=2**28)
    assert too_small.startswith("kv_cache_memory_bytes=268435456 (0.25 GiB) is less than one sequence")
    assert "KV cache of at least one sequence" in refusal(LLAMA_8B, H100, kv_cache_memory_bytes=70 * 2**30)


def test_a_sliding_window_bounds_the_cache():
    l4 = CATALOG.resolve_gpu("l4-24gb")
    sliding = LLAMA_8B.model_copy(update={"sliding_window": 4096})
    assert infeasible_server(EngineArgs(), sliding, l4) is None


def test_deepseek_v3_fits_an_h200_node_and_no_h100_node():
    eight = engine(tensor_parallel_size=8, enable_expert_parallel=True)
    assert infeasible_server(eight, DEEPSEEK, H200) is None
    assert infeasible_server(eight, DEEPSEEK, H100) is not None


def test_the_longest_request_fits_max_model_len():
    workload = Workload(name="long", random_input_len=3000, random_output_len=1000, random_range_ratio=0.5)
    said = infeasible_workload(workload, engine(), LLAMA_8B)
    assert said is not None
    assert "longest request of workload long has 6000 tokens, max_model_len=4096" in said
    assert infeasible_workload(workload, engine(max_model_len=6000), LLAMA_8B) is None


def test_sharegpt_conversations_are_bounded_by_the_load_generator():
    workload = Workload(name="chat", dataset_name="sharegpt", random_input_len=100_000)
    assert infeasible_workload(workload, engine(max_model_len=2048), LLAMA_8B) is None
    assert infeasible_workload(workload, engine(max_model_len=2047), LLAMA_8B) is not None


def test_a_job_is_judged_by_server_and_workload():
    job = BenchmarkJob(
        model=LLAMA_8B.name,
        gpu=H100.name,
        engine=engine(),
        workload=Workload(name="w", random_input_len=8000),
        engine_version="0.32.0",
    )
    assert "longest request" in str(infeasible(job, LLAMA_8B, H100))
    fitting = job.model_copy(update={"workload": Workload(name="w")})
    assert infeasible(fitting, LLAMA_8B, H100) is None
    split = fitting.model_copy(update={"engine": engine(tensor_parallel_size=3)})
    assert "does not divide" in str(infeasible(split, LLAMA_8B, H100))
