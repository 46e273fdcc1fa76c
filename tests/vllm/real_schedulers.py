"""vLLM's own scheduler classes without a model, on a clock of their own: what they make of a load, step by step."""

from __future__ import annotations

import copy
import heapq
from dataclasses import dataclass, field, replace
from functools import cache

from srfa.simulate.load import RequestLoad
from srfa.simulate.server import Server
from srfa.units import US_PER_S
from srfa.vllm.recorder import block_names, composition
from tests.schedules import Batch, Outcome, Schedule

TIE_S = 1e-9
"""No two arrivals of a server are at one instant."""
IDLE_ITERATION_US = 1000.0
"""What ``_process_engine_step`` sleeps after a pass that submitted no token although it has requests."""


@dataclass
class Times:
    """When a request was first scheduled, had its first token, and ended; and what it found when it came."""

    queued: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    running_at_queue: int = 0
    waiting_at_queue: int = 0
    kv_usage_at_queue: float = 0.0


@dataclass
class Noted:
    """What the hooks of a scheduler saw."""

    batches: list[Batch] = field(default_factory=list)
    preempted: int = 0
    finished: int = 0
    cached_tokens: dict[str, int] = field(default_factory=dict)


@dataclass
class Played:
    """A load as vLLM's scheduler serves it: the schedule, each request's times, and when each step began and ended."""

    schedule: Schedule
    times: list[Times]
    starts: list[float]
    outputs: list[float]
    block_names: list[list[int]]


@cache
def resolved_config(model: str):
    """Return a resolved configuration of vLLM; a case changes its copy."""
    from vllm.engine.arg_utils import EngineArgs

    limits = {"max_model_len": 512, "max_num_batched_tokens": 512, "max_num_seqs": 8, "block_size": 16}
    return EngineArgs(model=model, **limits).create_engine_config()


def configured(model: str, server: Server):
    """Return vLLM's configuration of a server."""
    config = copy.deepcopy(resolved_config(model))
    scheduling, cache_config = config.scheduler_config, config.cache_config
    for name in (
        "max_num_batched_tokens",
        "max_num_seqs",
        "enable_chunked_prefill",
        "long_prefill_token_threshold",
        "watermark",
        "scheduler_reserve_full_isl",
        "async_scheduling",
    ):
        setattr(scheduling, name, getattr(server, name))
    scheduling.policy = server.scheduling_policy
    config.model_config.max_model_len = scheduling.max_model_len = server.max_model_len
    cache_config.block_size, cache_config.num_gpu_blocks = server.block_size, server.num_gpu_blocks
    cache_config.enable_prefix_caching = server.enable_prefix_caching
    return config


def noting(base):
    """Return a scheduler class that keeps what the recorder's hooks would see."""

    class NotingScheduler(base):
        noted: Noted

        def _update_after_schedule(self, scheduler_output):
            if scheduler_output.total_num_scheduled_tokens:
                self._note(scheduler_output)
            super()._update_after_schedule(scheduler_output)

        def _note(self, scheduler_output):
            requests = [self.requests[name] for name in scheduler_output.num_scheduled_tokens]
            lists = composition(scheduler_output.num_scheduled_tokens, requests)
            for request in requests:
                if request.request_id not in self.noted.cached_tokens:
                    self.noted.cached_tokens[request.request_id] = request.prefill_stats.num_cached_tokens
            rows = map(int, lists["request_ids"])
            running, waiting = self.get_request_counts()
            free = self.kv_cache_manager.block_pool.get_num_free_blocks()
            entries = tuple(zip(rows, lists["num_new_tokens"], lists["num_computed_tokens"], strict=True))
            self.noted.batches.append(Batch(entries, running, waiting, self.noted.preempted, 0, free))
            self.noted.preempted = 0

        def _preempt_request(self, *arguments, **named):
            self.noted.preempted += 1
            return super()._preempt_request(*arguments, **named)

        def _free_request(self, *arguments, **named):
            self.noted.finished += 1
            return super()._free_request(*arguments, **named)

    return NotingScheduler


