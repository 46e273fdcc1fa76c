"""Can a measured configuration have been served? What would otherwise be read silently as something else is refused."""

from __future__ import annotations

from collections.abc import Iterator

from srfa.errors import ObservationsError
from srfa.feasibility import indivisible_heads
from srfa.observations import Configuration
from srfa.precision import DTYPE_BYTES, KV_DTYPE_BYTES, is_known_method
from srfa.specs import GpuSpec, ModelSpec

_MOST_RANKS = 64
"""Tensor parallel sizes that are offered as a remedy: measured servers may span nodes."""


def refuse_unservable(configuration: Configuration, model: ModelSpec, gpu: GpuSpec) -> None:
    """Do nothing where vLLM 0.32 can have served this.

    Raises
    ------
    ObservationsError
        A value means nothing to vLLM, or it would not start with it; every one is named, with what would do.
    """
    if faults := [*_formats(configuration), *_ranks(configuration, model)]:
        where = f"observations of {model.name} on {gpu.name}"
        raise ObservationsError("\n".join(f"{where}: {fault}" for fault in faults))


def _formats(configuration: Configuration) -> Iterator[str]:
    dtypes, kv_dtypes = ("auto", *DTYPE_BYTES), ("auto", *KV_DTYPE_BYTES)
    if configuration.dtype not in dtypes:
        yield f"dtype={configuration.dtype!r} should be one of {', '.join(dtypes)}; correct the column"
    if configuration.quantization and not is_known_method(configuration.quantization):
        yield (
            f"quantization={configuration.quantization!r} should be a method of vLLM, such as fp8, awq, gptq_marlin or "
            "compressed-tensors; correct the column, or leave it null for the checkpoint's own"
        )
    if configuration.kv_cache_dtype not in (None, "", *kv_dtypes):
        known = ", ".join(kv_dtypes)
        yield f"kv_cache_dtype={configuration.kv_cache_dtype!r} should be one of {known}; correct the column"


def _ranks(configuration: Configuration, model: ModelSpec) -> Iterator[str]:
    """Yield what stops vLLM at its start: tensor ranks that cannot share the heads, expert ranks without experts."""
    expert_ranks = configuration.expert_parallel_size
    if said := indivisible_heads(model, configuration.tensor_parallel_size, most=_MOST_RANKS):
        yield said
    if expert_ranks > 1 and not model.is_moe:
        yield f"expert_parallel_size={expert_ranks} needs experts, {model.name} is dense; use 1"
    elif model.is_moe and expert_ranks > model.num_experts:
        yield f"expert_parallel_size={expert_ranks} leaves ranks without experts, {model.name} has {model.num_experts}"
