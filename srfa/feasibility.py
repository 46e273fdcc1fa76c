"""Can this server start, and serve this workload? Divisibility and memory, before anything runs.

The rules are those on which vLLM 0.32 refuses to start (``vllm/config``, ``vllm/model_executor/layers``), and the
memory of a GPU. The vocabulary needs no rule: vLLM pads it.
"""

from __future__ import annotations

from typing import Final

from srfa.memory import kv_bytes_per_token, kv_cache_dtype, weight_bytes
from srfa.precision import DTYPE_BYTES, compute_dtype
from srfa.specs import BenchmarkJob, EngineArgs, GpuSpec, ModelSpec, Workload
from srfa.units import BYTES_PER_GIB

DEFAULT_GPU_MEMORY_UTILIZATION: Final = 0.9
DEFAULT_MAX_NUM_SEQS: Final = 256
_RUNTIME_GIB: Final = 1.0
"""What CUDA, NCCL and captured graphs take on a GPU beside tensors: about one GiB on servers we have seen."""
_LARGE_GPU_GIB: Final = 70
_DEFAULT_TOKENS_LARGE: Final = 8192
_DEFAULT_TOKENS: Final = 2048
"""vLLM's ``max_num_batched_tokens`` for a server when nobody says, on GPUs of 70 GiB and more, and on others."""
_CPU_BLOCK: Final = 32


def infeasible(job: BenchmarkJob, model: ModelSpec, gpu: GpuSpec) -> str | None:
    """Return why ``job`` cannot run, with the offending value and what would work, or None where it can."""
    return infeasible_server(job.engine, model, gpu) or infeasible_workload(job.workload, job.engine, model)


def infeasible_server(engine: EngineArgs, model: ModelSpec, gpu: GpuSpec) -> str | None:
    """Return why a server with these arguments cannot start, or None."""
    return (
        _tensor_parallel(engine, model, gpu)
        or _widths(engine, model)
        or _experts(engine, model)
        or _node(engine, gpu)
        or _lengths(engine, model)
        or (_cpu(engine, gpu) if gpu.datasheet.kind == "cpu" else None)
        or _memory(engine, model, gpu)
    )


def infeasible_workload(workload: Workload, engine: EngineArgs, model: ModelSpec) -> str | None:
    """Return why a server that starts would refuse requests of this workload, or None."""
    limit = context_tokens(engine, model)
    longest = workload.longest_request_tokens
    if longest <= limit:
        return None
    return (
        f"the longest request of workload {workload.name} has {longest} tokens, max_model_len={limit} of {model.name} "
        f"is less; shorten the workload or raise max_model_len (at most {model.max_position_embeddings})"
    )


def context_tokens(engine: EngineArgs, model: ModelSpec) -> int:
    """Return the longest sequence the server takes: ``max_model_len``, else the model's own limit."""
    return engine.max_model_len or model.max_position_embeddings


def batched_tokens(engine: EngineArgs, gpu: GpuSpec) -> int:
    """Return the tokens a step may hold: ``max_num_batched_tokens``, else vLLM's choice for a GPU of this size."""
    default = _DEFAULT_TOKENS_LARGE if gpu.datasheet.memory_gib >= _LARGE_GPU_GIB else _DEFAULT_TOKENS
    return engine.max_num_batched_tokens or default


def activation_gib(engine: EngineArgs, model: ModelSpec, gpu: GpuSpec) -> float:
    """Return GiB that a GPU keeps beside weights and KV cache: the runtime's, and the peak of a full step.

    A step's peak is the residual stream and the widest layer of each token, and float32 logits of each sequence.
    """
    tp = engine.tensor_parallel_size
    dense = 2 * model.intermediate_size / tp
    routed = model.num_experts_per_tok * (2 * model.moe_intermediate_size / tp + model.hidden_size)
    numbers = batched_tokens(engine, gpu) * (4 * model.hidden_size + max(dense, routed))
    logits = (engine.max_num_seqs or DEFAULT_MAX_NUM_SEQS) * model.vocab_size * DTYPE_BYTES["float32"]
    runtime = 0.0 if gpu.datasheet.kind == "cpu" else _RUNTIME_GIB
    return runtime + (numbers * DTYPE_BYTES[compute_dtype(model, engine.dtype)] + logits) / BYTES_PER_GIB


def _tensor_parallel(engine: EngineArgs, model: ModelSpec, gpu: GpuSpec) -> str | None:
    return indivisible_heads(model, engine.tensor_parallel_size, most=gpu.datasheet.gpus_per_node)


def indivisible_heads(model: ModelSpec, tensor_parallel_size: int, *, most: int) -> str | None:
    """Return why the model's heads cannot be shared by so many tensor ranks, with the sizes up to ``most`` that can."""
    tp, heads, kv_heads = tensor_parallel_size, model.num_attention_heads, model.num_key_value_heads
    if heads % tp:
        return _indivisible(f"num_attention_heads={heads}", tp, model, _divisors(heads, most))
    if not model.is_mla and kv_heads % tp and tp % kv_heads:
        fits = [n for n in _divisors(heads, most) if not (kv_heads % n and n % kv_heads)]
        return (
            f"tensor_parallel_size={tp} neither divides num_key_value_heads={kv_heads} of {model.name} nor is a "
            f"multiple of it; use {_one_of(fits)}"
        )
    return None