def scheduler_of(model: str, server: Server):
    """Return vLLM's scheduler of a server, and what it hashes blocks with."""
    import torch
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    init_none_hash(sha256)
    config = configured(model, server)
    spec = FullAttentionSpec(block_size=server.block_size, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
    groups = [KVCacheGroupSpec(["layer"], spec)]
    scheduler = noting(AsyncScheduler if server.async_scheduling else Scheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(num_blocks=server.num_gpu_blocks, kv_cache_tensors=[], kv_cache_groups=groups),
        structured_output_manager=StructuredOutputManager(config),
        block_size=server.block_size,
    )
    scheduler.noted = Noted()
    hasher = get_request_block_hasher(server.block_size, sha256) if server.enable_prefix_caching else None
    return scheduler, hasher


def requests_of(load: RequestLoad, texts: list[list[int]], hasher):
    """Return vLLM's requests, named by their rows; equal arrivals are a tie that the row breaks."""
    from vllm import SamplingParams
    from vllm.v1.request import Request

    requests = []
    for row, text in enumerate(texts):
        parameters = SamplingParams(ignore_eos=True, max_tokens=int(load.output_tokens[row]))
        parameters.update_from_generation_config({}, 2)
        prompt = text[: int(load.prompt_tokens[row])]
        arrival_s = load.arrival_us[row] / US_PER_S + row * TIE_S
        requests.append(
            Request(
                f"{row:06d}",
                prompt,
                parameters,
                None,
                arrival_time=arrival_s,
                priority=int(load.priority[row]),
                block_hasher=hasher,
            )
        )
    return requests


def play(model: str, server: Server, load: RequestLoad, texts: list[list[int]], step_time_us) -> Played:
    """Serve a load with vLLM's scheduler; ``texts`` are the tokens of prompt and output.

    Parameters
    ----------
    step_time_us
        The time of step ``k``, a function: the clock is the caller's.
    """
    scheduler, hasher = scheduler_of(model, server)
    player = _Player(scheduler, requests_of(load, texts, hasher), load, texts, step_time_us)
    player.run(depth=2 if server.async_scheduling else 1)
    scheduler.shutdown()
    outcomes = [
        Outcome(scheduler.noted.cached_tokens[request.request_id], request.num_preemptions)
        for request in player.requests
    ]
    hashes = [block_names(request.block_hashes, 1) for request in player.requests]
    return Played(Schedule(scheduler.noted.batches, outcomes), player.times, player.starts, player.outputs, hashes)


class _Player:
    """The loop of vLLM's engine core (``EngineCore.step`` or ``step_with_batch_queue``) on a simulated clock."""

    def __init__(self, scheduler, requests, load, texts, step_time_us):
        self.scheduler, self.requests, self.texts, self.step_time_us = scheduler, requests, texts, step_time_us
        self.coming = [(float(at), row) for row, at in enumerate(load.arrival_us)]
        heapq.heapify(self.coming)
        self.times = [Times() for _ in requests]
        self.starts, self.outputs = [], []
        self.now = 0.0
        self.in_flight = []

    def run(self, depth):
        while self.coming or self.scheduler.has_requests() or self.in_flight:
            if not self.scheduler.has_requests() and not self.in_flight:
                self.now = max(self.now, self.coming[0][0])
            self.admit()
            if not self.iterate(depth) and self.scheduler.has_requests():
                self.now += IDLE_ITERATION_US

    def iterate(self, depth):
        """One pass of the core's loop; True where it submitted a batch that holds a token."""
        executed = False
        if self.scheduler.has_requests():
            executed = self.schedule()
            if len(self.in_flight) < depth and (executed or self.scheduler.has_requests()):
                return executed
        self.finish_one()
        return executed

    def admit(self):
        while self.coming and self.coming[0][0] <= self.now:
            _, row = heapq.heappop(self.coming)
            times = self.times[row]
            times.queued = self.now
            times.running_at_queue, times.waiting_at_queue = self.scheduler.get_request_counts()
            times.kv_usage_at_queue = self.scheduler.get_kv_cache_usage()
            self.scheduler.add_request(self.requests[row])

    def schedule(self):
        """Put a batch together; True where it holds a token."""
        known = len(self.scheduler.noted.batches)
        output = self.scheduler.schedule()
        executed = len(self.scheduler.noted.batches) > known
        rows = [int(name) for name in output.num_scheduled_tokens]
        samples = [not self.requests[row].is_prefill_chunk for row in rows]
        for row in rows:
            if self.times[row].scheduled is None:
                self.times[row].scheduled = self.now
        if executed:
            self.starts.append(self.now)
        self.in_flight.append((output, rows, samples, known if executed else None))
        return executed

    def finish_one(self):
        """Wait for the oldest batch; one without a token takes no time."""
        output, rows, samples, step = self.in_flight.pop(0)
        if step is not None:
            begun = max(self.starts[step], self.outputs[-1] if self.outputs else 0.0)
            self.now = begun + self.step_time_us(step)
            self.outputs.append(self.now)
        self.scheduler.update_from_output(output, self._answer(rows, samples))
        for row in rows:
            self._note_tokens(row)
        if step is not None:
            self._note_finished(step)

    def _answer(self, rows, samples):
        """The next token of the text of each request whose known tokens are all computed, as a model would give."""
        from vllm.v1.outputs import ModelRunnerOutput

        names = [f"{row:06d}" for row in rows]
        next_token = [self.texts[row][self.requests[row].num_tokens :][:1] for row in rows]
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[token if sampled else [] for token, sampled in zip(next_token, samples, strict=True)],
        )

    def _note_tokens(self, row):
        request, times = self.requests[row], self.times[row]
        if request.num_output_tokens and times.first_token is None:
            times.first_token = self.now
        if request.is_finished() and times.finished is None:
            times.finished = self.now

    def _note_finished(self, step):
        noted = self.scheduler.noted
        noted.batches[step] = replace(noted.batches[step], finished=noted.finished)
        noted.finished = 0
