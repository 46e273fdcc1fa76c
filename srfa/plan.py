"""What a campaign costs before anything runs: server starts, GPU-hours, hours to wait, money.

The figures are estimates to decide by, not predictions: a start takes a fixed time plus reading the weights; a
workload takes its prompt tokens at the compute rate and its decode steps at the bandwidth, both derated by the
calibration of the GPU's file, and at least as long as its requests take to arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from srfa.catalog import Catalog
from srfa.errors import UsageError
from srfa.feasibility import DEFAULT_MAX_NUM_SEQS
from srfa.matrix import Expansion
from srfa.memory import active_parameter_count, kv_bytes_per_token, kv_cache_dtype, weight_bytes
from srfa.specs import BenchmarkJob, EngineArgs, EngineGroup, GpuSpec, ModelSpec, Workload
from srfa.units import BYTES_PER_US_PER_TBPS, FLOPS_PER_US_PER_TFLOPS, US_PER_S
from srfa.wording import unknown

START_S: Final = {"cuda": 90.0, "cpu": 55.0}
"""A server from process start to ready, weights aside: imports, graph capture, and on a CPU probe and compilation."""
_LOAD_TBPS: Final = 0.002
"""Weights come from storage at about 2 GB/s a GPU."""
_JOB_OVERHEAD_S: Final = 5.0
"""Warm-up, cache reset and hand-over between two workloads of a server."""
_S_PER_HOUR: Final = 3600.0
_FLOPS_PER_PARAMETER: Final = 2


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """The campaign's share on one type of GPU.

    Parameters
    ----------
    gpu_hours
        Sum over servers of GPUs x hours.
    eta_h
        Hours until the last server is done, with the nodes that were assumed.
    cost
        In the unit of the prices; None where none was given.
    """

    gpu: str
    server_starts: int
    jobs: int
    largest_server_gpus: int
    gpu_hours: float
    eta_h: float
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole campaign; ``rows`` has one entry a type of GPU, in order of name."""

    rows: tuple[GpuPlan, ...]
    skipped: int

    @property
    def server_starts(self) -> int:
        """Distinct engine configurations."""
        return sum(row.server_starts for row in self.rows)

    @property
    def jobs(self) -> int:
        """Measurements."""
        return sum(row.jobs for row in self.rows)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours over all types."""
        return sum(row.gpu_hours for row in self.rows)

    @property
    def eta_h(self) -> float:
        """Hours until all is done: types of GPU work side by side."""
        return max((row.eta_h for row in self.rows), default=0.0)

    @property
    def cost(self) -> float | None:
        """Sum of the costs, or None where a type of GPU has no price."""
        costs = [row.cost for row in self.rows if row.cost is not None]
        return sum(costs) if len(costs) == len(self.rows) else None


def group_jobs(
    jobs: Iterable[BenchmarkJob], duration_s: Callable[[BenchmarkJob], float] | None = None
) -> tuple[EngineGroup, ...]:
    """Return one group for each distinct server, longest first, jobs in their given order.

    Long servers go first so that none starts alone at the end.

    Parameters
    ----------
    duration_s
        Expected seconds of a job; by default its generated tokens stand for them, which orders servers of one kind.
    """
    by_server: dict[tuple[object, ...], list[BenchmarkJob]] = {}
    for job in jobs:
        by_server.setdefault((job.model, job.gpu, job.engine, job.engine_version, job.image), []).append(job)
    groups = [EngineGroup(group_id=mine[0].group_id, jobs=tuple(mine)) for mine in by_server.values()]
    measure = duration_s or _generated_tokens
    return tuple(sorted(groups, key=lambda group: (-sum(map(measure, group.jobs)), group.group_id)))


def plan(
    expansion: Expansion,
    catalog: Catalog,
    *,
    prices_per_gpu_hour: Mapping[str, float] | None = None,
    nodes: Mapping[str, int] | None = None,
) -> Plan:
    """Estimate what running an expansion takes.

    Parameters
    ----------
    prices_per_gpu_hour
        By GPU name; a type without a price has no cost.
    nodes
        Nodes of each type; one by default.

    Raises
    ------
    UsageError
        A price or a number of nodes for a GPU that the catalogue does not know, or one that is not positive.
    """
    _check_names(catalog, prices_per_gpu_hour or {}, nodes or {})
    by_gpu: dict[str, list[EngineGroup]] = {}
    for group in group_jobs(expansion.jobs, lambda job: job_duration_s(job, catalog)):
        by_gpu.setdefault(group.first.gpu, []).append(group)
    rows = (
        _gpu_plan(groups, catalog, nodes=(nodes or {}).get(name, 1), price=(prices_per_gpu_hour or {}).get(name))
        for name, groups in sorted(by_gpu.items())
    )
    return Plan(rows=tuple(rows), skipped=len(expansion.skipped))


def group_duration_s(group: EngineGroup, catalog: Catalog) -> float:
    """Return the estimated seconds of one server: its start, its weights, its workloads."""
    first = group.first
    model, gpu = catalog.resolve_model(first.model), catalog.resolve_gpu(first.gpu)
    load_s = weight_bytes(model, first.engine) / (_LOAD_TBPS * BYTES_PER_US_PER_TBPS) / US_PER_S
    if first.engine.load_format == "dummy":
        load_s = 0.0
    return START_S[gpu.datasheet.kind] + load_s + sum(job_duration_s(job, catalog) for job in group.jobs)


def job_duration_s(job: BenchmarkJob, catalog: Catalog) -> float:
    """Return the estimated seconds of one workload on a server that is ready.

    ``max(prefill + decode, arrivals) + overhead``, where ``prefill = 2 x active parameters x prompt tokens /
    (peak x MFU)`` and ``decode = steps x (weights + KV of the running requests) / (bandwidth x efficiency)``.
    """
    model, gpu, load = catalog.resolve_model(job.model), catalog.resolve_gpu(job.gpu), job.workload
    busy_us = _prefill_us(job.engine, load, model, gpu) + _decode_us(job.engine, load, model, gpu)
    arrivals_s = load.num_prompts / load.request_rate
    return max(busy_us / US_PER_S, arrivals_s) + _JOB_OVERHEAD_S


def _gpu_plan(groups: Sequence[EngineGroup], catalog: Catalog, *, nodes: int, price: float | None) -> GpuPlan:
    gpu = catalog.resolve_gpu(groups[0].first.gpu)
    sizes = [group.first.engine.gpu_count for group in groups]
    hours = [group_duration_s(group, catalog) / _S_PER_HOUR for group in groups]
    gpu_hours = sum(size * each for size, each in zip(sizes, hours, strict=True))
    return GpuPlan(
        gpu=gpu.name,
        server_starts=len(groups),
        jobs=sum(len(group.jobs) for group in groups),
        largest_server_gpus=max(sizes),
        gpu_hours=gpu_hours,
        eta_h=max(*hours, gpu_hours / (nodes * gpu.datasheet.gpus_per_node), 0.0),
        cost=None if price is None else price * gpu_hours,
    )


def _prefill_us(engine: EngineArgs, load: Workload, model: ModelSpec, gpu: GpuSpec) -> float:
    flops = _FLOPS_PER_PARAMETER * active_parameter_count(model) * load.num_prompts * _prompt_tokens(load)
    rate_tflops = gpu.datasheet.bf16_tflops * gpu.calibration.mfu_prefill * engine.gpu_count
    return flops / (rate_tflops * FLOPS_PER_US_PER_TFLOPS)


def _decode_us(engine: EngineArgs, load: Workload, model: ModelSpec, gpu: GpuSpec) -> float:
    seats = (engine.max_num_seqs or DEFAULT_MAX_NUM_SEQS) * engine.data_parallel_size
    running = min(load.num_prompts, load.max_concurrency or seats, seats)
    steps = -(-load.num_prompts // running) * _output_tokens(load)
    context = _prompt_tokens(load) + _output_tokens(load) / 2
    cache = kv_bytes_per_token(model, engine.tensor_parallel_size, kv_cache_dtype(model, engine))
    step_bytes = weight_bytes(model, engine) + running / engine.data_parallel_size * context * cache
    rate_tbps = gpu.datasheet.memory_bandwidth_tbps * gpu.calibration.bandwidth_efficiency
    return steps * step_bytes / (rate_tbps * BYTES_PER_US_PER_TBPS)


def _prompt_tokens(load: Workload) -> int:
    if load.dataset_name == "prefix_repetition":
        return load.prefix_repetition_prefix_len + load.prefix_repetition_suffix_len
    return load.random_prefix_len + load.random_input_len


def _output_tokens(load: Workload) -> int:
    return load.prefix_repetition_output_len if load.dataset_name == "prefix_repetition" else load.random_output_len


def _generated_tokens(job: BenchmarkJob) -> float:
    return job.workload.num_prompts * _output_tokens(job.workload)


def _check_names(catalog: Catalog, prices: Mapping[str, float], nodes: Mapping[str, int]) -> None:
    for what, values in (("price", prices), ("number of nodes", nodes)):
        for name, value in values.items():
            if name not in catalog.gpus:
                raise UsageError(f"{what} {value:g} for {unknown('GPU', name, catalog.gpus)}")
            if not value > 0:
                raise UsageError(f"{what} {value:g} for GPU {name}: should be more than 0")
