import pytest

from srfa.geometry import geometry
from tests.steps import catalog

MODELS = catalog().models


def total_parameters(name: str) -> float:
    """Everything the shards multiply with, plus the embedding table they look up in."""
    model = MODELS[name]
    shard = geometry(model)
    embedding = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    return shard.token_parameters + shard.head.parameters + shard.expert_parameters * model.num_experts + embedding


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-3.1-8B", 8.03),  # model card
        ("meta-llama/Llama-3.1-70B", 70.55),
        ("Qwen/Qwen3-32B", 32.76),
        ("mistralai/Mixtral-8x7B-v0.1", 46.7),
        ("Qwen/Qwen3-30B-A3B", 30.53),
        ("deepseek-ai/DeepSeek-V3", 671.0),  # technical report, main model
        ("bigscience/bloom-176b", 176.25),
    ],
)
def test_matrices_add_up_to_the_published_parameter_count(name, billions):
    assert total_parameters(name) / 1e9 == pytest.approx(billions, rel=0.01)


def test_tensor_parallel_shards_add_up_to_the_whole_model():
    model = MODELS["meta-llama/Llama-3.1-70B"]
    assert geometry(model, tensor_parallel_size=8).token_parameters * 8 == geometry(model).token_parameters


def test_kv_heads_are_copied_once_tensor_parallel_exceeds_them():
    model = MODELS["Qwen/Qwen3-30B-A3B"]
    assert model.num_key_value_heads == 4
    four, eight = (geometry(model, tensor_parallel_size=tp).kv_bytes_per_token for tp in (4, 8))
    assert four == eight == geometry(model).kv_bytes_per_token / 4


def test_expert_parallelism_divides_experts_and_leaves_their_widths():
    model = MODELS["mistralai/Mixtral-8x7B-v0.1"]
    spread = geometry(model, tensor_parallel_size=4, expert_parallel_size=4)
    cut = geometry(model, tensor_parallel_size=4)
    assert (spread.experts_on_rank, cut.experts_on_rank) == (2, 8)
    assert spread.expert_parameters * spread.experts_on_rank == cut.expert_parameters * cut.experts_on_rank


def test_latent_attention_keeps_a_fraction_of_the_kv_bytes():
    latent = geometry(MODELS["deepseek-ai/DeepSeek-V3"])
    assert latent.kv_bytes_per_token == (512 + 64) * 2 * 61


def test_quantisation_shrinks_weights_and_leaves_the_kv_cache():
    model = MODELS["meta-llama/Llama-3.1-8B"]
    plain, int4 = geometry(model), geometry(model, quantization="awq")
    assert (plain.stored.linear, int4.stored.linear) == (2.0, 4.25 / 8)
    halved = geometry(model, kv_cache_dtype="fp8")
    assert plain.kv_bytes_per_token == int4.kv_bytes_per_token == 2 * halved.kv_bytes_per_token
