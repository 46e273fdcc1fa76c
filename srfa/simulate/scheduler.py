"""Compiled: one step of a scheduler, as vLLM 0.32.0 puts it together and applies its output.

Source: ``Scheduler.schedule`` and ``update_from_output`` (``vllm/v1/core/sched/scheduler.py``), ``AsyncScheduler``, and
``KVCacheManager.allocate_slots``, for one group of full attention; no speculation, adapters, encoders, pipeline stages.

Host memory as a tier of the cache is an approximation of vLLM's offloading connector: a block is kept there as soon as
it is full, the one used longest ago makes room, and a hit counts as computed in the step that admits its request, whose
``offloaded_bytes`` hold what it fetches. vLLM fetches beside running steps and lets the request wait meanwhile.

Cost of a step: the totals are summed while it is put together, in one pass over the running requests; a second pass
over those scheduled ends it. Both read one cache line a request and call nothing for one that only decodes within its
last block. Everything else follows what changes: blocks taken, named, found and freed cost O(1) each; a request that
ends costs its blocks, and a pass over the running list.
"""

from __future__ import annotations

from typing import Any

from srfa.compiled import compiled_part
from srfa.simulate.blocks import (
    append_blocks,
    bucket_of,
    found,
    free_blocks,
    hold,
    keep_on_host,
    name_full_blocks,
    name_of,
)
from srfa.simulate.state import BY_PRIORITY, ENDED, LAST, NOTHING, PREEMPTED, RUNNING, whole
from srfa.simulate.waiting import first_waiting, is_later, prepend, remove_waiting


@compiled_part
def put_together(world: Any, rank: int, frame: int, now_us: float) -> None:
    """Choose the requests of a step and their tokens: running ones first, then waiting ones if none was preempted."""
    facts, state, step = world.facts[0], world.ranks[rank], world.frames[rank, frame]
    clear_totals(world.totals[rank, frame], facts.offload_bytes)
    step.t_start_us, step.n_entries, step.finished = now_us, 0, 0
    threshold = facts.threshold if state.n_running + state.n_waiting > 1 else 0
    preempted_before = state.n_preempted
    budget = _schedule_running(world, rank, frame, threshold)
    if state.n_preempted == preempted_before:
        _admit(world, rank, frame, threshold, budget)
    step.running, step.waiting, step.free = state.n_running, state.n_waiting, state.free
    if step.n_entries > 0:
        step.preempted, state.n_preempted = state.n_preempted, 0


@compiled_part
def clear_totals(totals: Any, offload_bytes: float) -> None:
    """Begin a step's totals."""
    totals.prefill_tokens = totals.decode_tokens = totals.prefills = totals.decodes = 0.0
    totals.prefill_pairs = totals.prefill_context = totals.decode_context = 0.0
    totals.offloaded_bytes, totals.is_measured = offload_bytes, 1.0


@compiled_part
def _schedule_running(world: Any, rank: int, frame: int, threshold: int) -> int:
    """Schedule running requests in order and return what is left of the budget; without a free block one makes way."""
    facts, counts, pool, state = world.facts[0], world.counts[0], world.pool, world.ranks[rank]
    slots, running, totals = world.slots, world.running[rank], world.totals[rank, frame]
    entries, step = world.entries[rank, frame], world.frames[rank, frame]
    sizes = (facts.num_blocks, facts.n_buckets)
    budget, at = facts.budget, 0
    while at < state.n_running and budget > 0:
        number = whole(running[at])
        slot = slots[number]
        if slot.placeholders > 0 and slot.computed + 2 - slot.placeholders >= slot.end:
            at += 1  # its last token is on its way
            continue
        new = slot.tokens + slot.placeholders - slot.computed
        if 0 < threshold < new:
            new = threshold
        new = min(new, budget, facts.max_model_len - slot.computed - 1)
        if new <= 0:
            at += 1
            continue
        if slot.computed + new > slot.n_blocks * facts.block_size:
            needed = (slot.computed + new + facts.block_size - 1) // facts.block_size
            while slot.status == RUNNING and needed - slot.n_blocks > state.free:
                victim = _victim(world, rank)
                if victim < at:
                    budget += _withdraw(world, rank, frame, whole(running[victim]))
                    at -= 1
                _preempt(world, rank, victim)
            if slot.status != RUNNING:
                break
            append_blocks(pool, counts, state, slot, needed, sizes)
        known = min(slot.computed + new, slot.tokens)
        if facts.caching and known >= (slot.n_cached + 1) * facts.block_size:
            name_full_blocks(pool, world.asked, facts, slot, known)
        _enter(facts, totals, entries[step.n_entries], slot, number, new)
        step.n_entries += 1
        budget -= new
        at += 1
    return int(budget)


