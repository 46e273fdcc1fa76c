"""What a scheduler did, recorded or simulated, in one form that is compared step by step."""

from __future__ import annotations

import gzip
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from srfa.simulate.clock import linear_clock
from srfa.simulate.engine import simulate
from srfa.simulate.load import BlockHashes, RequestLoad
from srfa.simulate.server import Server
from srfa.traces.plugin import EngineRecord, TraceRecords, parse_trace
from srfa.traces.steps import step_entries

CLOCK = linear_clock(1000.0)
"""Any will do where all requests are there at once: when a step ends changes no schedule then."""


@dataclass(frozen=True)
class Batch:
    """One step: each request's row, new and computed tokens in scheduling order, and the scheduler's state."""

    entries: tuple[tuple[int, int, int], ...]
    running: int
    waiting: int
    preempted: int
    finished: int
    kv_blocks_free: int


@dataclass(frozen=True)
class Outcome:
    """One request: prompt tokens found in the cache at first, and how often it was preempted."""

    cached_tokens: int
    num_preemptions: int


@dataclass(frozen=True)
class Schedule:
    """Every step, and every request in the order in which they came."""

    batches: list[Batch]
    outcomes: list[Outcome]

    def assert_equals(self, other: Schedule) -> None:
        """Name the first step that differs: all later ones follow from it."""
        for index, (mine, theirs) in enumerate(zip(self.batches, other.batches, strict=False)):
            assert asdict(mine) == asdict(theirs), f"step {index}"
        assert len(self.batches) == len(other.batches)
        assert self.outcomes == other.outcomes


def read(path: Path) -> TraceRecords:
    """Return a recording, compressed or not."""
    text = path.read_bytes()
    return parse_trace((gzip.decompress(text) if path.suffix == ".gz" else text).splitlines(), name=path.name)


def server_of(engine: EngineRecord) -> Server:
    """Return the server an engine record describes."""
    return Server(
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        max_model_len=engine.max_model_len,
        block_size=engine.block_size,
        num_gpu_blocks=engine.num_gpu_blocks,
        enable_chunked_prefill=engine.enable_chunked_prefill,
        enable_prefix_caching=engine.enable_prefix_caching,
        long_prefill_token_threshold=engine.long_prefill_token_threshold,
        scheduling_policy=engine.scheduling_policy,
        watermark=engine.watermark,
        scheduler_reserve_full_isl=engine.scheduler_reserve_full_isl,
        async_scheduling=engine.async_scheduling,
    )


def load_of(records: TraceRecords) -> RequestLoad:
    """Return the requests of a recording, in the order in which they came, all there at once."""
    rows = records.requests.sort_by("t_queued_ns").to_pylist()
    hashes = [row["block_hashes"] or [] for row in rows]
    return RequestLoad(
        arrival_us=np.zeros(len(rows)),
        prompt_tokens=np.array([row["prompt_tokens"] for row in rows]),
        output_tokens=np.array([row["output_tokens"] for row in rows]),
        priority=np.array([row["priority"] for row in rows]),
        block_hashes=named_blocks(hashes),
    )


def named_blocks(hashes: list[list[int]]) -> BlockHashes:
    """Return one request's names after the other's."""
    offsets = np.concatenate([[0], np.cumsum([len(names) for names in hashes])]).astype(np.int64)
    return BlockHashes(np.array([name for names in hashes for name in names], dtype=np.int64), offsets)


def recorded_schedule(records: TraceRecords) -> Schedule:
    """Return what a recording says."""
    requests = records.requests.sort_by("t_queued_ns")
    row_of = {name: row for row, name in enumerate(requests["request_id"].to_pylist())}
    entries = step_entries(records.steps)
    rows = np.array([row_of[name] for name in entries.request_ids.to_pylist()])[entries.request]
    ends = np.searchsorted(entries.step, np.arange(records.steps.num_rows + 1))
    state = [
        records.steps[name].to_pylist()
        for name in ("running_depth", "waiting_depth", "num_preempted", "num_finished", "kv_blocks_free")
    ]
    flat = np.column_stack([rows, entries.new_tokens, entries.computed_tokens])
    outcomes = zip(requests["cached_tokens"].to_pylist(), requests["num_preemptions"].to_pylist(), strict=True)
    return Schedule(_batches(flat, ends, state), [Outcome(*each) for each in outcomes])


def simulated_schedule(load: RequestLoad, server: Server) -> Schedule:
    """Return what the simulator makes of it."""
    return schedule_of(simulate(load, server, CLOCK, record_steps=True))


def schedule_of(served) -> Schedule:
    """Return the schedule of a simulation that recorded its steps."""
    log = served.steps
    state = [log.running_depth, log.waiting_depth, log.num_preempted, log.num_finished, log.kv_blocks_free]
    flat = np.column_stack([log.request, log.new_tokens, log.computed_tokens])
    outcomes = zip(served.cached_tokens.tolist(), served.num_preemptions.tolist(), strict=True)
    return Schedule(_batches(flat, log.offsets, [column.tolist() for column in state]), [Outcome(*o) for o in outcomes])


def _batches(flat, offsets, state) -> list[Batch]:
    entries = [tuple(map(tuple, flat[begin:end].tolist())) for begin, end in pairwise(offsets)]
    return [Batch(*step) for step in zip(entries, *state, strict=True)]
