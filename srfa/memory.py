"""Bytes of weights and of KV cache: the model's shape, and how vLLM splits it over tensor and expert ranks.

Biases, norms' small vectors aside, every matrix is counted; published totals are met within 1 % (2 % where a family has
extra heads or biases that are not in :class:`~srfa.specs.ModelSpec`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from srfa.specs import EngineArgs, ModelSpec

DTYPE_BYTES: Final = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
"""Bytes of a number, by the names vLLM takes for ``dtype``."""
_NARROW_KV_BYTES: Final = {
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla"), 1.0),
    **dict.fromkeys(("fp8_per_token_head", "int8_per_token_head"), 1.0),
    "int4_per_token_head": 0.5,
    "nvfp4": 0.5625,
}
KV_DTYPE_BYTES: Final[dict[str, float]] = {**DTYPE_BYTES, **_NARROW_KV_BYTES}
"""Bytes of a cached number, scales of a head or token left out."""
KV_CACHE_DTYPES: Final = ("auto", "bfloat16", "float16", *_NARROW_KV_BYTES)
"""What this project knows of vLLM 0.32's values for ``kv_cache_dtype`` (``vllm/config/cache.py``)."""
_BITS_PER_BYTE: Final = 8
_QUANTIZED_BITS: Final = {
    "awq": 4.25,
    "awq_marlin": 4.25,
    "gptq": 4.25,
    "gptq_marlin": 4.25,
    "bitsandbytes": 4.25,
    "mxfp4": 4.25,
    "modelopt_fp4": 4.5,
    "nvfp4": 4.5,
}
"""Bits a weight takes with its share of a group's scales: 32 bits for 128 weights, or 8 bits for 32 (16)."""
_OTHER_QUANTIZED_BITS: Final = 8.0
_EXPERTS_ONLY: Final = frozenset({"mxfp4"})
"""Methods that leave attention and dense layers in the model's dtype."""


@dataclass(frozen=True, slots=True)
class RankParameters:
    """Parameters that one rank holds, by how they are stored.

    Parameters
    ----------
    plain
        Embeddings, output head, norms, routers: always in the model's dtype.
    linear
        Attention, dense MLPs and shared experts.
    experts
        Routed experts.
    """

    plain: float
    linear: float
    experts: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.plain + self.linear + self.experts


def parameter_count(model: ModelSpec) -> int:
    """Return the number of parameters of the whole model, embeddings included.

    >>> from srfa.hf_config import load_model_spec
    >>> shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    >>> parameter_count(load_model_spec("x/y", {**shape, "vocab_size": 100, "max_position_embeddings": 32}))
    53952
    """
    return round(rank_parameters(model, EngineArgs()).total)


def active_parameter_count(model: ModelSpec) -> int:
    """Return the parameters that one token passes through: of the routed experts only ``num_experts_per_tok``."""
    rank = rank_parameters(model, EngineArgs())
    share = model.num_experts_per_tok / model.num_experts if model.is_moe else 0.0
    return round(rank.plain + rank.linear + rank.experts * share)


def rank_parameters(model: ModelSpec, engine: EngineArgs) -> RankParameters:
    """Return what one rank of the server holds.

    Attention, MLPs and embeddings are split over tensor ranks (KV heads at least one a rank; MLA's down projections
    whole). Routed experts are split over tensor x data ranks: whole experts with expert parallelism, else slices.
    """
    tp = engine.tensor_parallel_size
    dense_layers = model.num_hidden_layers - model.moe_layers
    tables = 1 if model.tie_word_embeddings else 2
    norms = (2 * model.num_hidden_layers + 1) * model.hidden_size
    router = model.moe_layers * model.hidden_size * model.num_experts
    shared = model.moe_layers * model.n_shared_experts * _mlp(model, model.shared_expert_intermediate_size)
    linear = (dense_layers * _mlp(model, model.intermediate_size) + shared) / tp
    return RankParameters(
        plain=tables * model.vocab_size * model.hidden_size / tp + norms + router,
        linear=linear + model.num_hidden_layers * _attention(model, tp),
        experts=model.moe_layers * _mlp(model, model.moe_intermediate_size) * _experts_held(model, engine),
    )