def _widths(engine: EngineArgs, model: ModelSpec) -> str | None:
    """Every sharded MLP width is divided exactly: routed experts over tensor x data ranks unless whole experts move."""
    tp, ranks = engine.tensor_parallel_size, engine.gpu_count
    shared = model.n_shared_experts * model.shared_expert_intermediate_size
    if model.moe_layers < model.num_hidden_layers and model.intermediate_size % tp:
        return _indivisible(f"intermediate_size={model.intermediate_size}", tp, model, [])
    if shared % tp:
        return _indivisible(f"the shared experts' width {shared}", tp, model, [])
    if model.is_moe and not engine.enable_expert_parallel and model.moe_intermediate_size % ranks:
        return (
            f"{ranks} ranks do not divide moe_intermediate_size={model.moe_intermediate_size} of {model.name}; "
            "use fewer ranks or enable_expert_parallel"
        )
    return None


def _experts(engine: EngineArgs, model: ModelSpec) -> str | None:
    if not engine.enable_expert_parallel:
        return None
    if not model.is_moe:
        return f"enable_expert_parallel=true needs experts, {model.name} is dense; leave it out"
    ranks = engine.expert_parallel_size
    if model.num_experts % ranks:
        return (
            f"expert parallel size {ranks} (tensor x data ranks) does not divide num_experts={model.num_experts} of "
            f"{model.name}; use {_one_of(_divisors(model.num_experts, ranks))} ranks"
        )
    return None


def _node(engine: EngineArgs, gpu: GpuSpec) -> str | None:
    available = gpu.datasheet.gpus_per_node
    if engine.gpu_count <= available:
        return None
    return (
        f"tensor_parallel_size={engine.tensor_parallel_size} x data_parallel_size={engine.data_parallel_size} needs "
        f"{engine.gpu_count} GPUs, a node of {gpu.name} has {available}; use at most {available}"
    )


def _lengths(engine: EngineArgs, model: ModelSpec) -> str | None:
    longest, tokens = context_tokens(engine, model), engine.max_num_batched_tokens
    if longest > model.max_position_embeddings:
        return (
            f"max_model_len={longest} is more than max_position_embeddings={model.max_position_embeddings} of "
            f"{model.name}; use at most {model.max_position_embeddings}"
        )
    if tokens and engine.max_num_seqs and tokens < engine.max_num_seqs:
        return f"max_num_batched_tokens={tokens} is less than max_num_seqs={engine.max_num_seqs}; raise it to that"
    if tokens and engine.enable_chunked_prefill is False and tokens < longest:
        return (
            f"max_num_batched_tokens={tokens} is less than max_model_len={longest}, and enable_chunked_prefill=false "
            "must take a prompt in one step; raise it or switch chunked prefill on"
        )
    return None


def _cpu(engine: EngineArgs, gpu: GpuSpec) -> str | None:
    """What vLLM 0.32 cannot do on a CPU, and what a profile of one CPU does not offer."""
    if engine.gpu_count > 1:
        return f"tensor_parallel_size={engine.tensor_parallel_size}: CPU profile {gpu.name} runs one worker; use 1"
    if engine.cpu_offload_gb or engine.kv_offloading_size:
        return f"cpu_offload_gb and kv_offloading_size move data off a GPU, {gpu.name} is a CPU; leave them out"
    if engine.block_size and engine.block_size % _CPU_BLOCK:
        return (
            f"block_size={engine.block_size} is no multiple of {_CPU_BLOCK}, as CPU profile {gpu.name} needs; use one"
        )
    return None


def _memory(engine: EngineArgs, model: ModelSpec, gpu: GpuSpec) -> str | None:
    weights = max(0.0, weight_bytes(model, engine) / BYTES_PER_GIB - engine.cpu_offload_gb)
    sequence = _sequence_kv_gib(engine, model, gpu)
    fixed = (engine.kv_cache_memory_bytes or 0) / BYTES_PER_GIB
    if fixed and sequence > fixed:
        return (
            f"kv_cache_memory_bytes={engine.kv_cache_memory_bytes} ({fixed:.2f} GiB) is less than one sequence of "
            f"max_model_len={context_tokens(engine, model)} of {model.name} takes ({sequence:.2f} GiB); raise it"
        )
    activations = activation_gib(engine, model, gpu)
    share = 1.0 if fixed else engine.gpu_memory_utilization or DEFAULT_GPU_MEMORY_UTILIZATION
    available = share * gpu.datasheet.memory_gib
    needed = weights + (fixed or sequence) + activations
    if needed <= available:
        return None
    return (
        f"{model.name} needs {needed:.1f} GiB on each {gpu.name} (weights {weights:.1f}, KV cache of at least one "
        f"sequence of {context_tokens(engine, model)} tokens {fixed or sequence:.1f}, activations {activations:.1f}), "
        f"which offers {available:.1f} ({share:g} x {gpu.datasheet.memory_gib:g}); raise tensor_parallel_size or "
        "cpu_offload_gb, quantize, or lower max_model_len"
    )


def _sequence_kv_gib(engine: EngineArgs, model: ModelSpec, gpu: GpuSpec) -> float:
    """KV cache of one sequence of full length; a sliding window keeps the window and the tokens of a step."""
    tokens = context_tokens(engine, model)
    if model.sliding_window:
        tokens = min(tokens, model.sliding_window + batched_tokens(engine, gpu))
    each = kv_bytes_per_token(model, engine.tensor_parallel_size, kv_cache_dtype(model, engine))
    return tokens * each / BYTES_PER_GIB


def _indivisible(what: str, tp: int, model: ModelSpec, allowed: list[int]) -> str:
    remedy = f"use {_one_of(allowed)}" if allowed else "use one that does"
    return f"tensor_parallel_size={tp} does not divide {what} of {model.name}; {remedy}"


def _divisors(number: int, limit: int) -> list[int]:
    return [n for n in range(1, min(number, limit) + 1) if number % n == 0]


def _one_of(numbers: list[int]) -> str:
    """Write ``1, 2, 4 or 8``."""
    *head, last = map(str, numbers)
    return f"{', '.join(head)} or {last}" if head else last
