"""The matrices of a model on one GPU: what a token must be multiplied with, and what must be read to do it.

One place knows how tensor and expert parallelism cut a model, so that memory, speed of light and features agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from srfa.specs import ModelSpec

_BYTES = {"float32": 4.0, "float": 4.0, "bfloat16": 2.0, "float16": 2.0, "half": 2.0, "auto": 2.0}
_QUANTISED_BYTES = {
    "fp8": 1.0,
    "compressed-tensors": 1.0,
    "int8": 1.0,
    "awq": 0.5,
    "gptq": 0.5,
    "int4": 0.5,
    "mxfp4": 0.53,
}


@dataclass(frozen=True, slots=True)
class Gemm:
    """One matrix of a GPU's shard: ``(m, k) x (k, n)``, in ``count`` layers.

    ``m`` is the tokens of a step, except for the head, which multiplies one row a request.
    """

    name: str
    n: int
    k: int
    count: int

    @property
    def parameters(self) -> int:
        """Entries of the matrix over all its layers."""
        return self.n * self.k * self.count


@dataclass(frozen=True, slots=True)
class Geometry:
    """A model's shard on the busiest GPU.

    Parameters
    ----------
    token_gemms
        Matrices that every token passes, experts apart.
    head
        The language-model head: one row a request.
    expert_parameters
        Entries of one expert's matrices on this GPU, over all MoE layers.
    experts_on_rank
        Routed experts this GPU holds in each MoE layer.
    attention_flops_per_pair
        Floating-point operations for one new token attending one other token, over all layers.
    kv_bytes_per_token
        KV-cache bytes of one token on this GPU, over all layers.
    """

    token_gemms: tuple[Gemm, ...]
    head: Gemm
    expert_parameters: int
    experts_on_rank: int
    moe_layers: int
    layers: int
    weight_bytes_per_parameter: float
    attention_flops_per_pair: float
    kv_bytes_per_token: float

    @property
    def token_parameters(self) -> int:
        """Entries of all matrices that every token passes, experts apart."""
        return sum(gemm.parameters for gemm in self.token_gemms)


def dtype_bytes(dtype: str, model: ModelSpec) -> float:
    """Bytes of one activation or KV entry; ``auto`` means the model's own dtype."""
    return _BYTES.get(model.torch_dtype if dtype == "auto" else dtype, 2.0)


def weight_bytes_per_parameter(dtype: str, quantization: str | None, model: ModelSpec) -> float:
    """Bytes of one weight, quantised or not."""
    if quantization:
        return _QUANTISED_BYTES.get(quantization.lower(), 1.0)
    return dtype_bytes(dtype, model)


def kv_bytes_per_entry(kv_cache_dtype: str | None, dtype: str, model: ModelSpec) -> float:
    """Bytes of one KV-cache entry: 1 for an fp8 or int8 cache, else those of the model's dtype."""
    if kv_cache_dtype and kv_cache_dtype.startswith(("fp8", "int8")):
        return 1.0
    return dtype_bytes(dtype, model)


def geometry(
    model: ModelSpec,
    *,
    tensor_parallel_size: int = 1,
    expert_parallel_size: int = 1,
    dtype: str = "auto",
    quantization: str | None = None,
    kv_cache_dtype: str | None = None,
) -> Geometry:
    """Cut a model over GPUs and return the busiest one's share.

    Attention heads and MLP widths are divided by the tensor-parallel size (KV heads down to one a GPU); with expert
    parallelism whole experts are divided instead of their widths.
    """
    tp, ep = tensor_parallel_size, expert_parallel_size
    heads = ceil(model.num_attention_heads / tp)
    dense_layers = model.num_hidden_layers - model.moe_layers
    token_gemms = (*_attention(model, heads, tp), *_mlp(model, tp, dense_layers), *_moe_shared(model, tp))
    expert_width = model.moe_intermediate_size if ep > 1 else ceil(model.moe_intermediate_size / tp)
    matrices = 3 if model.mlp_gated else 2
    entry = kv_bytes_per_entry(kv_cache_dtype, dtype, model)
    return Geometry(
        token_gemms=token_gemms,
        head=Gemm("lm_head", ceil(model.vocab_size / tp), model.hidden_size, 1),
        expert_parameters=matrices * model.hidden_size * expert_width * model.moe_layers,
        experts_on_rank=ceil(model.num_experts / ep) if model.is_moe else 0,
        moe_layers=model.moe_layers,
        layers=model.num_hidden_layers,
        weight_bytes_per_parameter=weight_bytes_per_parameter(dtype, quantization, model),
        attention_flops_per_pair=2.0 * heads * _pair_width(model) * model.num_hidden_layers,
        kv_bytes_per_token=_kv_entries(model, tp) * entry * model.num_hidden_layers,
    )


