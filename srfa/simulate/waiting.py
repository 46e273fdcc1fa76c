"""Compiled: queues. Waiting requests first come first served, or by priority; events by their time.

The first-come queue is a linked list of slots: every operation is O(1). The queue by (priority, arrival, row) and the
queues of events are binary heaps: O(log n); taking a request out of the middle of a heap, which only the end of a
preempted request does, is O(n).
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from srfa.compiled import compiled_part
from srfa.simulate.state import BY_PRIORITY, NOTHING


@compiled_part
def enqueue(world: Any, rank: int, slot: int) -> None:
    """Put a request behind those that wait."""
    state, slots = world.ranks[rank], world.slots
    if world.facts[0].policy == BY_PRIORITY:
        _push_slot(world, rank, slot)
        return
    slots[slot].prev, slots[slot].next = state.tail, NOTHING
    if state.tail == NOTHING:
        state.head = slot
    else:
        slots[state.tail].next = slot
    state.tail = slot
    state.n_waiting += 1


@compiled_part
def prepend(world: Any, rank: int, slot: int) -> None:
    """Put a preempted request before those that wait; by priority it goes where it belongs."""
    state, slots = world.ranks[rank], world.slots
    if world.facts[0].policy == BY_PRIORITY:
        _push_slot(world, rank, slot)
        return
    slots[slot].prev, slots[slot].next = NOTHING, state.head
    if state.head == NOTHING:
        state.tail = slot
    else:
        slots[state.head].prev = slot
    state.head = slot
    state.n_waiting += 1


@compiled_part
def first_waiting(world: Any, rank: int) -> int:
    """Return the slot that is next, or -1."""
    if world.ranks[rank].n_waiting == 0:
        return NOTHING
    return int(world.heap[rank, 0]) if world.facts[0].policy == BY_PRIORITY else int(world.ranks[rank].head)


@compiled_part
def remove_waiting(world: Any, rank: int, slot: int) -> None:
    """Take a request out, wherever it stands."""
    state, slots = world.ranks[rank], world.slots
    if world.facts[0].policy == BY_PRIORITY:
        _remove_slot(world, rank, slot)
        return
    before, after = slots[slot].prev, slots[slot].next
    if before == NOTHING:
        state.head = after
    else:
        slots[before].next = after
    if after == NOTHING:
        state.tail = before
    else:
        slots[after].prev = before
    state.n_waiting -= 1


@compiled_part
def is_later(world: Any, one: int, other: int) -> bool:
    """Whether a slot's request comes after another's by priority, then arrival, then row."""
    a, b = world.slots[one].request, world.slots[other].request
    priority = world.asked.priority
    if priority[a] != priority[b]:
        return bool(priority[a] > priority[b])
    arrived, other_arrived = world.results[a].t_arrived_us, world.results[b].t_arrived_us
    return bool(arrived > other_arrived or (arrived == other_arrived and a > b))


@compiled_part
def _push_slot(world: Any, rank: int, slot: int) -> None:
    heap, state = world.heap[rank], world.ranks[rank]
    at = state.n_waiting
    heap[at] = slot
    state.n_waiting += 1
    _rise(world, rank, at)


@compiled_part
def _rise(world: Any, rank: int, at: int) -> None:
    heap = world.heap[rank]
    while at > 0 and is_later(world, heap[(at - 1) // 2], heap[at]):
        up = (at - 1) // 2
        heap[at], heap[up] = heap[up], heap[at]
        at = up


@compiled_part
def _sink(world: Any, rank: int, at: int) -> None:
    heap, count = world.heap[rank], world.ranks[rank].n_waiting
    while 2 * at + 1 < count:
        down = 2 * at + 1
        if down + 1 < count and is_later(world, heap[down], heap[down + 1]):
            down += 1
        if not is_later(world, heap[at], heap[down]):
            return
        heap[at], heap[down] = heap[down], heap[at]
        at = down


@compiled_part
def _remove_slot(world: Any, rank: int, slot: int) -> None:
    heap, state = world.heap[rank], world.ranks[rank]
    at = 0
    while heap[at] != slot:
        at += 1
    state.n_waiting -= 1
    last = heap[state.n_waiting]
    if at < state.n_waiting:
        heap[at] = last
        _rise(world, rank, at)
        _sink(world, rank, at)


@compiled_part
def push_event(heap: NDArray[Any], count: int, at_us: float, request: int) -> None:
    """Add an event to ``count`` others; the caller counts."""
    at = count
    while at > 0:
        up = (at - 1) // 2
        parent = heap[up]
        if parent.at_us < at_us or (parent.at_us == at_us and parent.request < request):
            break
        heap[at].at_us, heap[at].request = parent.at_us, parent.request
        at = up
    heap[at].at_us, heap[at].request = at_us, request


@compiled_part
def pop_event(heap: NDArray[Any], count: int) -> None:
    """Take the first of ``count`` events away; the caller has read it, and counts."""
    last = count - 1
    at_us, request = heap[last].at_us, heap[last].request
    at = 0
    while 2 * at + 1 < last:
        down = 2 * at + 1
        if down + 1 < last and (
            heap[down + 1].at_us < heap[down].at_us
            or (heap[down + 1].at_us == heap[down].at_us and heap[down + 1].request < heap[down].request)
        ):
            down += 1
        if at_us < heap[down].at_us or (at_us == heap[down].at_us and request < heap[down].request):
            break
        heap[at].at_us, heap[at].request = heap[down].at_us, heap[down].request
        at = down
    heap[at].at_us, heap[at].request = at_us, request
