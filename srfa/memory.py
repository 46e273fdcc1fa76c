"""Bytes of weights and of KV cache: the model's shape, and how vLLM splits it over tensor and expert ranks.

Biases, norms' small vectors aside, every matrix is counted; published totals are met within 1 % (2 % where a family has
extra heads or biases that are not in :class:`~srfa.specs.ModelSpec`).
"""

from __future__ import annotations

from srfa.geometry import Geometry, geometry
from srfa.precision import ByStorage, compute_dtype, parameter_bytes
from srfa.specs import EngineArgs, ModelSpec


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


def rank_parameters(model: ModelSpec, engine: EngineArgs) -> ByStorage:
    """Return what one rank of the server holds: its shard's matrices, its part of the embeddings, the norms.

    Attention, MLPs and embeddings are split over tensor ranks (KV heads at least one a rank; MLA's down projections
    whole). Routed experts are split over tensor x data ranks: whole experts with expert parallelism, else slices.
    """
    shard = _shard(model, engine)
    tables = 1 if model.tie_word_embeddings else 2
    norms = (2 * model.num_hidden_layers + 1) * model.hidden_size
    return ByStorage(
        plain=tables * shard.head.parameters + norms + shard.router_parameters,
        linear=shard.token_parameters - shard.router_parameters,
        experts=shard.expert_parameters * shard.experts_on_rank,
    )


def weight_bytes(model: ModelSpec, engine: EngineArgs) -> int:
    """Return the bytes of weights that one GPU of this server holds, before any offload to the host."""
    rank = rank_parameters(model, engine)
    stored = parameter_bytes(model, engine.dtype, engine.quantization)
    return round(rank.plain * stored.plain + rank.linear * stored.linear + rank.experts * stored.experts)


def kv_bytes_per_token(model: ModelSpec, tensor_parallel_size: int, dtype: str = "auto") -> float:
    """Return the bytes of KV cache that one token takes on one GPU, over all layers.

    ``2 x layers x max(1, kv_heads / TP) x head_dim x bytes``; with MLA ``layers x (kv_lora_rank + qk_rope_head_dim) x
    bytes``, the same on every tensor rank.

    Parameters
    ----------
    dtype
        Of the cache; ``auto`` is the model's own.
    """
    return geometry(model, tensor_parallel_size=tensor_parallel_size, kv_cache_dtype=dtype).kv_bytes_per_token


def kv_cache_dtype(model: ModelSpec, engine: EngineArgs) -> str:
    """Return the dtype of the KV cache of this server: the engine's, else that of its weights."""
    return compute_dtype(model, engine.dtype) if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype


def _shard(model: ModelSpec, engine: EngineArgs) -> Geometry:
    return geometry(
        model,
        tensor_parallel_size=engine.tensor_parallel_size,
        expert_parallel_size=engine.expert_parallel_size,
        data_parallel_size=engine.data_parallel_size,
    )