def _attention(model: ModelSpec, heads: int, tp: int) -> tuple[Gemm, ...]:
    layers, hidden = model.num_hidden_layers, model.hidden_size
    if model.is_mla:
        return _latent_attention(model, heads)
    kv_heads = max(1, ceil(model.num_key_value_heads / tp))
    return (
        Gemm("qkv", (heads + 2 * kv_heads) * model.head_dim, hidden, layers),
        Gemm("o", hidden, heads * model.head_dim, layers),
    )


def _latent_attention(model: ModelSpec, heads: int) -> tuple[Gemm, ...]:
    layers, hidden = model.num_hidden_layers, model.hidden_size
    nope, rope, value = model.qk_nope_head_dim or 0, model.qk_rope_head_dim or 0, model.v_head_dim or model.head_dim
    latent = model.kv_lora_rank or 0
    query_width = heads * (nope + rope)
    query = (
        (Gemm("q_a", model.q_lora_rank, hidden, layers), Gemm("q_b", query_width, model.q_lora_rank, layers))
        if model.q_lora_rank
        else (Gemm("q", query_width, hidden, layers),)
    )
    return (
        *query,
        Gemm("kv_a", latent + rope, hidden, layers),
        Gemm("kv_b", heads * (nope + value), latent, layers),
        Gemm("o", hidden, heads * value, layers),
    )


def _mlp(model: ModelSpec, tp: int, layers: int) -> tuple[Gemm, ...]:
    if layers == 0:
        return ()
    return _feed_forward("", model, ceil(model.intermediate_size / tp), layers)


def _moe_shared(model: ModelSpec, tp: int) -> tuple[Gemm, ...]:
    if not model.is_moe:
        return ()
    router = Gemm("router", model.num_experts, model.hidden_size, model.moe_layers)
    if model.shared_expert_intermediate_size == 0:
        return (router,)
    width = ceil(model.shared_expert_intermediate_size / tp)
    return (router, *_feed_forward("shared_", model, width, model.moe_layers))


def _feed_forward(prefix: str, model: ModelSpec, width: int, layers: int) -> tuple[Gemm, Gemm]:
    up = 2 * width if model.mlp_gated else width
    return (
        Gemm(f"{prefix}gate_up", up, model.hidden_size, layers),
        Gemm(f"{prefix}down", model.hidden_size, width, layers),
    )


def _pair_width(model: ModelSpec) -> float:
    """Multiplications a head does for one query-key pair: the score and the weighted value."""
    if model.is_mla:
        return (model.qk_nope_head_dim or 0) + (model.qk_rope_head_dim or 0) + (model.v_head_dim or model.head_dim)
    return 2 * model.head_dim


def _kv_entries(model: ModelSpec, tp: int) -> int:
    """KV-cache entries of one token in one layer on one GPU; MLA's latent vector is not divided."""
    if model.is_mla:
        return (model.kv_lora_rank or 0) + (model.qk_rope_head_dim or 0)
    return 2 * max(1, ceil(model.num_key_value_heads / tp)) * model.head_dim
