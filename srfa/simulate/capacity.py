"""The server that vLLM 0.32 makes of its arguments on a GPU that nobody measured: limits, and KV blocks from memory.

The KV cache takes what ``gpu_memory_utilization`` of the GPU's memory leaves after the weights of one rank and a
reserve: one GiB for CUDA, NCCL and captured graphs, and the tensors of a full step
(:func:`srfa.feasibility.activation_gib`). vLLM measures that reserve when it starts, so that its number of blocks is
another one; a server that was measured has it in its traces (``num_gpu_blocks``).
"""

from __future__ import annotations

from typing import Final

from srfa.errors import UsageError
from srfa.feasibility import activation_gib, context_tokens, infeasible_server
from srfa.memory import kv_bytes_per_token, kv_cache_dtype, weight_bytes
from srfa.observations import Configuration, configuration_of
from srfa.precision import compute_dtype
from srfa.simulate.server import Server
from srfa.simulate.workload import DEFAULT_BLOCK_SIZE
from srfa.specs import EngineArgs, GpuSpec, ModelSpec
from srfa.units import BYTES_PER_GIB

GPU_MEMORY_UTILIZATION: Final = 0.92
"""``CacheConfig.gpu_memory_utilization`` of vLLM 0.32."""
_LARGEST_GPU_GIB: Final = 160
_LARGE_GPU_GIB: Final = 70
_A100: Final = "a100"
_MLA_BLOCK_SIZE: Final = 64
"""What FlashMLA and FlashInfer take; vLLM raises its default to it."""
_CPU_BLOCK_SIZE: Final = 128
_CPU_MLA_BLOCK_SIZE: Final = 16
_NULL_BLOCKS: Final = 1
"""vLLM keeps one block that holds nothing."""


def server_for(model: ModelSpec, gpu: GpuSpec, engine: EngineArgs) -> Server:
    """Return the server of these arguments, with vLLM's choice for each one that is left out.

    Raises
    ------
    UsageError
        vLLM would not start, with the reason and what would do.
    """
    if problem := infeasible_server(engine, model, gpu):
        raise UsageError(problem)
    resolved = resolved_engine(model, gpu, engine)
    assert resolved.max_num_batched_tokens is not None
    assert resolved.max_num_seqs is not None
    assert resolved.block_size is not None
    return Server(
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        max_num_seqs=resolved.max_num_seqs,
        max_model_len=context_tokens(engine, model),
        block_size=resolved.block_size,
        num_gpu_blocks=kv_blocks(model, gpu, resolved),
        enable_chunked_prefill=engine.enable_chunked_prefill is not False,
        enable_prefix_caching=engine.enable_prefix_caching is not False,
        long_prefill_token_threshold=engine.long_prefill_token_threshold or 0,
        scheduling_policy=engine.scheduling_policy,
        watermark=engine.watermark or 0.0,
        async_scheduling=gpu.datasheet.kind == "cuda",
        data_parallel_size=engine.data_parallel_size,
        lockstep=model.is_moe and engine.data_parallel_size > 1,
        cpu_offload_bytes=float(int(engine.cpu_offload_gb * BYTES_PER_GIB)),
        kv_offload_blocks=_offload_blocks(model, resolved),
    )


def resolved_engine(model: ModelSpec, gpu: GpuSpec, engine: EngineArgs) -> EngineArgs:
    """Return the arguments with vLLM's defaults of this GPU for ``max_num_seqs``, the token budget and the block size.

    Source: ``EngineArgs.get_batch_defaults`` and ``_set_default_max_num_seqs_and_batched_tokens_args`` of
    ``vllm/engine/arg_utils.py`` for an API server, and ``vllm/platforms``.
    """
    default_seqs, tokens = _batch_defaults(gpu)
    if engine.enable_chunked_prefill is False:
        tokens = max(tokens, context_tokens(engine, model))
    tokens = min(tokens, (engine.max_num_seqs or default_seqs) * context_tokens(engine, model))
    tokens = engine.max_num_batched_tokens or tokens
    return engine.model_copy(
        update={
            "max_num_seqs": engine.max_num_seqs or min(default_seqs, tokens),
            "max_num_batched_tokens": tokens,
            "block_size": engine.block_size or _block_size(model, gpu),
        }
    )


