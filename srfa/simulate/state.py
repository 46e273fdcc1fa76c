"""What a simulated server holds while it runs, as flat arrays of records that compiled code reads and writes.

A live request has a slot; slots are recycled. Arrays that could hold every request are allocated and not touched, so
that memory in use follows the requests that are alive.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from srfa.operator_kernels import TOTALS_DTYPE
from srfa.ragged import FloatArray, IntArray
from srfa.simulate.load import RequestLoad
from srfa.simulate.outside import Outside
from srfa.simulate.server import Server

whole: Any = np.int64
"""Compiled functions take whole numbers of one width: another would compile them, and all they call, once more."""
NOTHING: Final = -1
WAITING, RUNNING, PREEMPTED, ENDED = range(4)
"""Status of a slot."""
LAST: Final = 2
"""What an entry yields that ends its request; others yield one token or none."""
FIRST_COME, BY_PRIORITY = range(2)
"""Order of the waiting queue."""
IDLE, SCHEDULE, OUTPUT = range(3)
"""What an engine does next."""
EVENTS, TIMING = range(2)
"""Where the event loop stands: between events, or with a step put together whose time is not known yet."""


def _numbers(kind: type[np.generic], *names: str) -> list[tuple[str, type[np.generic]]]:
    return [(name, kind) for name in names]


SLOT_DTYPE: Final = np.dtype(
    _numbers(
        np.int32,
        "request", "rank", "prompt", "end", "tokens", "computed", "placeholders", "in_flight", "stale",
        "n_blocks", "n_cached", "tail", "next", "prev", "status", "preemptions",
    )
)  # fmt: skip
"""A live request, one cache line: its lengths, vLLM's counters, its last block-table node, its neighbours in a queue.

