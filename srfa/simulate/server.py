"""The server that is simulated: what vLLM's scheduler and KV cache resolved to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Server:
    """One engine, by vLLM's names.

    Parameters
    ----------
    num_gpu_blocks
        KV blocks as vLLM counts them: one of them is its null block and holds nothing.
    long_prefill_token_threshold
        Longest chunk of a prompt while other requests are there; 0 is no limit.
    watermark
        Share of the KV blocks that an admission must leave free while other requests run.
    scheduler_reserve_full_isl
        True: a request is admitted only where its whole sequence fits.
    async_scheduling
        True: a step is put together while the one before it runs, so that it sees that one's effects a step late.
    data_parallel_size
        Engines that share the requests, each with its own scheduler and cache.
    lockstep
        True: data-parallel engines wait for each other in every step (a MoE model).
    cpu_offload_bytes
        Weights that every step fetches over PCIe.
    kv_offload_blocks
        Blocks that host memory keeps for prefix hits; 0 is no offload.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    block_size: int
    num_gpu_blocks: int
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    long_prefill_token_threshold: int = 0
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    watermark: float = 0.0
    scheduler_reserve_full_isl: bool = True
    async_scheduling: bool = False
    data_parallel_size: int = 1
    lockstep: bool = False
    cpu_offload_bytes: float = 0.0
    kv_offload_blocks: int = 0
