"""Floating-point operations and bytes of a step, and the time no hardware can undercut.

All arrays have one entry a step; all figures are those of the busiest GPU of the server. Times are microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from srfa.catalog import Catalog
from srfa.geometry import Geometry, geometry
from srfa.observations import Configuration, Observations
from srfa.precision import FP8_METHODS, compute_dtype
from srfa.ragged import FloatArray
from srfa.served import refuse_unservable
from srfa.specs import GpuSpec, ModelSpec
from srfa.units import BYTES_PER_US_PER_TBPS, FLOPS_PER_US_PER_TFLOPS


@dataclass(frozen=True, slots=True)
class Place:
    """One configuration with its facts resolved."""

    configuration: Configuration
    model: ModelSpec
    gpu: GpuSpec
    shard: Geometry


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step must do on the busiest GPU; every array has shape ``(n_steps,)``.

    Parameters
    ----------
    prefill_flops, decode_flops
        Matrix and attention operations of the tokens of each phase.
    prefill_attention_flops, decode_attention_flops
        The part of each that is attention.
    weight_bytes
        Weights read once a step, with the experts expected to be activated under balanced routing.
    least_weight_bytes
        The same with as few experts as any routing can activate.
    decode_kv_bytes, prefill_kv_bytes
        KV cache read by the decoding requests and by the context of prefill chunks.
    """

    prefill_flops: FloatArray
    decode_flops: FloatArray
    prefill_attention_flops: FloatArray
    decode_attention_flops: FloatArray
    weight_bytes: FloatArray
    least_weight_bytes: FloatArray
    decode_kv_bytes: FloatArray
    prefill_kv_bytes: FloatArray


def places(observations: Observations, catalog: Catalog) -> tuple[Place, ...]:
    """Resolve every configuration's model and GPU by name and cut the model over its GPUs."""
    return tuple(place_of(configuration, catalog) for configuration in observations.configurations)


def place_of(configuration: Configuration, catalog: Catalog) -> Place:
    """Resolve one configuration's model and GPU by name and cut the model over its GPUs.

    Raises
    ------
    CatalogError
        The model or the GPU is unknown.
    ObservationsError
        A dtype or a quantisation method is unknown, or no server splits the model over so many ranks.
    """
    model, gpu = catalog.resolve_model(configuration.model), catalog.resolve_gpu(configuration.gpu)
    refuse_unservable(configuration, model, gpu)
    shard = geometry(
        model,
        tensor_parallel_size=configuration.tensor_parallel_size,
        expert_parallel_size=configuration.expert_parallel_size,
        data_parallel_size=configuration.data_parallel_size,
        dtype=configuration.dtype,
        quantization=configuration.quantization,
        kv_cache_dtype=configuration.kv_cache_dtype,
    )
    return Place(configuration, model, gpu, shard)


def per_step(observations: Observations, where: tuple[Place, ...], fact: Callable[[Place], float]) -> FloatArray:
    """Return a configuration's fact for every step, shape ``(n_steps,)``."""
    return np.array([fact(place) for place in where], dtype=np.float64)[observations.configuration_index]


def step_work(observations: Observations, where: tuple[Place, ...]) -> StepWork:
    """Count the operations and bytes of every step.

    Matrices: ``2 n k`` operations a token; attention: ``sum(new x context + new^2 / 2)`` pairs in prefill, the context
    length in decode; experts: ``top_k`` a token, activated ``E (1 - (1 - k / E)^tokens)`` under balanced routing.
    """

    def fact(function: Callable[[Place], float]) -> FloatArray:
        return per_step(observations, where, function)

    prefill, decode = observations.numbers("prefill_tokens"), observations.numbers("decode_tokens")
    prefill_reqs, decode_reqs = observations.numbers("num_prefill_reqs"), observations.numbers("num_decode_reqs")
    new, context = observations.prefill_new_tokens, observations.prefill_context_tokens
    token_flops = fact(flops_per_token)
    head_flops = fact(lambda place: 2.0 * place.shard.head.parameters)
    pair_flops = fact(lambda place: place.shard.attention_flops_per_pair)
    kv_bytes = fact(lambda place: place.shard.kv_bytes_per_token)
    pairs = new.sum(new.values * (context.values + 0.5 * new.values))
    decode_context = observations.decode_context_tokens.sum()
    prefill_attention, decode_attention = pairs * pair_flops, decode_context * pair_flops
    tokens = prefill + decode
    shared_bytes = fact(lambda place: place.shard.shared_bytes)
    expert_bytes = fact(lambda place: place.shard.expert_bytes)
    return StepWork(
        prefill_flops=prefill * token_flops + prefill_reqs * head_flops + prefill_attention,
        decode_flops=decode * token_flops + decode_reqs * head_flops + decode_attention,
        prefill_attention_flops=prefill_attention,
        decode_attention_flops=decode_attention,
        weight_bytes=shared_bytes + expert_bytes * _activated(tokens, fact),
        least_weight_bytes=shared_bytes + expert_bytes * fact(_least_experts),
        decode_kv_bytes=decode_context * kv_bytes,
        prefill_kv_bytes=context.sum() * kv_bytes,
    )


