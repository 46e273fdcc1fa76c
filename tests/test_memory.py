import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srfa.catalog import load_catalog
from srfa.hf_config import load_model_spec
from srfa.memory import (
    active_parameter_count,
    kv_bytes_per_token,
    kv_cache_dtype,
    parameter_count,
    rank_parameters,
    weight_bytes,
)
from srfa.precision import compute_dtype
from srfa.specs import EngineArgs

ROOT = Path(__file__).parent.parent
CATALOG = load_catalog(ROOT / "hardware", ROOT / "models")
LLAMA = CATALOG.resolve_model("llama-3.1-8b")
MIXTRAL = CATALOG.resolve_model("mixtral-8x7b-v0.1")
QWEN_MOE = CATALOG.resolve_model("qwen3-30b-a3b")
DEEPSEEK = CATALOG.resolve_model("deepseek-v3")

# Total and active parameters as the model cards and reports print them, in units of 10**9.
PUBLISHED = {
    "llama-3.1-8b": (8.03, 8.03),
    "llama-3.1-70b": (70.6, 70.6),
    "llama-2-70b-hf": (69.0, 69.0),
    "qwen3-32b": (32.8, 32.8),
    "mixtral-8x7b-v0.1": (46.7, 12.9),
    "mixtral-8x22b-v0.1": (141, 39),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-235b-a22b": (235, 22),
    "deepseek-v3": (671, 37),
    "bloom-176b": (176.2, 176.2),
    "gemma-2-9b-it": (9.24, 9.24),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_meet_the_published_totals(name):
    total, active = PUBLISHED[name]
    model = CATALOG.resolve_model(name)
    assert parameter_count(model) / 1e9 == pytest.approx(total, rel=0.005)
    assert active_parameter_count(model) / 1e9 == pytest.approx(active, rel=0.02)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "facts",
    [
        {"model_type": "gpt2"},
        {
            "model_type": "opt",
            "hidden_size": 2048,
            "word_embed_proj_dim": 2048,
            "num_attention_heads": 32,
            "ffn_dim": 8192,
        },
        {"model_type": "falcon", "hidden_size": 2048, "num_attention_heads": 32, "num_hidden_layers": 4},
        {"model_type": "qwen2_moe", "num_hidden_layers": 4, "mlp_only_layers": [1]},
        {"model_type": "deepseek_v3", "num_hidden_layers": 5},
        {"model_type": "deepseek_v2", "num_hidden_layers": 4, "first_k_dense_replace": 1, "num_experts_per_tok": 6},
        {"model_type": "gpt_oss", "num_hidden_layers": 4},
        {"model_type": "llama4_text", "num_hidden_layers": 4, "interleave_moe_layer_step": 2},
        {"model_type": "mixtral", "num_hidden_layers": 4},
        {"model_type": "gemma2", "num_hidden_layers": 4},
    ],
    ids=lambda facts: facts["model_type"],
)
def test_parameters_equal_those_of_the_model_that_transformers_builds(transformers, facts):
    """The oracle: each family's own class, built without storage, from the file its configuration class writes."""
    import torch

    settings = {key: value for key, value in facts.items() if key != "model_type"}
    config = transformers.CONFIG_MAPPING[facts["model_type"]](**settings)
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(config)
    built.tie_weights()
    ours = parameter_count(load_model_spec("org/oracle", json.loads(config.to_json_string(use_diff=False))))
    assert ours == pytest.approx(sum(p.numel() for p in built.parameters()), rel=0.01)


def test_weights_of_llama_in_bf16_are_two_bytes_a_parameter():
    assert weight_bytes(LLAMA, EngineArgs()) == 2 * 8_030_261_248


@pytest.mark.parametrize("model", [LLAMA, MIXTRAL, QWEN_MOE], ids=lambda model: model.name)
@pytest.mark.parametrize("tp", [2, 4])
def test_tensor_ranks_share_everything_but_norms_and_routers(model, tp):
    whole = rank_parameters(model, EngineArgs())
    rank = rank_parameters(model, EngineArgs(tensor_parallel_size=tp))
    assert rank.linear == whole.linear / tp
    assert rank.experts == whole.experts / tp
    assert whole.total / tp < rank.total < 1.01 * whole.total / tp