def weight_bytes(model: ModelSpec, engine: EngineArgs) -> int:
    """Return the bytes of weights that one GPU of this server holds, before any offload to the host.

    Quantisation is the engine's, else the checkpoint's own; it leaves embeddings, head, norms and routers as they are.
    """
    rank = rank_parameters(model, engine)
    plain_bytes = DTYPE_BYTES[compute_dtype(model, engine)]
    method = engine.quantization or model.quantization
    expert_bytes = _quantized_bytes(model, method) if method else plain_bytes
    linear_bytes = plain_bytes if method in _EXPERTS_ONLY else expert_bytes
    return round(rank.plain * plain_bytes + rank.linear * linear_bytes + rank.experts * expert_bytes)


def kv_bytes_per_token(model: ModelSpec, tensor_parallel_size: int, dtype: str = "auto") -> float:
    """Return the bytes of KV cache that one token takes on one GPU, over all layers.

    ``2 x layers x max(1, kv_heads / TP) x head_dim x bytes``; with MLA ``layers x (kv_lora_rank + qk_rope_head_dim) x
    bytes``, the same on every tensor rank.

    Parameters
    ----------
    dtype
        Of the cache; ``auto`` is the model's own.
    """
    number_bytes = KV_DTYPE_BYTES[_served(model.torch_dtype) if dtype == "auto" else dtype]
    if model.is_mla:
        return model.num_hidden_layers * ((model.kv_lora_rank or 0) + (model.qk_rope_head_dim or 0)) * number_bytes
    heads = max(1.0, model.num_key_value_heads / tensor_parallel_size)
    return 2 * model.num_hidden_layers * heads * model.head_dim * number_bytes


def kv_cache_dtype(model: ModelSpec, engine: EngineArgs) -> str:
    """Return the dtype of the KV cache of this server: the engine's, else that of its weights."""
    return compute_dtype(model, engine) if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype


def compute_dtype(model: ModelSpec, engine: EngineArgs) -> str:
    """Return the dtype that vLLM computes in; ``auto`` is the checkpoint's, with float32 served in 16 bits."""
    return _served(model.torch_dtype) if engine.dtype == "auto" else engine.dtype


def _served(torch_dtype: str) -> str:
    return torch_dtype if DTYPE_BYTES.get(torch_dtype) == 2 else "bfloat16"


def _quantized_bytes(model: ModelSpec, method: str) -> float:
    if method == model.quantization and model.quantization_bits:
        return model.quantization_bits / _BITS_PER_BYTE
    return _QUANTIZED_BITS.get(method, _OTHER_QUANTIZED_BITS) / _BITS_PER_BYTE


def _mlp(model: ModelSpec, width: int) -> int:
    """Parameters of one MLP: up and down, and the gate where there is one."""
    return (3 if model.mlp_gated else 2) * model.hidden_size * width


def _experts_held(model: ModelSpec, engine: EngineArgs) -> float:
    """Experts' worth of parameters on one rank."""
    if engine.enable_expert_parallel:
        return -(-model.num_experts // engine.expert_parallel_size)
    return model.num_experts / engine.gpu_count


def _attention(model: ModelSpec, tp: int) -> float:
    """Parameters of one layer's attention on one tensor rank."""
    hidden = model.hidden_size
    heads = model.num_attention_heads / tp
    if not model.is_mla:
        kv_heads = max(1.0, model.num_key_value_heads / tp)
        return (2 * heads + 2 * kv_heads) * model.head_dim * hidden
    kv_rank, rope = model.kv_lora_rank or 0, model.qk_rope_head_dim or 0
    nope, value = model.qk_nope_head_dim or 0, model.v_head_dim or 0
    query = heads * (nope + rope)
    queries = model.q_lora_rank * (hidden + query) if model.q_lora_rank else hidden * query
    return queries + hidden * (kv_rank + rope) + kv_rank * heads * (nope + value) + heads * value * hidden
