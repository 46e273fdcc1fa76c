"""A toy engine: schedules requests as vLLM does and leaves the files a real job leaves."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from srfa.specs import BenchmarkJob, Calibration, Datasheet, EngineArgs, GpuSpec, Workload
from srfa.units import NS_PER_S, NS_PER_US, US_PER_MS, US_PER_S

MS = int(NS_PER_US * US_PER_MS)
MS_PER_S = US_PER_S / US_PER_MS
START_NS = 5_000_000_000_000
SCHEDULE_NS = 1 * MS
ENGINE = {
    "record": "engine",
    "schema_version": 1,
    "vllm_version": "0.32.0",
    "pid": 11,
    "worker_pids": [12],
    "scheduler": "Scheduler",
    "async_scheduling": False,
    "batch_queue_size": 1,
    "block_size": 32,
    "num_gpu_blocks": 64,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "max_model_len": 512,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": True,
    "tensor_parallel_size": 1,
    "data_parallel_size": 1,
    "enable_expert_parallel": False,
    "mono_to_epoch_ns": 1_700_000_000_000_000_000,
}


@dataclass
class ToyRequest:
    prompt: int
    output: int
    cached: int = 0
    arrives_ns: int = START_NS
    request_id: str = ""
    computed: int = 0
    generated: int = 0
    preemptions: int = 0
    scheduled_before: bool = False
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> int:
        return self.prompt + self.generated


@dataclass
class ToyRun:
    """What the toy engine left: the trace's records in order, and the client's result file."""

    records: list[dict[str, Any]]
    client: dict[str, Any]

    def lines(self) -> list[bytes]:
        return [json.dumps(record).encode() + b"\n" for record in self.records]

    def kind(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["record"] == kind]

    def files(self, job: BenchmarkJob, **engine_file: Any) -> dict[str, bytes]:
        return {
            "trace.jsonl.gz": gzip.compress(b"".join(self.lines())),
            "client.json": json.dumps(self.client).encode(),
            "engine.json": json.dumps(engine_file).encode(),
            "manifest.json": json.dumps({"job_id": job.job_id}).encode(),
        }


class ToyEngine:
    """Running requests first, then waiting ones, under a token budget and a KV capacity; preempts the youngest."""

    def __init__(self, requests: list[ToyRequest], budget: int, max_seqs: int, kv_tokens: int, step_ns: int) -> None:
        self.arriving = sorted(requests, key=lambda r: r.arrives_ns)
        self.waiting: list[ToyRequest] = []
        self.running: list[ToyRequest] = []
        self.budget, self.max_seqs, self.kv_tokens, self.step_ns = budget, max_seqs, kv_tokens, step_ns
        self.now = START_NS
        self.step_id = 0
        self.records: list[dict[str, Any]] = [dict(ENGINE)]

    def run(self) -> list[dict[str, Any]]:
        while self.arriving or self.waiting or self.running:
            if not (self.waiting or self.running):
                self.now = max(self.now, self.arriving[0].arrives_ns + MS)
            self._admit()
            self._step()
        return self.records

    def _admit(self) -> None:
        while self.arriving and self.arriving[0].arrives_ns <= self.now:
            request = self.arriving.pop(0)
            request.record = {
                "t_arrived_ns": request.arrives_ns,
                "t_queued_ns": max(request.arrives_ns, self.now - MS // 2),
                "running_at_queue": len(self.running),
                "waiting_at_queue": len(self.waiting),
                "kv_usage_at_queue": 0.0,
            }
            self.waiting.append(request)

    def _step(self) -> None:
        preempted, batch = 0, []
        left = self.budget
        for request in list(self.running):
            while request in self.running and self._kv_after(request) > self.kv_tokens and len(self.running) > 1:
                preempted += self._preempt(batch)
            if request in self.running and left:
                new = min(request.known - request.computed, left)
                left -= new
                batch.append((request, new))
        while self.waiting and left and not preempted and len(self.running) < self.max_seqs:
            request = self.waiting[0]
            if self.running and self._kv_after(request) > self.kv_tokens:
                break
            self.waiting.pop(0)
            self.running.append(request)
            request.computed = min(request.cached, request.known - 1)
            new = min(request.known - request.computed, left)
            left -= new
            batch.append((request, new))
        self._record(batch, preempted)

    def _kv_after(self, request: ToyRequest) -> int:
        return sum(r.known for r in self.running if r is not request) + request.known

    def _preempt(self, batch: list[tuple[ToyRequest, int]]) -> int:
        victim = self.running.pop()
        batch[:] = [entry for entry in batch if entry[0] is not victim]
        victim.computed = 0
        victim.preemptions += 1
        self.waiting.insert(0, victim)
        self.records.append(
            {"record": "preemption", "request_id": victim.request_id, "t_ns": self.now, "step_id": self.step_id}
        )
        return 1

    def _record(self, batch: list[tuple[ToyRequest, int]], preempted: int) -> None:
        start, end = self.now, self.now + SCHEDULE_NS
        output = end + self.step_ns + 10_000 * sum(new for _, new in batch)
        step = {
            "record": "step",
            "step_id": self.step_id,
            "t_schedule_start_ns": start,
            "t_schedule_end_ns": end,
            "t_output_ns": output,
            "step_cpu_time_ns": output - start - 500_000,
            "running_depth": len(self.running),
            "waiting_depth": len(self.waiting),
            "num_preempted": preempted,
            "num_finished": 0,
            "kv_blocks_total": 64,
            "kv_blocks_free": 32,
            "kv_usage_ratio": 0.5,
            "request_ids": [request.request_id for request, _ in batch],
            "num_new_tokens": [new for _, new in batch],
            "num_computed_tokens": [request.computed for request, _ in batch],
            "num_prompt_tokens": [request.prompt for request, _ in batch],
            "recorder_time_ns": 1000,
        }
        for request, new in batch:
            self._advance(request, new, start, output)
        step["num_finished"] = sum(request.generated == request.output for request, _ in batch)
        self.records.append(step)
        self.now = output + MS // 10
        self.step_id += 1

    def _advance(self, request: ToyRequest, new: int, start: int, output: int) -> None:
        if not request.scheduled_before:
            request.scheduled_before = True
            request.record |= {"t_first_scheduled_ns": start, "cached_tokens": request.computed}
        request.computed += new
        if request.computed < request.known:
            return
        request.generated += 1
        if request.generated == 1:
            request.record["t_first_token_ns"] = output
        if request.generated == request.output:
            self.running.remove(request)
            self.records.append(
                request.record
                | {
                    "record": "request",
                    "request_id": request.request_id,
                    "prompt_tokens": request.prompt,
                    "output_tokens": request.output,
                    "num_preemptions": request.preemptions,
                    "finish_status": "length",
                    "t_finished_ns": output,
                }
            )


def client_result(requests: list[ToyRequest]) -> dict[str, Any]:
    """The result file a client on the same machine would write, in seconds."""
    sent = [request.arrives_ns - MS for request in requests]
    first = [request.record["t_first_token_ns"] + MS for request in requests]
    gone = [int(request.record["t_first_token_ns"]) + (request.output - 1) * 2 * MS + MS for request in requests]
    ttfts = [(b - a) / NS_PER_S for a, b in zip(sent, first, strict=True)]
    return {
        "duration": (max(gone) - min(sent)) / NS_PER_S,
        "completed": len(requests),
        "request_ids": [f"bench-{index}" for index in range(len(requests))],
        "input_lens": [request.prompt for request in requests],
        "output_lens": [request.output for request in requests],
        "ttfts": ttfts,
        "itls": [[2e-3] * (request.output - 1) for request in requests],
        "start_times": [value / NS_PER_S for value in sent],
        "latencies": [(b - a) / NS_PER_S for a, b in zip(sent, gone, strict=True)],
        "errors": [""] * len(requests),
        "mean_ttft_ms": sum(ttfts) / len(ttfts) * MS_PER_S,
        "generated_texts": ["x"] * len(requests),
    }


def run_toy_engine(
    requests: list[tuple[int, ...]],
    *,
    budget: int = 64,
    max_seqs: int = 8,
    kv_tokens: int = 10_000,
    step_ns: int = 10 * MS,
    every_ns: int = 0,
) -> ToyRun:
    """Run requests given as (prompt, output[, cached]) tokens, one arriving every ``every_ns``."""
    toys = [
        ToyRequest(*request, arrives_ns=START_NS + index * every_ns, request_id=f"cmpl-bench-{index}-0-{index:08x}")
        for index, request in enumerate(requests)
    ]
    records = ToyEngine(list(toys), budget, max_seqs, kv_tokens, step_ns).run()
    return ToyRun(records, client_result(toys))


def gpu_spec(label_clock: str = "step_time") -> GpuSpec:
    datasheet = Datasheet(
        source="a test",
        kind="cpu",
        bf16_tflops=1.0,
        memory_gib=8.0,
        memory_bandwidth_tbps=0.02,
        link_gbps_per_direction=1.0,
        pcie_gbps=1.0,
        sm_count=1,
        boost_clock_mhz=2000.0,
        label_clock=label_clock,
    )
    calibration = Calibration(
        source="a test",
        mfu_prefill=0.5,
        mfu_decode=0.5,
        bandwidth_efficiency=0.8,
        allreduce_latency_us=0.0,
        alltoall_latency_us=0.0,
        launch_overhead_us=0.0,
        scheduler_overhead_us=0.0,
    )
    return GpuSpec(name="toy-gpu", vendor_name="Toy", datasheet=datasheet, calibration=calibration)


def benchmark_job(engine: dict[str, Any] | None = None, **workload: Any) -> BenchmarkJob:
    return BenchmarkJob(
        model="toy/model",
        gpu="toy-gpu",
        engine=EngineArgs(**(engine or {})),
        workload=Workload(**({"name": "toy", "num_prompts": 1} | workload)),
        engine_version="0.32.0",
    )


@pytest.fixture(scope="session")
def toy():
    """Return the function that runs the toy engine."""
    return run_toy_engine


@pytest.fixture(scope="session")
def make_job():
    """Return the function that makes a job of engine arguments and workload words."""
    return benchmark_job


@pytest.fixture(scope="session")
def make_gpu():
    """Return the function that makes a GPU with a label clock."""
    return gpu_spec


@pytest.fixture(scope="session")
def job():
    """Return a job that leaves every choice to the engine."""
    return benchmark_job()