def test_kv_heads_are_copied_when_there_are_more_ranks_than_heads():
    """Qwen3-30B-A3B has 4 KV heads: at TP 8 each rank keeps one, so twice as many bytes in all."""
    four, eight = (kv_bytes_per_token(QWEN_MOE, tp) for tp in (4, 8))
    assert four == eight == 2 * 48 * 1 * 128 * 2


@pytest.mark.parametrize(("tp", "dp"), [(8, 1), (4, 2), (1, 8)])
def test_expert_parallel_ranks_hold_whole_experts(tp, dp):
    engine = EngineArgs(tensor_parallel_size=tp, data_parallel_size=dp, enable_expert_parallel=True)
    one_expert = 32 * 3 * 4096 * 14336
    assert rank_parameters(MIXTRAL, engine).experts == one_expert


def test_experts_that_do_not_divide_load_the_fullest_rank():
    engine = EngineArgs(tensor_parallel_size=3, enable_expert_parallel=True)
    assert rank_parameters(MIXTRAL, engine).experts == 3 * 32 * 3 * 4096 * 14336


def test_data_parallel_ranks_repeat_attention():
    alone, twice = (rank_parameters(MIXTRAL, EngineArgs(data_parallel_size=n)) for n in (1, 2))
    assert twice.linear == alone.linear
    assert twice.experts == alone.experts / 2


def test_deepseek_is_served_in_the_fp8_of_its_checkpoint():
    assert weight_bytes(DEEPSEEK, EngineArgs()) == pytest.approx(671e9, rel=0.01)
    assert weight_bytes(DEEPSEEK, EngineArgs(quantization="fp8")) == weight_bytes(DEEPSEEK, EngineArgs())


def test_gpt_oss_checkpoint_size_is_met_with_only_experts_in_four_bits():
    """The published checkpoint takes 13.76 * 10**9 bytes."""
    assert weight_bytes(CATALOG.resolve_model("gpt-oss-20b"), EngineArgs()) == pytest.approx(13.76e9, rel=0.01)


@pytest.mark.parametrize(("quantization", "share"), [("fp8", 0.5), ("awq", 0.266), ("some-new-method", 0.5)])
def test_quantization_shrinks_linear_layers_and_leaves_embeddings(quantization, share):
    plain = rank_parameters(LLAMA, EngineArgs()).plain * 2
    whole, small = (weight_bytes(LLAMA, EngineArgs(quantization=q)) for q in (None, quantization))
    assert (small - plain) / (whole - plain) == pytest.approx(share, abs=0.001)


def test_a_quantized_checkpoint_says_how_many_bits():
    eight = LLAMA.model_copy(update={"quantization": "gptq", "quantization_bits": 8})
    assert weight_bytes(eight, EngineArgs()) == weight_bytes(LLAMA, EngineArgs(quantization="fp8"))


def test_kv_of_llama_is_128_kib_a_token():
    assert kv_bytes_per_token(LLAMA, 1) == 128 * 1024
    assert kv_bytes_per_token(LLAMA, 1, "fp8") == 64 * 1024


def test_mla_keeps_one_compressed_vector_on_every_rank():
    assert kv_bytes_per_token(DEEPSEEK, 8, "bfloat16") == 61 * (512 + 64) * 2
    assert kv_bytes_per_token(DEEPSEEK, 1) == kv_bytes_per_token(DEEPSEEK, 8)


def test_dtypes_follow_engine_then_checkpoint():
    float32 = LLAMA.model_copy(update={"torch_dtype": "float32"})
    assert compute_dtype(float32) == "bfloat16"
    assert compute_dtype(float32, "float32") == "float32"
    assert kv_cache_dtype(LLAMA, EngineArgs(dtype="float16")) == "float16"
    assert kv_cache_dtype(LLAMA, EngineArgs(kv_cache_dtype="fp8")) == "fp8"


@given(tp=st.sampled_from([1, 2, 4, 8]), dp=st.sampled_from([1, 2]), ep=st.booleans())
def test_ranks_together_hold_at_least_the_whole_model(tp, dp, ep):
    for model in (LLAMA, MIXTRAL, DEEPSEEK):
        engine = EngineArgs(tensor_parallel_size=tp, data_parallel_size=dp, enable_expert_parallel=ep)
        assert tp * dp * weight_bytes(model, engine) >= weight_bytes(model, EngineArgs())
