"""Compiled: the KV blocks, as vLLM's block pool keeps them (``vllm/v1/core/block_pool.py``, 0.32.0).

Free blocks form a queue: taken from its head; a named block that nobody holds goes to the tail and can be found until
it is taken, one without a name goes to the head. A request's blocks are freed from its last to its first. Every
function costs what it changes: taking, naming, finding and freeing a block are O(1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from srfa.compiled import compiled_part
from srfa.simulate.state import NOTHING, whole

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HIGH = np.uint64(32)


@compiled_part
def bucket_of(name: int, rank: int, n_buckets: int) -> int:
    """Return the bucket of a name; ``n_buckets`` is a power of two."""
    mixed = whole((np.uint64(name) * _GOLDEN) >> _HIGH)
    return int(rank * n_buckets + (mixed & (n_buckets - 1)))


@compiled_part
def found(blocks: NDArray[Any], buckets: NDArray[Any], bucket: int, name: int) -> int:
    """Return the first block that took this name, or -1."""
    block = whole(buckets[bucket].head)
    while block != NOTHING and blocks[block].name != name:
        block = whole(blocks[block].chain_next)
    return int(block)


@compiled_part
def remember(blocks: NDArray[Any], buckets: NDArray[Any], bucket: int, block: int, name: int) -> None:
    """Name a block, after those of its bucket that were named before it."""
    one, ends = blocks[block], buckets[bucket]
    one.name, one.is_named, one.chain_next, one.chain_prev = name, 1, NOTHING, ends.tail
    if ends.tail == NOTHING:
        ends.head = block
    else:
        blocks[ends.tail].chain_next = block
    ends.tail = block


@compiled_part
def forget(blocks: NDArray[Any], buckets: NDArray[Any], bucket: int, block: int) -> None:
    """Take a block's name away."""
    one, ends = blocks[block], buckets[bucket]
    if one.chain_prev == NOTHING:
        ends.head = one.chain_next
    else:
        blocks[one.chain_prev].chain_next = one.chain_next
    if one.chain_next == NOTHING:
        ends.tail = one.chain_prev
    else:
        blocks[one.chain_next].chain_prev = one.chain_prev
    one.is_named = 0


@compiled_part
def unlink(blocks: NDArray[Any], block: int) -> None:
    """Take a block out of the queue it is in."""
    before, after = blocks[block].prev, blocks[block].next
    blocks[before].next = after
    blocks[after].prev = before


@compiled_part
def link_after(blocks: NDArray[Any], before: int, block: int) -> None:
    """Put a block behind another one of the queue."""
    after = blocks[before].next
    blocks[before].next = block
    blocks[after].prev = block
    blocks[block].prev, blocks[block].next = before, after


@compiled_part
def append_blocks(pool: Any, counts: Any, rank: Any, slot: Any, upto: int, sizes: tuple[int, int]) -> None:
    """Give a request free blocks until it has ``upto``; they lose the names they had. ``sizes``: blocks, buckets."""
    num_blocks, n_buckets = sizes
    blocks, buckets = pool.blocks, pool.buckets
    first = slot.rank * num_blocks
    while slot.n_blocks < upto:
        block = whole(blocks[first].next)
        unlink(blocks, block)
        if blocks[block].is_named:
            forget(blocks, buckets, bucket_of(blocks[block].name, whole(slot.rank), n_buckets), block)
        blocks[block].references = 1
        rank.free -= 1
        append_node(pool.nodes, counts, slot, block)


@compiled_part
def append_node(nodes: NDArray[Any], counts: Any, slot: Any, block: int) -> None:
    """Append a block to a request's table."""
    node = counts.free_node
    if node == NOTHING:
        node = counts.node_bump
        counts.node_bump += 1
    else:
        counts.free_node = nodes[node].prev
    nodes[node].block, nodes[node].prev = block, slot.tail
    slot.tail = node
    slot.n_blocks += 1


@compiled_part
def hold(pool: Any, counts: Any, rank: Any, slot: Any, block: int) -> None:
    """Append a block that was found by its name; it leaves the free queue where nobody held it."""
    if pool.blocks[block].references == 0:
        unlink(pool.blocks, block)
        rank.free -= 1
    pool.blocks[block].references += 1
    append_node(pool.nodes, counts, slot, block)


@compiled_part
def free_blocks(pool: Any, counts: Any, rank: Any, slot: Any, num_blocks: int) -> None:
    """Free a request's blocks from the last to the first: unnamed ones to the queue's head, named ones to its tail."""
    blocks, nodes = pool.blocks, pool.nodes
    first = slot.rank * num_blocks
    front, node = whole(first), slot.tail
    while node != NOTHING:
        block, before = whole(nodes[node].block), nodes[node].prev
        nodes[node].prev = counts.free_node
        counts.free_node = node
        blocks[block].references -= 1
        if blocks[block].references == 0:
            rank.free += 1
            if blocks[block].is_named:
                link_after(blocks, whole(blocks[first].prev), block)
            else:
                link_after(blocks, front, block)
                front = block
        node = before
    slot.tail, slot.n_blocks, slot.n_cached = NOTHING, 0, 0


@compiled_part
def name_of(asked: Any, request: int, position: int, name_stride: int) -> int:
    """Return the name of a request's block: one it may share, or one of its own, below zero."""
    at = asked.offsets[request] + position
    if at < asked.offsets[request + 1]:
        return int(asked.names[at])
    return -1 - (request * name_stride + position)


@compiled_part
def name_full_blocks(pool: Any, asked: Any, facts: Any, slot: Any, tokens: int) -> None:
    """Name the blocks that ``tokens`` fill, so that others find them; also in the host's tier where there is one."""
    full = tokens // facts.block_size
    rank, node, position = whole(slot.rank), slot.tail, whole(slot.n_blocks - 1)
    while position >= slot.n_cached:
        if position < full:
            name = name_of(asked, whole(slot.request), position, facts.name_stride)
            bucket = bucket_of(name, rank, facts.n_buckets)
            remember(pool.blocks, pool.buckets, bucket, whole(pool.nodes[node].block), name)
            if facts.host_blocks > 0:
                keep_on_host(pool, facts, rank, bucket, name)
        node = pool.nodes[node].prev
        position -= 1
    slot.n_cached = full


@compiled_part
def keep_on_host(pool: Any, facts: Any, rank: int, bucket: int, name: int) -> None:
    """Keep a copy of a block in host memory, or note its use; the copy used longest ago makes room."""
    first = rank * (facts.host_blocks + 1)
    block = found(pool.host, pool.host_buckets, bucket, name)
    if block == NOTHING:
        block = whole(pool.host[first].next)
        if pool.host[block].is_named:
            forget(pool.host, pool.host_buckets, bucket_of(pool.host[block].name, rank, facts.n_buckets), block)
        remember(pool.host, pool.host_buckets, bucket, block, name)
    unlink(pool.host, block)
    link_after(pool.host, whole(pool.host[first].prev), block)
