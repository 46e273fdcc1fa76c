"""The facts in models/ against published parameter counts (a formula of this file's own) and transformers' classes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

MODELS = Path(__file__).parents[2] / "models"

# Billions of parameters, with embeddings, as the publisher states them; a model card is that of the Hugging Face hub.
# Scout's figure holds a vision tower of some 0.9 B that text never reads; DeepSeek-V3's leaves out its MTP module.
PUBLISHED_B = {
    "meta-llama/Llama-3.1-8B": (8.03, "model card, safetensors count"),
    "meta-llama/Llama-3.1-70B": (70.6, "model card, safetensors count"),
    "meta-llama/Llama-2-7b-hf": (6.74, "model card, safetensors count"),
    "meta-llama/Llama-2-13b-hf": (13.02, "model card, safetensors count"),
    "meta-llama/Llama-2-70b-hf": (68.98, "model card, safetensors count"),
    "codellama/CodeLlama-34b-Instruct-hf": (33.74, "model card, safetensors count"),
    "Qwen/Qwen3-8B": (8.2, "model card"),
    "Qwen/Qwen3-14B": (14.8, "model card"),
    "Qwen/Qwen3-32B": (32.8, "model card"),
    "Qwen/Qwen2.5-7B-Instruct": (7.61, "model card"),
    "Qwen/Qwen2.5-72B-Instruct": (72.7, "model card"),
    "bigscience/bloom-176b": (176.247271424, "model card of bigscience/bloom, exact count"),
    "mistralai/Mixtral-8x7B-v0.1": (46.7, "Mistral AI announcement, December 2023"),
    "mistralai/Mixtral-8x22B-v0.1": (141.0, "Mistral AI announcement, April 2024"),
    "Qwen/Qwen3-30B-A3B": (30.5, "model card"),
    "Qwen/Qwen3-235B-A22B": (235.0, "model card"),
    "deepseek-ai/DeepSeek-V3": (671.0, "arXiv:2412.19437, main model"),
    "deepseek-ai/DeepSeek-V2-Lite": (15.7, "arXiv:2405.04434, appendix"),
    "meta-llama/Llama-4-Scout-17B-16E": (109.0, "model card"),
    "openai/gpt-oss-20b": (20.91, "gpt-oss model card, arXiv:2508.10925"),
    "google/gemma-2-9b-it": (9.24, "arXiv:2408.00118"),
    "microsoft/Phi-3-mini-4k-instruct": (3.82, "model card, safetensors count"),
}
TOLERANCE = 0.02

Sizes = dict[str, int]


def facts(name: str) -> Sizes:
    document: dict[str, Any] = json.loads((MODELS / name / "config.json").read_text())
    text = document.pop("text_config", {})
    return {**document, **text}


def family(c: Sizes) -> str:
    return str(c["model_type"])


def attention(c: Sizes) -> int:
    h, heads = c["hidden_size"], c["num_attention_heads"]
    if "kv_lora_rank" in c:
        return mla(c, h, heads)
    d = c["head_dim"]
    kv = c["num_key_value_heads"]
    bias = (heads + 2 * kv) * d if family(c) in ("qwen2", "gpt_oss") else 0
    bias += h + heads if family(c) == "gpt_oss" else 0  # the output bias and one sink a head
    qk_norm = 2 * d if family(c).startswith("qwen3") else 0
    return 2 * h * heads * d + 2 * h * kv * d + bias + qk_norm


def mla(c: Sizes, h: int, heads: int) -> int:
    nope, rope, v, kv_rank, q_rank = (
        c[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank")
    )
    q_width = heads * (nope + rope)
    q = h * q_width if q_rank is None else h * q_rank + q_rank + q_rank * q_width
    kv = h * (kv_rank + rope) + kv_rank + kv_rank * heads * (nope + v)
    return q + kv + heads * v * h


def gated_mlp(h: int, width: int) -> int:
    return 3 * h * width


def mixtral_layer(c: Sizes) -> int:
    h, n = c["hidden_size"], c["num_local_experts"]
    return n * gated_mlp(h, c["intermediate_size"]) + h * n


def qwen3_moe_layer(c: Sizes) -> int:
    h, n = c["hidden_size"], c["num_experts"]
    return n * gated_mlp(h, c["moe_intermediate_size"]) + h * n


def deepseek_layer(c: Sizes) -> int:
    h, n = c["hidden_size"], c["n_routed_experts"]
    router_bias = n if family(c) == "deepseek_v3" else 0
    return (n + c["n_shared_experts"]) * gated_mlp(h, c["moe_intermediate_size"]) + h * n + router_bias


def llama4_layer(c: Sizes) -> int:
    h, n = c["hidden_size"], c["num_local_experts"]
    return (n + 1) * gated_mlp(h, c["intermediate_size"]) + h * n


def gpt_oss_layer(c: Sizes) -> int:
    h, w, n = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    return n * (gated_mlp(h, w) + 2 * w + h) + h * n + n


def mlp_of_all_layers(c: Sizes) -> int:
    layers, h = c["num_hidden_layers"], c["hidden_size"]
    if family(c).startswith("deepseek"):
        dense = c["first_k_dense_replace"]
        return dense * gated_mlp(h, c["intermediate_size"]) + (layers - dense) * deepseek_layer(c)
    if family(c) == "llama4_text":
        moe = layers // c["interleave_moe_layer_step"]
        return moe * llama4_layer(c) + (layers - moe) * gated_mlp(h, c["intermediate_size_mlp"])
    of_family = {"mixtral": mixtral_layer, "qwen3_moe": qwen3_moe_layer, "gpt_oss": gpt_oss_layer}
    if family(c) in of_family:
        return layers * of_family[family(c)](c)
    return layers * gated_mlp(h, c["intermediate_size"])


def bloom(c: Sizes) -> int:
    h = c["n_embed"]
    layer = (4 * h * h + 4 * h) + (8 * h * h + 5 * h) + 4 * h  # attention, MLP of 4 h without gate, two layer norms
    return c["n_layer"] * layer + c["vocab_size"] * h + 4 * h  # tied head; norms of the embedding and of the end


def parameters_b(c: Sizes) -> float:
    if family(c) == "bloom":
        return bloom(c) / 10**9
    layers, h = c["num_hidden_layers"], c["hidden_size"]
    norms = (4 if family(c) == "gemma2" else 2) * h
    embeddings = (1 if c["tie_word_embeddings"] else 2) * c["vocab_size"] * h
    return (embeddings + layers * (attention(c) + norms) + mlp_of_all_layers(c) + h) / 10**9


def test_every_model_of_the_table_has_a_file() -> None:
    assert not [name for name in PUBLISHED_B if not (MODELS / name / "config.json").is_file()]


@pytest.mark.parametrize("name", PUBLISHED_B)
def test_facts_give_the_published_parameter_count_within_two_per_cent(name: str) -> None:
    published, source = PUBLISHED_B[name]
    assert parameters_b(facts(name)) == pytest.approx(published, rel=TOLERANCE), source


@pytest.mark.parametrize("name", PUBLISHED_B)
@pytest.mark.parametrize("canonical", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_planted_wrong_size_changes_the_count(name: str, canonical: str) -> None:
    c = facts(name)
    key = (
        {"hidden_size": "n_embed", "num_hidden_layers": "n_layer"}.get(canonical, canonical)
        if "n_layer" in c
        else canonical
    )
    right = parameters_b(c)
    assert parameters_b({**c, key: 2 * c[key]}) > right * (1 + 1e-3)


@pytest.mark.parametrize("name", PUBLISHED_B)
def test_transformers_reads_the_facts_as_its_own(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers warns of at import is not our claim
        auto = pytest.importorskip("transformers").AutoConfig
        document = json.loads((MODELS / name / "config.json").read_text())
        config = auto.for_model(document.pop("model_type"), **document).get_text_config()
    ours = facts(name)
    for key in (
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "moe_intermediate_size",
    ):
        if key in ours:
            assert getattr(config, key) == ours[key], key
    assert config.hidden_size == ours.get("hidden_size", ours.get("n_embed"))
    assert config.num_hidden_layers == ours.get("num_hidden_layers", ours.get("n_layer"))


@pytest.mark.parametrize("name", PUBLISHED_B)
def test_query_heads_are_a_multiple_of_kv_heads(name: str) -> None:
    c = facts(name)
    assert c["num_attention_heads"] % c.get("num_key_value_heads", c["num_attention_heads"]) == 0
