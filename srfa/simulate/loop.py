"""Compiled: the order of events. A client sends, a request is queued, an engine puts a step together, its tokens come.

Events run by time; at equal times requests come before steps, as the engine core reads its input before every step.
A synchronous engine puts the next step together when the last one's tokens are there; an asynchronous one keeps two
steps in flight (``EngineCore.step_with_batch_queue``, vLLM 0.32.0). An event costs O(log n) of the requests on their
way and O(engines), beside the step itself.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from srfa.compiled import compiled_loop, compiled_part
from srfa.simulate.scheduler import apply_output, put_together
from srfa.simulate.state import EVENTS, IDLE, LAST, NOTHING, OUTPUT, SCHEDULE, TIMING, WAITING, whole
from srfa.simulate.times import is_compiled, time_of
from srfa.simulate.waiting import enqueue, pop_event, push_event

DONE, ASK, FLUSH, STUCK = range(4)
"""Why the loop returns: the load has ended; a step's time is asked for; the log is full; nothing can ever happen."""
_EMPTY_SLEEP_US: Final = 1000.0
"""The engine core sleeps a millisecond after an iteration that submitted nothing although requests are there."""


@compiled_loop
def run(world: Any, clock: Any) -> int:
    """Go on until the loop has a reason to return."""
    counts = world.counts[0]
    while True:
        if counts.stage == TIMING:
            if not _times_are_there(world, clock):
                return ASK
            _submit(world)
            counts.stage = EVENTS
        if counts.n_ended == world.results.size:
            return DONE
        if world.facts[0].recording and not _log_has_room(world):
            return FLUSH
        if not _next_event(world):
            return STUCK


@compiled_part
def _next_event(world: Any) -> bool:
    """Let the earliest event happen; False where there is none, or an engine can do nothing for its requests."""
    engines = world.engines
    first = whole(0)
    for number in range(1, engines.size):
        if engines[number].at_us < engines[first].at_us:
            first = number
    at_us = engines[first].at_us
    send_us = _next_send_us(world)
    queued_us = world.transit[0].at_us if world.counts[0].n_transit > 0 else np.inf
    if send_us <= queued_us and send_us <= at_us and send_us < np.inf:
        _send(world, send_us)
        return True
    if queued_us <= at_us and queued_us < np.inf:
        _queue(world, queued_us)
        return True
    if at_us == np.inf:
        return False
    if engines[first].phase == OUTPUT:
        _output(world, first)
        return True
    return _schedule(world, first)


@compiled_part
def _next_send_us(world: Any) -> float:
    """Return when the client sends its next request: when it is due and a seat is free; never, as far as known."""
    counts, limit = world.counts[0], world.facts[0].max_concurrency
    if counts.sent == world.results.size:
        return float(np.inf)
    due_us = max(world.asked.arrival_us[counts.sent], counts.seat_us)
    if limit == 0 or counts.n_out < limit:
        return float(due_us)
    if counts.n_departures == 0:
        return float(np.inf)
    return float(max(due_us, world.departures[0].at_us))


@compiled_part
def _send(world: Any, now_us: float) -> None:
    """Send a request; it is queued after its alpha."""
    counts, limit = world.counts[0], world.facts[0].max_concurrency
    if limit > 0 and counts.n_out == limit:
        counts.seat_us = world.departures[0].at_us
        pop_event(world.departures, counts.n_departures)
        counts.n_departures -= 1
        counts.n_out -= 1
    request = counts.sent
    counts.sent += 1
    counts.n_out += 1
    result = world.results[request]
    result.t_arrived_us, result.t_queued_us = now_us, now_us + world.asked.alpha_us[request]
    push_event(world.transit, counts.n_transit, result.t_queued_us, request)
    counts.n_transit += 1


