"""The matrices of a model on one GPU: what a token must be multiplied with, and what must be read to do it.

One place knows how tensor and expert parallelism cut a model, so that memory, speed of light and features agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from srfa.precision import ByStorage, kv_number_bytes, parameter_bytes
from srfa.specs import ModelSpec


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
    stored
        Bytes of one parameter of each kind.
    """

    token_gemms: tuple[Gemm, ...]
    head: Gemm
    expert_parameters: int
    experts_on_rank: int
    moe_layers: int
    layers: int
    attention_flops_per_pair: float
    kv_bytes_per_token: float
    stored: ByStorage

    @property
    def token_parameters(self) -> int:
        """Entries of all matrices that every token passes, experts apart."""
        return sum(gemm.parameters for gemm in self.token_gemms)

    @property
    def router_parameters(self) -> int:
        """Entries of the routers: kept in the model's dtype whatever the quantisation."""
        return sum(gemm.parameters for gemm in self.token_gemms if gemm.name == "router")

    @property
    def shared_bytes(self) -> float:
        """Bytes read whatever the tokens are: every matrix but the routed experts', the head included."""
        plain = self.router_parameters + self.head.parameters
        return plain * self.stored.plain + (self.token_parameters - self.router_parameters) * self.stored.linear

    @property
    def expert_bytes(self) -> float:
        """Bytes of one routed expert on this GPU, over all MoE layers."""
        return self.expert_parameters * self.stored.experts


def geometry(
    model: ModelSpec,
    *,
    tensor_parallel_size: int = 1,
    expert_parallel_size: int = 1,
    data_parallel_size: int = 1,
    dtype: str = "auto",
    quantization: str | None = None,
    kv_cache_dtype: str | None = None,
) -> Geometry:
    """Cut a model over GPUs and return the busiest one's share.

    Attention heads and MLP widths are divided by the tensor-parallel size (KV heads down to one a GPU); with expert
    parallelism whole experts are divided instead of their widths; data-parallel ranks share the experts' widths.
    """
    tp, ep = tensor_parallel_size, expert_parallel_size
    heads = ceil(model.num_attention_heads / tp)
    dense_layers = model.num_hidden_layers - model.moe_layers
    token_gemms = (*_attention(model, heads, tp), *_mlp(model, tp, dense_layers), *_moe_shared(model, tp))
    expert_width = model.moe_intermediate_size if ep > 1 else model.moe_intermediate_size / (tp * data_parallel_size)
    matrices = 3 if model.mlp_gated else 2
    return Geometry(
        token_gemms=token_gemms,
        head=Gemm("lm_head", ceil(model.vocab_size / tp), model.hidden_size, 1),
        expert_parameters=ceil(matrices * model.hidden_size * expert_width * model.moe_layers),
        experts_on_rank=ceil(model.num_experts / ep) if model.is_moe else 0,
        moe_layers=model.moe_layers,
        layers=model.num_hidden_layers,
        attention_flops_per_pair=2.0 * heads * _pair_width(model) * model.num_hidden_layers,
        kv_bytes_per_token=_kv_entries(model, tp) * kv_number_bytes(model, kv_cache_dtype, dtype),
        stored=parameter_bytes(model, dtype, quantization),
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
    width = ceil(model.n_shared_experts * model.shared_expert_intermediate_size / tp)
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
    """KV-cache entries of one token on one GPU, over all layers; MLA's latent vector is not divided."""
    if model.is_mla:
        return model.num_hidden_layers * ((model.kv_lora_rank or 0) + (model.qk_rope_head_dim or 0))
    return model.num_hidden_layers * 2 * max(1, ceil(model.num_key_value_heads / tp)) * model.head_dim
