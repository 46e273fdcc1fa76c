import pytest

from srfa.errors import CatalogError
from srfa.hf_config import load_model_spec

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


def spec(**facts):
    return load_model_spec("org/model", {**SHAPE, **facts})


def test_missing_kv_heads_mean_multi_head_attention():
    assert spec().num_key_value_heads == 8


def test_head_dim_is_hidden_over_heads_unless_given():
    assert spec().head_dim == 8
    assert spec(head_dim=32).head_dim == 32


def test_grouped_and_multi_query_attention_are_read():
    assert spec(num_key_value_heads=2).num_key_value_heads == 2
    assert spec(multi_query=True).num_key_value_heads == 1


def test_first_generation_falcon_is_multi_query_and_the_second_says_its_kv_heads():
    facts = {"model_type": "falcon", "multi_query": True, "num_kv_heads": 4}
    assert spec(**facts, new_decoder_architecture=False).num_key_value_heads == 1
    assert spec(**facts, new_decoder_architecture=True).num_key_value_heads == 4


def test_bloom_spelling_is_understood():
    facts = {"model_type": "bloom", "n_embed": 64, "n_layer": 3, "num_attention_heads": 4, "vocab_size": 100}
    model = load_model_spec("bigscience/x", facts)
    assert (model.hidden_size, model.num_hidden_layers, model.intermediate_size) == (64, 3, 256)
    assert (model.mlp_gated, model.tie_word_embeddings, model.max_position_embeddings) == (False, True, 2048)


def test_null_n_inner_of_gpt2_means_four_times_hidden():
    facts = {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": None, "n_positions": 128}
    assert load_model_spec("gpt2", {**facts, "vocab_size": 100}).intermediate_size == 256


@pytest.mark.parametrize(
    ("facts", "gated"),
    [
        ({"model_type": "llama", "hidden_act": "silu"}, True),
        ({"model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh"}, True),
        ({"model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh"}, False),
        ({"model_type": "falcon"}, False),
        ({"model_type": "never_heard_of", "hidden_act": "silu"}, True),
        ({"model_type": "never_heard_of", "hidden_act": "relu2"}, False),
    ],
)
def test_the_gate_of_the_mlp_follows_family_and_activation(facts, gated):
    assert spec(**facts).mlp_gated is gated


@pytest.mark.parametrize("key", ["num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"])
def test_every_spelling_of_the_expert_count_is_read(key):
    model = spec(**{key: 16, "num_experts_per_tok": 2})
    assert (model.num_experts, model.num_experts_per_tok, model.moe_layers) == (16, 2, 8)
    assert model.moe_intermediate_size == 256


@pytest.mark.parametrize(
    ("rule", "moe_layers"),
    [
        ({"first_k_dense_replace": 3}, 5),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, 3),  # of 0..7: 2, 4, 6
        ({"moe_layer_freq": [0, 1, 1, 1, 1, 1, 1, 0]}, 6),
        ({"decoder_sparse_step": 2}, 4),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [0, 7]}, 6),
        ({"interleave_moe_layer_step": 4}, 2),
        ({"moe_layers": [1, 3, 5]}, 3),
    ],
)
def test_moe_layers_are_counted_by_the_rule_of_the_family(rule, moe_layers):
    assert spec(num_experts=16, num_experts_per_tok=2, **rule).moe_layers == moe_layers


def test_one_expert_is_a_dense_model():
    assert not spec(num_experts=1).is_moe
    assert not spec(num_local_experts=0).is_moe


def test_shared_experts_of_deepseek_have_the_width_of_routed_ones():
    model = spec(n_routed_experts=16, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=2)
    assert (model.n_shared_experts, model.shared_expert_intermediate_size) == (2, 32)


def test_qwen2_moe_names_only_the_width_of_its_one_shared_expert():
    facts = {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 32}
    model = spec(**facts, shared_expert_intermediate_size=128)
    assert (model.n_shared_experts, model.shared_expert_intermediate_size) == (1, 128)


def test_llama4_keeps_dense_and_expert_widths_apart():
    text = {
        "model_type": "llama4_text",
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 512,
    }
    model = load_model_spec("meta-llama/x", {"model_type": "llama4", "text_config": {**SHAPE, **text}})
    assert (model.intermediate_size, model.moe_intermediate_size, model.n_shared_experts) == (512, 256, 1)


def test_mla_is_recognised_and_its_head_is_both_parts():
    mla = {"kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "q_lora_rank": None}
    model = spec(**mla)
    assert (model.is_mla, model.head_dim, model.q_lora_rank) == (True, 24, None)


def test_mla_without_one_of_its_keys_names_it():
    with pytest.raises(CatalogError, match="missing key 'v_head_dim'"):
        spec(kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8)


@pytest.mark.parametrize(
    ("facts", "window"),
    [
        ({"sliding_window": 64}, 64),
        ({"sliding_window": None}, None),
        ({"sliding_window": 64, "use_sliding_window": False}, None),
        ({"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}, None),
        ({"sliding_window": 64, "model_type": "gemma2"}, None),
    ],
)
def test_a_sliding_window_counts_only_where_every_layer_slides(facts, window):
    assert spec(**facts).sliding_window == window


@pytest.mark.parametrize("facts", [{"dtype": "float16"}, {"torch_dtype": "torch.float16"}])
def test_both_spellings_of_the_dtype_are_read(facts):
    assert spec(**facts).torch_dtype == "float16"


def test_the_quantization_of_the_checkpoint_is_kept():
    model = spec(quantization_config={"quant_method": "gptq", "bits": 8})
    assert (model.quantization, model.quantization_bits) == ("gptq", 8)
    assert spec().quantization is None


def test_an_unknown_architecture_loads_when_its_shape_is_there():
    model = spec(model_type="brand_new", architectures=["BrandNewForCausalLM"], something_else={"a": 1})
    assert (model.model_type, model.architecture) == ("brand_new", "BrandNewForCausalLM")


@pytest.mark.parametrize("key", [key for key in SHAPE if key != "intermediate_size"])
def test_a_missing_key_is_named_with_its_file(key):
    facts = {name: value for name, value in SHAPE.items() if name != key}
    with pytest.raises(CatalogError, match=rf"^models/org/model/config.json: missing key '{key}'"):
        load_model_spec("org/model", facts)


@pytest.mark.parametrize("value", ["64", 6.5, True, -64])
def test_a_shape_that_is_no_whole_number_is_refused_with_its_value(value):
    with pytest.raises(CatalogError, match=rf"here.json: hidden_size={value!r} should be a whole number"):
        load_model_spec("org/model", {**SHAPE, "hidden_size": value}, where="here.json")


def test_a_shape_of_zero_is_refused():
    with pytest.raises(CatalogError, match="vocab_size=0 should be greater than 0"):
        spec(vocab_size=0)


def test_compressed_tensors_say_their_bits_by_group():
    groups = {"group_0": {"weights": {"num_bits": 4, "type": "int"}, "input_activations": None}}
    model = spec(quantization_config={"quant_method": "compressed-tensors", "config_groups": groups})
    assert (model.quantization, model.quantization_bits) == ("compressed-tensors", 4)