@compiled_part
def _queue(world: Any, now_us: float) -> None:
    """Hand a request to the rank with the fewest unfinished ones; an idle engine begins a step at once.

    vLLM's client takes the larger of that count and a snapshot of (waiting + running), which is the same here, and adds
    a penalty for waiting requests on a full cache from snapshots 100 ms old, which is left out.
    """
    counts, ranks, slots = world.counts[0], world.ranks, world.slots
    request = world.transit[0].request
    pop_event(world.transit, counts.n_transit)
    counts.n_transit -= 1
    rank = whole(0)
    for other in range(1, ranks.size):
        if ranks[other].n_unfinished < ranks[rank].n_unfinished:
            rank = other
    state = ranks[rank]
    number = _new_slot(world, request, rank)
    if state.inbox_tail == NOTHING:
        state.inbox_head = number
    else:
        slots[state.inbox_tail].next = number
    state.inbox_tail = number
    state.n_unfinished += 1
    for one in range(world.engines.size):
        engine = world.engines[one]
        if engine.first_rank <= rank < engine.end_rank and engine.phase == IDLE:
            engine.phase, engine.at_us = SCHEDULE, now_us


@compiled_part
def _new_slot(world: Any, request: int, rank: int) -> int:
    counts = world.counts[0]
    number = counts.free_slot
    if number == NOTHING:
        number = counts.slot_bump
        counts.slot_bump += 1
    else:
        counts.free_slot = world.slots[number].next
    slot = world.slots[number]
    slot.request, slot.rank, slot.prompt = request, rank, world.asked.prompt_tokens[request]
    slot.end, slot.tokens = slot.prompt + world.asked.output_tokens[request], slot.prompt
    slot.computed = slot.placeholders = slot.in_flight = slot.stale = 0
    slot.n_blocks = slot.n_cached = slot.preemptions = 0
    slot.tail = slot.next = slot.prev = NOTHING
    slot.status = WAITING
    return int(number)


@compiled_part
def _take_inbox(world: Any, rank: int) -> None:
    """Move a rank's new requests to its waiting queue, and note what each meets there."""
    state, slots = world.ranks[rank], world.slots
    usable = world.facts[0].num_blocks - 1
    number = state.inbox_head
    while number != NOTHING:
        after = slots[number].next
        result = world.results[slots[number].request]
        result.running_at_queue, result.waiting_at_queue = state.n_running, state.n_waiting
        result.kv_usage_at_queue = 1.0 - state.free / usable
        enqueue(world, rank, number)
        number = after
    state.inbox_head = state.inbox_tail = NOTHING


@compiled_part
def _schedule(world: Any, number: int) -> bool:
    """Let an engine's ranks put a step together; False where nothing is chosen, in flight, or ever will be."""
    engine, counts = world.engines[number], world.counts[0]
    frame = (engine.oldest + engine.n_flying) % world.facts[0].depth
    n_entries, n_unfinished, n_preempted = 0, 0, 0
    for rank in range(engine.first_rank, engine.end_rank):
        _take_inbox(world, rank)
        put_together(world, rank, frame, engine.at_us)
        n_entries += world.frames[rank, frame].n_entries
        n_unfinished += world.ranks[rank].n_unfinished
        n_preempted += world.ranks[rank].n_preempted
    if n_entries > 0:
        counts.stage, counts.engine, counts.frame, counts.answered = TIMING, number, frame, 0
        return True
    if engine.n_flying > 0:
        engine.was_empty = 1
        _await_output(world, number)
        return True
    if n_preempted > 0:  # the request that lacked a block was the victim itself: try again
        engine.at_us += _EMPTY_SLEEP_US
        return True
    engine.phase, engine.at_us = IDLE, np.inf
    return bool(n_unfinished == 0)


@compiled_part
def _await_output(world: Any, number: int) -> None:
    engine = world.engines[number]
    engine.phase, engine.at_us = OUTPUT, world.frames[engine.first_rank, engine.oldest].t_output_us


