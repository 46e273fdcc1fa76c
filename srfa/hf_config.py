"""From a Hugging Face ``config.json`` to a :class:`~srfa.specs.ModelSpec`: every spelling of every family, here only.

Sources: the configuration classes of ``transformers``, and the model classes of vLLM where the two differ (which layers
hold experts, which MLPs have a gate).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from srfa.errors import CatalogError
from srfa.specs import ModelSpec
from srfa.wording import explain

Facts = Mapping[str, object]

_NESTED: Final = ("text_config", "llm_config", "language_config", "attn_config", "ffn_config")
_ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "kv_channels", "attention_head_dim"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "max_position_embeddings": (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "max_seq_len",
        "seq_length",
        "n_ctx",
    ),
    "num_experts": ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k", "moe_k"),
    "moe_intermediate_size": ("moe_intermediate_size", "expert_ffn_hidden_size"),
    "n_shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
}
_FOUR_TIMES_HIDDEN: Final = frozenset({"bloom", "falcon", "gpt2", "gpt_bigcode", "gptj", "codegen", "mpt"})
"""Families whose MLP is four times the hidden width unless the file says otherwise."""
_UNGATED: Final = _FOUR_TIMES_HIDDEN | {"gpt_neox", "gpt_neo", "opt", "phi", "starcoder2", "nemotron", "persimmon"}
_UNGATED_ACTIVATIONS: Final = frozenset({"relu", "relu2", "gelu_new", "gelu_fast"})
_TIED: Final = frozenset({"gemma", "gemma2", "gemma3_text", "cohere", "bloom", "falcon", "opt", "mpt", "starcoder2"})
_TIED_BY_DEFAULT: Final = _TIED | {"gpt2", "gpt_bigcode"}
_POSITIONS: Final = {"bloom": 2048, "falcon": 2048}
"""Families without learned positions whose files may not name a context length; vLLM takes these."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Facts with the file they came from, read by canonical name."""

    facts: Facts
    where: str

    def find(self, canonical: str) -> int | None:
        """Return the value of the first alias that is there and not null."""
        for key in _ALIASES.get(canonical, (canonical,)):
            if self.facts.get(key) is not None:
                return self._whole(key)
        return None

    def need(self, canonical: str) -> int:
        found = self.find(canonical)
        if found is None:
            others = _ALIASES.get(canonical, ())[1:]
            spelt = f" (also read: {', '.join(others)})" if others else ""
            raise CatalogError(f"{self.where}: missing key {canonical!r}{spelt}; copy it from the model's config.json")
        return found

    def text(self, *keys: str, default: str = "") -> str:
        return next((str(self.facts[key]) for key in keys if self.facts.get(key) is not None), default)

    def whole_list(self, key: str) -> list[int] | None:
        """Return a list of whole numbers, or None where the key is absent or no list."""
        value = self.facts.get(key)
        return [item for item in value if isinstance(item, int)] if isinstance(value, list) else None

    def _whole(self, key: str) -> int:
        value = self.facts[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise CatalogError(f"{self.where}: {key}={value!r} should be a whole number, zero or more")
        return value


def load_model_spec(name: str, facts: Facts, *, where: str = "") -> ModelSpec:
    """Return the model that ``facts`` (a Hugging Face ``config.json``) describe.

    An architecture nobody has heard of loads too, as long as the keys that give its shape are there.

    Parameters
    ----------
    name
        Hugging Face id, for example ``meta-llama/Llama-3.1-8B``.
    facts
        The parsed file; keys that say nothing about shape are ignored.
    where
        File named in errors; by default the catalogue's path of the model.

    Raises
    ------
    CatalogError
        A needed key is missing or holds something impossible.

    Examples
    --------
    >>> facts = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_ctx": 1024}
    >>> spec = load_model_spec("gpt2", facts)
    >>> spec.intermediate_size, spec.num_key_value_heads, spec.mlp_gated
    (3072, 12, False)
    """
    place = where or f"models/{name}/config.json"
    source = _Source(_flatten(facts), place)
    fields = {
        "name": name,
        "model_type": source.text("model_type", default="unknown"),
        "architecture": _architecture(source),
        "vocab_size": source.need("vocab_size"),
        **_shape(source),
        **_attention(source),
        **_experts(source),
        **_storage(source),
    }
    try:
        return ModelSpec.model_validate(fields)
    except ValidationError as error:
        raise CatalogError("\n".join(f"{place}: {explain(item, ModelSpec)}" for item in error.errors())) from error


def _flatten(facts: Facts) -> dict[str, object]:
    """Lift the language model's own block (multimodal files, DBRX) to the top; it wins over outer keys."""
    flat = dict(facts)
    for key in _NESTED:
        inner = facts.get(key)
        if isinstance(inner, Mapping):
            flat.update(inner)
    return flat


def _architecture(source: _Source) -> str:
    names = source.facts.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "unknown"


def _shape(source: _Source) -> dict[str, object]:
    model_type = source.text("model_type")
    positions = source.find("max_position_embeddings") or _POSITIONS.get(model_type)
    return {
        "hidden_size": source.need("hidden_size"),
        "num_hidden_layers": source.need("num_hidden_layers"),
        "intermediate_size": _intermediate_size(source),
        "max_position_embeddings": positions or source.need("max_position_embeddings"),
        "mlp_gated": _is_gated(source),
        "tie_word_embeddings": bool(source.facts.get("tie_word_embeddings", model_type in _TIED_BY_DEFAULT)),
    }


def _intermediate_size(source: _Source) -> int:
    """Width of a dense layer's MLP. Llama 4 keeps it apart, in ``intermediate_size_mlp``."""
    found = source.find("intermediate_size_mlp") or source.find("intermediate_size")
    if found is None and source.text("model_type") in _FOUR_TIMES_HIDDEN:
        return 4 * source.need("hidden_size")
    return found or source.find("moe_intermediate_size") or source.need("intermediate_size")


def _is_gated(source: _Source) -> bool:
    activation = source.text("hidden_act", "activation_function", "hidden_activation", default="silu")
    return source.text("model_type") not in _UNGATED and activation not in _UNGATED_ACTIVATIONS


def _attention(source: _Source) -> dict[str, object]:
    heads = source.need("num_attention_heads")
    mla = _mla(source)
    head_dim = source.find("head_dim") or max(source.need("hidden_size") // max(heads, 1), 1)
    if mla:
        head_dim = mla["qk_nope_head_dim"] + mla["qk_rope_head_dim"]
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": _kv_heads(source, heads),
        "head_dim": head_dim,
        "q_lora_rank": source.find("q_lora_rank"),
        "sliding_window": _sliding_window(source),
        **mla,
    }


def _kv_heads(source: _Source, heads: int) -> int:
    """Falcon's first generation and GPT-BigCode say ``multi_query``; others that say nothing have as many as heads."""
    old_falcon = source.text("model_type") == "falcon" and not source.facts.get("new_decoder_architecture")
    if source.facts.get("multi_query") and (old_falcon or source.find("num_key_value_heads") is None):
        return 1
    return source.find("num_key_value_heads") or heads


def _mla(source: _Source) -> dict[str, int]:
    if source.find("kv_lora_rank") is None:
        return {}
    keys = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    return {key: source.need(key) for key in keys}


def _sliding_window(source: _Source) -> int | None:
    """Return the window where every layer slides; models that mix it with full attention keep a full cache."""
    kinds = source.facts.get("layer_types")
    mixed = isinstance(kinds, list) and any(kind != "sliding_attention" for kind in kinds)
    alternating = source.text("model_type").startswith(("gemma2", "gemma3", "gpt_oss"))
    if mixed or alternating or source.facts.get("use_sliding_window") is False:
        return None
    return source.find("sliding_window")


def _experts(source: _Source) -> dict[str, object]:
    experts = source.find("num_experts") or 0
    layers = _moe_layer_count(source) if experts > 1 else 0
    if layers == 0:
        return {}
    width = source.find("moe_intermediate_size") or source.need("intermediate_size")
    shared = _shared_expert_count(source)
    return {
        "num_experts": experts,
        "num_experts_per_tok": source.need("num_experts_per_tok"),
        "moe_intermediate_size": width,
        "moe_layers": layers,
        "n_shared_experts": shared,
        "shared_expert_intermediate_size": (source.find("shared_expert_intermediate_size") or width) if shared else 0,
    }


def _shared_expert_count(source: _Source) -> int:
    """Qwen2-MoE names only the width of its one shared expert; Llama 4 has one without a word in its file."""
    if source.text("model_type").startswith("llama4") or source.find("shared_expert_intermediate_size"):
        return source.find("n_shared_experts") or 1
    return source.find("n_shared_experts") or 0


def _moe_layer_count(source: _Source) -> int:
    listed = source.whole_list("moe_layers")
    if listed is not None:
        return len(listed)
    return sum(_is_moe_layer(source, layer) for layer in range(source.need("num_hidden_layers")))


def _is_moe_layer(source: _Source, layer: int) -> bool:
    """Apply every family's rule; a rule whose keys are absent lets all layers through.

    DeepSeek: ``first_k_dense_replace`` and ``moe_layer_freq`` (a step, or a flag for each layer). Qwen:
    ``decoder_sparse_step`` and ``mlp_only_layers``. Llama 4: ``interleave_moe_layer_step``.
    """
    flags = source.whole_list("moe_layer_freq")
    if flags is not None:
        return bool(layer < len(flags) and flags[layer])
    step = source.find("decoder_sparse_step") or source.find("interleave_moe_layer_step") or 1
    return (
        layer >= (source.find("first_k_dense_replace") or 0)
        and layer % (source.find("moe_layer_freq") or 1) == 0
        and (layer + 1) % step == 0
        and layer not in (source.whole_list("mlp_only_layers") or [])
    )


def _storage(source: _Source) -> dict[str, object]:
    dtype = source.text("dtype", "torch_dtype", default="bfloat16").removeprefix("torch.")
    quantization = source.facts.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return {"torch_dtype": dtype}
    inner = _Source(quantization, f"{source.where}: quantization_config")
    return {
        "torch_dtype": dtype,
        "quantization": inner.text("quant_method", default="unknown"),
        "quantization_bits": inner.find("bits") or inner.find("w_bit") or _group_bits(quantization),
    }


def _group_bits(quantization: Mapping[str, object]) -> int | None:
    """Bits of the first group's weights in compressed-tensors' form, ``config_groups.<group>.weights.num_bits``."""
    groups = quantization.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        bits = weights.get("num_bits") if isinstance(weights, Mapping) else None
        if isinstance(bits, int):
            return bits
    return None