@compiled_part
def _enter(facts: Any, totals: Any, entry: Any, slot: Any, number: int, new: int) -> None:
    """Enter a request into the step and advance its counters, as ``_update_after_schedule`` does."""
    _add(totals, slot.prompt, new, slot.computed, 1.0)
    entry.slot, entry.request, entry.new, entry.computed = number, slot.request, new, slot.computed
    slot.computed += new
    slot.in_flight += new
    entry.yields = slot.computed >= slot.tokens + slot.placeholders
    if entry.yields and facts.depth > 1:
        slot.placeholders += 1


@compiled_part
def _add(totals: Any, prompt: int, new: int, computed: int, sign: float) -> None:
    """Add a request to a step's totals, or take it away; whole and half numbers, so the order does not matter."""
    if computed < prompt:
        totals.prefills += sign
        totals.prefill_tokens += sign * new
        totals.prefill_pairs += sign * (new * (computed + 0.5 * new))
        totals.prefill_context += sign * computed
    else:
        totals.decodes += sign
        totals.decode_tokens += sign * new
        totals.decode_context += sign * (computed + new)


@compiled_part
def _victim(world: Any, rank: int) -> int:
    """Return the position of the running request that makes way: the last, or the last by priority and arrival."""
    last = world.ranks[rank].n_running - 1
    if world.facts[0].policy != BY_PRIORITY:
        return int(last)
    running = world.running[rank]
    worst = 0
    for at in range(1, last + 1):
        if is_later(world, running[at], running[worst]):
            worst = at
    return worst


@compiled_part
def _withdraw(world: Any, rank: int, frame: int, number: int) -> int:
    """Take a request out of the step that is being put together; return the tokens it gives back."""
    step, entries, slot = world.frames[rank, frame], world.entries[rank, frame], world.slots[number]
    for at in range(step.n_entries):
        if entries[at].slot == number:
            new = whole(entries[at].new)
            _add(world.totals[rank, frame], slot.prompt, new, entries[at].computed, -1.0)
            slot.in_flight -= new
            for later in range(at + 1, step.n_entries):
                entries[later - 1] = entries[later]
            step.n_entries -= 1
            return int(new)
    return 0


@compiled_part
def _preempt(world: Any, rank: int, position: int) -> None:
    """Free a running request's blocks and let it wait; what of it is in flight is stale, but its tokens count."""
    state, running = world.ranks[rank], world.running[rank]
    number = whole(running[position])
    slot = world.slots[number]
    for at in range(position + 1, state.n_running):
        running[at - 1] = running[at]
    state.n_running -= 1
    free_blocks(world.pool, world.counts[0], state, slot, world.facts[0].num_blocks)
    slot.status, slot.computed, slot.placeholders, slot.stale = PREEMPTED, 0, 0, slot.in_flight
    slot.preemptions += 1
    state.n_preempted += 1
    prepend(world, rank, number)


@compiled_part
def _admit(world: Any, rank: int, frame: int, threshold: int, budget: int) -> None:
    """Admit waiting requests in order while budget, seats and free blocks last."""
    facts, state, step = world.facts[0], world.ranks[rank], world.frames[rank, frame]
    while budget > 0 and state.n_running < facts.max_num_seqs:
        number = first_waiting(world, rank)
        if number == NOTHING:
            return
        slot = world.slots[number]
        if slot.stale > 0:  # its last output is on its way; with two steps in flight it has come by now
            return
        n_hits, n_free, n_host = _hits(world, rank, slot)
        computed = (n_hits + n_host) * facts.block_size
        new = slot.tokens - computed
        if 0 < threshold < new:
            new = threshold
        if not facts.chunked and new > budget:
            return
        new = min(new, budget)
        if not _fits(facts, state, slot, (n_hits, n_free), computed + new):
            return
        remove_waiting(world, rank, number)
        world.running[rank, state.n_running] = number
        state.n_running += 1
        _allocate(world, rank, slot, n_hits, computed + new)
        _begin(world, slot, step.t_start_us, computed)
        world.totals[rank, frame].offloaded_bytes += n_host * facts.host_block_bytes
        _enter(facts, world.totals[rank, frame], world.entries[rank, frame][step.n_entries], slot, number, new)
        step.n_entries += 1
        budget -= new


@compiled_part
def _hits(world: Any, rank: int, slot: Any) -> tuple[int, int, int]:
    """Find a request's leading blocks by name; at least its last token is left to compute.

    Returns
    -------
    tuple
        Blocks of the cache (``pool.hits`` has them), how many of those nobody holds, and those that host memory has
        after them.
    """
    facts, pool, asked = world.facts[0], world.pool, world.asked
    n_hits = n_free = n_host = whole(0)
    if not facts.caching:
        return n_hits, n_free, n_host
    most = (slot.tokens - 1) // facts.block_size
    while n_hits < most:
        name = name_of(asked, whole(slot.request), n_hits, facts.name_stride)
        block = found(pool.blocks, pool.buckets, bucket_of(name, rank, facts.n_buckets), name)
        if block == NOTHING:
            break
        pool.hits[n_hits] = block
        n_free += pool.blocks[block].references == 0
        n_hits += 1
    while facts.host_blocks > 0 and n_hits + n_host < most:
        name = name_of(asked, whole(slot.request), n_hits + n_host, facts.name_stride)
        bucket = bucket_of(name, rank, facts.n_buckets)
        if found(pool.host, pool.host_buckets, bucket, name) == NOTHING:
            break
        keep_on_host(pool, facts, rank, bucket, name)
        n_host += 1
    return n_hits, n_free, n_host