def kv_blocks(model: ModelSpec, gpu: GpuSpec, engine: EngineArgs) -> int:
    """Return the KV blocks of one engine as vLLM counts them, its null block included.

    ``num_gpu_blocks_override``, else ``kv_cache_memory_bytes`` over the bytes of a block, else what memory leaves.

    Parameters
    ----------
    engine
        As :func:`resolved_engine` returns them.

    Raises
    ------
    UsageError
        Not even one sequence of full length fits.
    """
    if engine.num_gpu_blocks_override is not None:
        return engine.num_gpu_blocks_override
    available = engine.kv_cache_memory_bytes or _free_bytes(model, gpu, engine)
    blocks = int(available // _block_bytes(model, engine))
    assert engine.block_size is not None
    needed = -(-context_tokens(engine, model) // engine.block_size) + _NULL_BLOCKS
    if blocks < needed and not model.sliding_window:
        raise UsageError(
            f"{model.name} on {gpu.name}: {available / BYTES_PER_GIB:.2f} GiB hold {max(blocks, 0)} KV blocks, one "
            f"sequence of max_model_len={context_tokens(engine, model)} takes {needed}; lower max_model_len, raise "
            "tensor_parallel_size or gpu_memory_utilization"
        )
    return blocks


def configuration_for(
    model: ModelSpec, gpu: GpuSpec, engine: EngineArgs, *, software_version: str | None = None
) -> Configuration:
    """Return what physics depends on of a server, as observations of it would name it."""
    return configuration_of(
        {
            "gpu": gpu.name,
            "model": model.name,
            "tensor_parallel_size": engine.tensor_parallel_size,
            "expert_parallel_size": engine.expert_parallel_size,
            "data_parallel_size": engine.data_parallel_size,
            "dtype": compute_dtype(model, engine.dtype),
            "quantization": engine.quantization,
            "kv_cache_dtype": engine.kv_cache_dtype,
            "moe_routing": None,
            "moe_kernel": None,
            "software_version": software_version,
            "source": None,
        }
    )


def _batch_defaults(gpu: GpuSpec) -> tuple[int, int]:
    """Return vLLM's ``max_num_seqs`` and ``max_num_batched_tokens`` of an API server."""
    if gpu.datasheet.kind == "cpu":
        return 128, 2048
    if gpu.datasheet.memory_gib >= _LARGEST_GPU_GIB:
        return 1024, 16_384
    if gpu.datasheet.memory_gib >= _LARGE_GPU_GIB and _A100 not in gpu.vendor_name.lower():
        return 1024, 8192
    return 256, 2048


def _block_size(model: ModelSpec, gpu: GpuSpec) -> int:
    if gpu.datasheet.kind == "cpu":
        return _CPU_MLA_BLOCK_SIZE if model.is_mla else _CPU_BLOCK_SIZE
    return _MLA_BLOCK_SIZE if model.is_mla else DEFAULT_BLOCK_SIZE


def _free_bytes(model: ModelSpec, gpu: GpuSpec, engine: EngineArgs) -> float:
    share = engine.gpu_memory_utilization or GPU_MEMORY_UTILIZATION
    weights = max(0.0, weight_bytes(model, engine) - engine.cpu_offload_gb * BYTES_PER_GIB)
    return (share * gpu.datasheet.memory_gib - activation_gib(engine, model, gpu)) * BYTES_PER_GIB - weights


def _block_bytes(model: ModelSpec, engine: EngineArgs) -> float:
    assert engine.block_size is not None
    return engine.block_size * kv_bytes_per_token(model, engine.tensor_parallel_size, kv_cache_dtype(model, engine))


def _offload_blocks(model: ModelSpec, engine: EngineArgs) -> int:
    """Return the blocks in host memory: the buffer is shared by the tensor ranks, each of which keeps its part."""
    buffer = (engine.kv_offloading_size or 0.0) * BYTES_PER_GIB
    return int(buffer // (_block_bytes(model, engine) * engine.tensor_parallel_size))