``tokens`` are those known (prompt and delivered output), ``end`` those it has when it is done; ``placeholders``,
``in_flight`` and ``stale`` are vLLM's ``num_output_placeholders``, ``num_in_flight_tokens`` and
``num_stale_output_tokens``.
"""
BLOCK_DTYPE: Final = np.dtype(
    [("name", np.int64), *_numbers(np.int32, "is_named", "references", "next", "prev", "chain_next", "chain_prev")]
)
"""A KV block: its name while it is cached, its neighbours in the free queue and among blocks of one bucket."""
NODE_DTYPE: Final = np.dtype(_numbers(np.int32, "block", "prev"))
"""One entry of a block table; a table is a list from its last entry to its first, the order of freeing."""
ENDS_DTYPE: Final = np.dtype(_numbers(np.int32, "head", "tail"))
RANK_DTYPE: Final = np.dtype(
    _numbers(
        np.int64,
        "n_running", "n_waiting", "head", "tail", "inbox_head", "inbox_tail", "free", "n_unfinished", "n_preempted",
    )
)  # fmt: skip
"""A scheduler: its queues and counters; ``free`` is its free KV blocks."""
ENGINE_DTYPE: Final = np.dtype(
    [
        *_numbers(np.float64, "at_us", "last_output_us"),
        *_numbers(np.int64, "phase", "first_rank", "end_rank", "n_flying", "oldest", "was_empty"),
    ]
)
"""Schedulers that step together: when and what next, and the steps in flight."""
ENTRY_DTYPE: Final = np.dtype(_numbers(np.int32, "slot", "request", "new", "computed", "yields"))
"""A request of a step: tokens computed in it and before it, and whether it ends with a token."""
FRAME_DTYPE: Final = np.dtype(
    [
        *_numbers(np.float64, "t_start_us", "t_output_us", "step_time_us"),
        *_numbers(np.int64, "n_entries", "running", "waiting", "preempted", "finished", "free"),
    ]
)
"""A step of one scheduler."""
EVENT_DTYPE: Final = np.dtype([("at_us", np.float64), ("request", np.int64)])
RESULT_DTYPE: Final = np.dtype(
    [
        *_numbers(
            np.float64,
            "t_arrived_us", "t_queued_us", "t_first_scheduled_us", "t_first_token_us", "t_finished_us",
            "t_departed_us", "kv_usage_at_queue",
        ),
        *_numbers(np.int64, "cached_tokens", "num_preemptions", "running_at_queue", "waiting_at_queue"),
    ]
)  # fmt: skip
"""All that is kept of a request that ended."""
FACTS_DTYPE: Final = np.dtype(
    [
        *_numbers(
            np.int64,
            "budget", "max_num_seqs", "max_model_len", "block_size", "num_blocks", "n_buckets", "chunked", "caching",
            "threshold", "policy", "watermark_blocks", "reserve", "depth", "max_concurrency", "name_stride",
            "host_blocks", "recording",
        ),
        *_numbers(np.float64, "offload_bytes", "host_block_bytes", "between_us", "between_request_us", "wall_ratio"),
    ]
)  # fmt: skip
"""The server, resolved; ``depth`` is how many steps may be in flight."""
COUNTS_DTYPE: Final = np.dtype(
    [
        *_numbers(
            np.int64,
            "sent", "n_out", "n_transit", "n_departures", "n_ended", "n_steps", "free_node", "node_bump", "free_slot",
            "slot_bump", "stage", "engine", "frame", "answered", "log_steps", "log_entries",
        ),
        *_numbers(np.float64, "seat_us"),
    ]
)  # fmt: skip
"""Where the whole simulation stands."""


class Pool(NamedTuple):
    """KV blocks of all ranks, their names' buckets, the block tables, and the host's tier in the same form."""

    blocks: NDArray[Any]
    buckets: NDArray[Any]
    nodes: NDArray[Any]
    hits: NDArray[np.int32]
    host: NDArray[Any]
    host_buckets: NDArray[Any]


class Asked(NamedTuple):
    """The load and the delays outside the steps."""

    arrival_us: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    priority: IntArray
    names: IntArray
    offsets: IntArray
    alpha_us: FloatArray
    post_us: FloatArray
    alpha_token_us: FloatArray


class World(NamedTuple):
    """Everything; ``counts`` and ``facts`` hold one record each."""

    facts: NDArray[Any]
    counts: NDArray[Any]
    asked: Asked
    pool: Pool
    slots: NDArray[Any]
    ranks: NDArray[Any]
    engines: NDArray[Any]
    running: NDArray[np.int32]
    heap: NDArray[np.int32]
    entries: NDArray[Any]
    frames: NDArray[Any]
    totals: NDArray[Any]
    times_us: FloatArray
    transit: NDArray[Any]
    departures: NDArray[Any]
    results: NDArray[Any]
    log_frames: NDArray[Any]
    log_totals: NDArray[Any]
    log_entries: NDArray[Any]


_LOG_STEPS: Final = 4096
_LOG_ENTRIES: Final = 65536


def world_of(load: RequestLoad, server: Server, outside: Outside, kv_token_bytes: float, *, recording: bool) -> World:
    """Return an empty server with a checked load before it."""
    n_ranks, n_requests, seqs = server.data_parallel_size, load.n_requests, server.max_num_seqs
    longest = int((load.prompt_tokens + load.output_tokens).max(initial=1))
    table_blocks = -(-longest // server.block_size) + 1
    facts = _facts(server, load, outside, table_blocks, kv_token_bytes)
    facts["recording"] = recording
    depth, heap_size = int(facts["depth"][0]), n_requests * (server.scheduling_policy == "priority")
    n_logged = (n_ranks * depth) if recording else 0
    return World(
        facts=facts,
        counts=_counts(),
        asked=_asked(load, outside),
        pool=_pool(server, int(facts["n_buckets"][0]), min(seqs, n_requests) * table_blocks, table_blocks),
        slots=np.empty(n_requests, dtype=SLOT_DTYPE),
        ranks=_ranks(n_ranks, server.num_gpu_blocks),
        engines=_engines(n_ranks, lockstep=server.lockstep),
        running=np.zeros((n_ranks, seqs), dtype=np.int32),
        heap=np.empty((n_ranks, heap_size), dtype=np.int32),
        entries=np.zeros((n_ranks, depth, seqs), dtype=ENTRY_DTYPE),
        frames=np.zeros((n_ranks, depth), dtype=FRAME_DTYPE),
        totals=np.zeros((n_ranks, depth), dtype=TOTALS_DTYPE),
        times_us=np.zeros(n_ranks),
        transit=np.empty(n_requests, dtype=EVENT_DTYPE),
        departures=np.empty(n_requests if load.max_concurrency else 0, dtype=EVENT_DTYPE),
        results=np.zeros(n_requests, dtype=RESULT_DTYPE),
        log_frames=np.zeros(_LOG_STEPS + n_logged if recording else 0, dtype=FRAME_DTYPE),
        log_totals=np.zeros(_LOG_STEPS + n_logged if recording else 0, dtype=TOTALS_DTYPE),
        log_entries=np.zeros(_LOG_ENTRIES + n_logged * seqs if recording else 0, dtype=ENTRY_DTYPE),
    )


def _asked(load: RequestLoad, outside: Outside) -> Asked:
    names = load.block_hashes.values
    if names.size and int(names.min()) < 0:  # below zero are the names of blocks that nobody shares
        names = np.unique(names, return_inverse=True)[1].reshape(-1)
    floats = (load.arrival_us, outside.alpha_us, outside.post_us, outside.alpha_token_us)
    arrival, alpha, post, per_token = (np.ascontiguousarray(array, dtype=np.float64) for array in floats)
    whole = (load.prompt_tokens, load.output_tokens, load.priority, names, load.block_hashes.offsets)
    prompt, output, priority, values, offsets = (np.ascontiguousarray(array, dtype=np.int64) for array in whole)
    return Asked(arrival, prompt, output, priority, values, offsets, alpha, post, per_token)


def _facts(
    server: Server, load: RequestLoad, outside: Outside, table_blocks: int, kv_token_bytes: float
) -> NDArray[Any]:
    facts = np.zeros(1, dtype=FACTS_DTYPE)
    values = {
        "budget": server.max_num_batched_tokens,
        "max_num_seqs": server.max_num_seqs,
        "max_model_len": server.max_model_len,
        "block_size": server.block_size,
        "num_blocks": server.num_gpu_blocks,
        "n_buckets": _power_of_two(max(server.num_gpu_blocks, server.kv_offload_blocks)),
        "chunked": server.enable_chunked_prefill,
        "caching": server.enable_prefix_caching,
        "threshold": server.long_prefill_token_threshold,
        "policy": BY_PRIORITY if server.scheduling_policy == "priority" else FIRST_COME,
        "watermark_blocks": int(server.watermark * server.num_gpu_blocks),
        "reserve": server.scheduler_reserve_full_isl,
        "depth": 2 if server.async_scheduling else 1,
        "max_concurrency": load.max_concurrency or 0,
        "name_stride": table_blocks,
        "host_blocks": server.kv_offload_blocks if server.enable_prefix_caching else 0,
        "offload_bytes": server.cpu_offload_bytes,
        "host_block_bytes": kv_token_bytes * server.block_size,
        "between_us": outside.between_steps_us,
        "between_request_us": outside.between_steps_request_us,
        "wall_ratio": outside.wall_ratio,
    }
    for name, value in values.items():
        facts[name] = value
    return facts


def _counts() -> NDArray[Any]:
    counts = np.zeros(1, dtype=COUNTS_DTYPE)
    counts["free_node"] = counts["free_slot"] = NOTHING
    counts["seat_us"] = -np.inf
    return counts


def _pool(server: Server, n_buckets: int, table_nodes: int, table_blocks: int) -> Pool:
    n_ranks, count, host = server.data_parallel_size, server.num_gpu_blocks, server.kv_offload_blocks
    return Pool(
        blocks=_ring(n_ranks, count),
        buckets=_no_ends(n_ranks * n_buckets),
        nodes=np.empty(n_ranks * table_nodes, dtype=NODE_DTYPE),
        hits=np.zeros(table_blocks, dtype=np.int32),
        host=_ring(n_ranks, host + 1),
        host_buckets=_no_ends(n_ranks * n_buckets if host else 0),
    )


def _ring(n_ranks: int, count: int) -> NDArray[Any]:
    """Return the blocks of all ranks; the first of each rank, vLLM's null block, closes the ring of its free ones."""
    blocks = np.zeros(n_ranks * count, dtype=BLOCK_DTYPE)
    local = np.arange(n_ranks * count) % count
    first = np.arange(n_ranks * count) - local
    blocks["next"], blocks["prev"] = first + (local + 1) % count, first + (local - 1) % count
    return blocks


def _no_ends(count: int) -> NDArray[Any]:
    ends = np.empty(count, dtype=ENDS_DTYPE)
    ends["head"] = ends["tail"] = NOTHING
    return ends


def _ranks(n_ranks: int, num_blocks: int) -> NDArray[Any]:
    ranks = np.zeros(n_ranks, dtype=RANK_DTYPE)
    for name in ("head", "tail", "inbox_head", "inbox_tail"):
        ranks[name] = NOTHING
    ranks["free"] = num_blocks - 1
    return ranks


def _engines(n_ranks: int, *, lockstep: bool) -> NDArray[Any]:
    engines = np.zeros(1 if lockstep else n_ranks, dtype=ENGINE_DTYPE)
    engines["first_rank"] = np.arange(len(engines))
    engines["end_rank"] = n_ranks if lockstep else np.arange(len(engines)) + 1
    engines["at_us"], engines["last_output_us"] = np.inf, -np.inf
    return engines


def _power_of_two(at_least: int) -> int:
    return 1 << max(at_least - 1, 1).bit_length()