@compiled_part
def _times_are_there(world: Any, clock: Any) -> bool:
    """Ask the clock for every rank's step time; one that is not compiled answers from outside."""
    counts = world.counts[0]
    if counts.answered == 1:
        return True
    if not is_compiled(clock):
        return False
    engine = world.engines[counts.engine]
    for rank in range(engine.first_rank, engine.end_rank):
        if world.frames[rank, counts.frame].n_entries > 0:
            world.times_us[rank] = time_of(world.totals[rank, counts.frame], clock)
    return True


@compiled_part
def _submit(world: Any) -> None:
    """Submit the step that was put together: it takes as long as the slowest rank's, after the one before it."""
    facts, counts = world.facts[0], world.counts[0]
    engine = world.engines[counts.engine]
    label_us = 0.0
    for rank in range(engine.first_rank, engine.end_rank):
        if world.frames[rank, counts.frame].n_entries > 0:
            label_us = max(label_us, world.times_us[rank])
            counts.n_steps += 1
    t_output_us = max(engine.at_us, engine.last_output_us) + label_us * facts.wall_ratio
    for rank in range(engine.first_rank, engine.end_rank):
        step = world.frames[rank, counts.frame]
        step.step_time_us, step.t_output_us = label_us, t_output_us
    engine.last_output_us = t_output_us
    engine.n_flying += 1
    if engine.n_flying == facts.depth:
        _await_output(world, counts.engine)


@compiled_part
def _output(world: Any, number: int) -> None:
    """Let the oldest step of an engine end, and the client have its tokens."""
    facts, engine = world.facts[0], world.engines[number]
    frame, n_unfinished, n_running = engine.oldest, 0, 0
    for rank in range(engine.first_rank, engine.end_rank):
        apply_output(world, rank, frame)
        _depart(world, rank, frame)
        if facts.recording:
            _log(world, rank, frame)
        n_unfinished += world.ranks[rank].n_unfinished
        n_running = max(n_running, world.ranks[rank].n_running)
    now_us = engine.at_us
    engine.oldest = (frame + 1) % facts.depth
    engine.n_flying -= 1
    pause_us = _EMPTY_SLEEP_US if engine.was_empty else facts.between_us + facts.between_request_us * n_running
    if n_unfinished > 0 or engine.was_empty:
        engine.phase, engine.at_us = SCHEDULE, now_us + pause_us
    elif engine.n_flying > 0:
        _await_output(world, number)
    else:
        engine.phase, engine.at_us = IDLE, np.inf
    engine.was_empty = 0


@compiled_part
def _depart(world: Any, rank: int, frame: int) -> None:
    """Note when the client has the last tokens of requests that ended, and free their seats then."""
    step, entries, counts, asked = world.frames[rank, frame], world.entries[rank, frame], world.counts[0], world.asked
    if step.finished == 0:
        return
    for at in range(step.n_entries):
        if entries[at].yields == LAST:
            request = whole(entries[at].request)
            result = world.results[request]
            outside_us = asked.post_us[request] + asked.alpha_token_us[request] * asked.output_tokens[request]
            result.t_departed_us = result.t_finished_us + outside_us
            if world.facts[0].max_concurrency > 0:
                push_event(world.departures, counts.n_departures, result.t_departed_us, request)
                counts.n_departures += 1


@compiled_part
def _log_has_room(world: Any) -> bool:
    n_ranks, seqs = world.running.shape
    counts = world.counts[0]
    has_steps = counts.log_steps + n_ranks <= world.log_frames.size
    return bool(has_steps and counts.log_entries + n_ranks * seqs <= world.log_entries.size)


@compiled_part
def _log(world: Any, rank: int, frame: int) -> None:
    """Copy a step that ended into the log."""
    counts, step = world.counts[0], world.frames[rank, frame]
    if step.n_entries == 0:
        return
    world.log_frames[counts.log_steps] = step
    world.log_totals[counts.log_steps] = world.totals[rank, frame]
    counts.log_steps += 1
    for at in range(step.n_entries):
        world.log_entries[counts.log_entries] = world.entries[rank, frame, at]
        counts.log_entries += 1