def flops_per_token(place: Place) -> float:
    """Matrix operations of one token on one GPU, the head apart; routed experts spread evenly over the ranks."""
    return 2.0 * place.shard.token_parameters + expert_flops_per_token(place)


def expert_flops_per_token(place: Place) -> float:
    """The part of :func:`flops_per_token` that routed experts do; 0 in a dense model."""
    ranks = place.configuration.expert_parallel_size
    return 2.0 * place.shard.expert_parameters * place.model.num_experts_per_tok / ranks


def _least_experts(place: Place) -> float:
    return place.model.num_experts_per_tok / place.configuration.expert_parallel_size


def _activated(tokens: FloatArray, fact: Callable[[Callable[[Place], float]], FloatArray]) -> FloatArray:
    """Experts of one rank that ``tokens`` tokens touch in a layer, expected under balanced routing."""
    on_rank = fact(lambda place: float(place.shard.experts_on_rank))
    share = fact(lambda place: place.model.num_experts_per_tok / place.model.num_experts if place.model.is_moe else 0.0)
    untouched = np.exp(tokens * np.log1p(-np.minimum(share, 0.999999)))
    return np.asarray(on_rank * (1.0 - untouched))


def matrix_tflops(place: Place) -> float:
    """Dense matrix rate of the GPU in the precision this configuration computes in."""
    sheet, configuration = place.gpu.datasheet, place.configuration
    method = configuration.quantization or place.model.quantization or ""
    narrow = place.shard.stored.linear == 1.0 or place.shard.stored.experts == 1.0
    if narrow and method.lower() in FP8_METHODS and sheet.fp8_tflops:
        return sheet.fp8_tflops
    return _plain_tflops(place)


def _plain_tflops(place: Place) -> float:
    sheet = place.gpu.datasheet
    if compute_dtype(place.model, place.configuration.dtype) in {"float16", "half"} and sheet.fp16_tflops:
        return sheet.fp16_tflops
    return sheet.bf16_tflops


def plain_flops_per_us(place: Place) -> float:
    """Operations in a microsecond in the model's own dtype: of attention, router and head, which stay unquantised."""
    return _plain_tflops(place) * FLOPS_PER_US_PER_TFLOPS


def flops_per_us(place: Place) -> float:
    """Operations the GPU can do in a microsecond at its dense peak."""
    return matrix_tflops(place) * FLOPS_PER_US_PER_TFLOPS


def bytes_per_us(place: Place) -> float:
    """Bytes the GPU can read in a microsecond at its peak bandwidth."""
    return place.gpu.datasheet.memory_bandwidth_tbps * BYTES_PER_US_PER_TBPS


def floor_us(observations: Observations, catalog: Catalog) -> FloatArray:
    """Return the time no step can undercut: bytes that must be read at peak bandwidth, operations at peak rate.

    Returns
    -------
    FloatArray
        Microseconds, shape ``(n_steps,)``.
    """
    where = places(observations, catalog)
    work = step_work(observations, where)
    compute = (work.prefill_flops + work.decode_flops) / per_step(observations, where, flops_per_us)
    memory = (work.least_weight_bytes + work.decode_kv_bytes) / per_step(observations, where, bytes_per_us)
    return np.maximum(compute, memory)