@compiled_part
def _fits(facts: Any, state: Any, slot: Any, hits: tuple[int, int], upto: int) -> bool:
    """Whether free blocks suffice for the tokens ``upto``, and for the whole request where the server reserves it."""
    n_hits, n_free = hits
    spare = state.free - n_free - (facts.watermark_blocks if state.n_running > 0 else 0)
    if facts.reserve:
        upto = max(upto, slot.tokens)
    needed = (min(upto, facts.max_model_len) + facts.block_size - 1) // facts.block_size
    return bool(max(needed - n_hits, 0) <= spare)


@compiled_part
def _allocate(world: Any, rank: int, slot: Any, n_hits: int, upto: int) -> None:
    """Hold the blocks that were found, take free ones for the rest, and name those that the step fills."""
    facts, counts, pool, state = world.facts[0], world.counts[0], world.pool, world.ranks[rank]
    for at in range(n_hits):
        hold(pool, counts, state, slot, whole(pool.hits[at]))
    slot.n_cached = n_hits
    needed = (min(upto, facts.max_model_len) + facts.block_size - 1) // facts.block_size
    append_blocks(pool, counts, state, slot, needed, (facts.num_blocks, facts.n_buckets))
    if facts.caching:
        name_full_blocks(pool, world.asked, facts, slot, min(upto, slot.tokens))


@compiled_part
def _begin(world: Any, slot: Any, now_us: float, computed: int) -> None:
    """Let a request run; the first time is noted."""
    if slot.preemptions == 0:
        result = world.results[slot.request]
        result.t_first_scheduled_us, result.cached_tokens = now_us, computed
    slot.status, slot.computed = RUNNING, computed


@compiled_part
def apply_output(world: Any, rank: int, frame: int) -> None:
    """End a step: its tokens are there; requests that have all of theirs free their blocks and go."""
    facts, slots, step = world.facts[0], world.slots, world.frames[rank, frame]
    entries, t_output_us = world.entries[rank, frame], step.t_output_us
    for at in range(step.n_entries):
        entry = entries[at]
        slot = slots[entry.slot]
        slot.in_flight -= entry.new
        was_stale = slot.stale > 0
        if was_stale:
            slot.stale -= entry.new
        if not entry.yields:
            continue
        slot.tokens += 1
        if slot.tokens == slot.prompt + 1:
            world.results[slot.request].t_first_token_us = t_output_us
        if facts.depth > 1 and not was_stale:
            slot.placeholders -= 1
            known = slot.computed - slot.placeholders
            if facts.caching and slot.status == RUNNING and known >= (slot.n_cached + 1) * facts.block_size:
                name_full_blocks(world.pool, world.asked, facts, slot, known)
        if slot.tokens >= slot.end:
            _end(world, rank, whole(entry.slot), t_output_us)
            entry.yields = LAST
            step.finished += 1
    if step.finished > 0:
        _forget_ended(world, rank, frame)


@compiled_part
def _end(world: Any, rank: int, number: int, now_us: float) -> None:
    """Note a request's end and free its blocks; one that was preempted meanwhile has none, and leaves the queue."""
    slot, state, counts = world.slots[number], world.ranks[rank], world.counts[0]
    result = world.results[slot.request]
    result.t_finished_us, result.num_preemptions = now_us, slot.preemptions
    if slot.status == RUNNING:
        free_blocks(world.pool, counts, state, slot, world.facts[0].num_blocks)
    else:
        remove_waiting(world, rank, number)
    slot.status = ENDED
    state.n_unfinished -= 1
    counts.n_ended += 1


@compiled_part
def _forget_ended(world: Any, rank: int, frame: int) -> None:
    """Take ended requests from the running list, keep its order, and recycle their slots."""
    slots, running, state = world.slots, world.running[rank], world.ranks[rank]
    kept = 0
    for at in range(state.n_running):
        if slots[running[at]].status == RUNNING:
            running[kept] = running[at]
            kept += 1
    state.n_running = kept
    entries, counts = world.entries[rank, frame], world.counts[0]
    for at in range(world.frames[rank, frame].n_entries):
        if entries[at].yields == LAST:
            number = entries[at].slot
            slots[number].status, slots[number].next = NOTHING, counts.free_slot
            counts.free_slot = number
