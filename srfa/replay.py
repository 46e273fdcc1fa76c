"""A measured job as a simulation's input: its requests, its server, and the fitted delays outside the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from srfa.catalog import Catalog
from srfa.errors import InputError
from srfa.fit.outside import OUTSIDE_BLOCKS, Blocks, predicted_us
from srfa.observations import configuration_of
from srfa.ragged import IntArray
from srfa.roofline import Place, place_of
from srfa.simulate.load import BlockHashes, RequestLoad
from srfa.simulate.outside import Outside
from srfa.simulate.server import Server
from srfa.units import BYTES_PER_GIB, NS_PER_US

SIMULATED_BLOCKS: Final = OUTSIDE_BLOCKS - {"queue_wait"}
"""Blocks that :func:`outside_of` reads: in a simulation waiting emerges."""
_NEEDED: Final = ("t_arrived_ns", "t_queued_ns", "t_first_token_ns", "t_finished_ns")
_POLICIES: Final[Mapping[str, Literal["fcfs", "priority"]]] = {"fcfs": "fcfs", "priority": "priority"}


def finished_requests(requests: pa.Table, job_id: str) -> pa.Table:
    """Return a job's rows of the table of requests that have all their times, in the order in which they queued.

    :func:`job_load` makes one request of each, in this order: what was measured beside what is simulated.

    Raises
    ------
    InputError
        The job has none.
    """
    kept = pc.equal(requests["job_id"], job_id)
    for name in _NEEDED:
        kept = pc.and_(kept, pc.is_valid(requests[name]))
    own = requests.filter(pc.and_(kept, pc.greater(requests["output_tokens"], 0)))
    if own.num_rows == 0:
        raise InputError(f"job {job_id}: no finished request among {requests.num_rows}; give the table of its requests")
    return own.take(pc.sort_indices(own, [("t_queued_ns", "ascending"), ("t_arrived_ns", "ascending")]))


def job_load(requests: pa.Table, job_row: Mapping[str, Any]) -> RequestLoad:
    """Return what one measured job was asked for.

    Arrivals are the engine's, relative to the first; where one queued before an earlier arrival, it counts as arriving
    no earlier, so that the order of the queue stays. A closed-loop client (``max_concurrency`` of the job) sends when
    it has a seat: recorded arrivals are then no input, and all its requests are there from the start. One that also
    has a ``request_rate`` sends when both allow it: recorded arrivals are the earliest times.

    Parameters
    ----------
    requests
        The table of requests, of this job or of several.
    job_row
        Its row of the jobs table; without ``max_concurrency`` the client is an open loop.

    Notes
    -----
    Requests share the KV blocks that ``block_hashes`` names alike. A table without those names (recorded by an earlier
    version) has only how long each hit was; then a request shares its first ``cached_tokens`` with the first request
    before it whose prompt is long enough, so that a hit can happen, and nothing else.

    Raises
    ------
    InputError
        The job has no finished request.
    """
    own = finished_requests(requests, str(job_row["job_id"]))
    arrived = _integers(own, "t_arrived_ns")
    arrival_us = np.maximum.accumulate((arrived - arrived.min()) / NS_PER_US)
    seats = job_row.get("max_concurrency")
    if seats is not None and job_row.get("request_rate") is None:
        arrival_us = np.zeros(own.num_rows)
    return RequestLoad(
        arrival_us=arrival_us,
        prompt_tokens=_integers(own, "prompt_tokens"),
        output_tokens=_integers(own, "output_tokens"),
        priority=_integers(own, "priority"),
        block_hashes=_block_hashes(own, job_row.get("block_size")),
        max_concurrency=None if seats is None else int(seats),
        request_ids=tuple(own["request_id"].to_pylist()),
    )


def server_of(job_row: Mapping[str, Any], catalog: Catalog | None = None) -> Server:
    """Return the server of one row of the jobs table, as it resolved.

    Parameters
    ----------
    catalog
        For the model of a job that offloads its KV cache (bytes to blocks) or has data-parallel engines (those of a
        MoE model step together); others need none.

    Raises
    ------
    InputError
        A fact that a scheduler needs is not recorded, or the catalogue is needed and not given.
    """
    ranks, offload = int(job_row.get("data_parallel_size") or 1), int(job_row.get("kv_offload_bytes") or 0)
    place = _place(job_row, catalog) if ranks > 1 or offload else None
    return Server(
        max_num_batched_tokens=_recorded(job_row, "max_num_batched_tokens"),
        max_num_seqs=_recorded(job_row, "max_num_seqs"),
        max_model_len=_recorded(job_row, "max_model_len"),
        block_size=_recorded(job_row, "block_size"),
        num_gpu_blocks=_recorded(job_row, "num_gpu_blocks"),
        enable_chunked_prefill=_or(job_row, "enable_chunked_prefill", True),
        enable_prefix_caching=_or(job_row, "enable_prefix_caching", True),
        long_prefill_token_threshold=_or(job_row, "long_prefill_token_threshold", 0),
        scheduling_policy=_policy(job_row),
        watermark=float(_or(job_row, "watermark", 0.0)),
        async_scheduling=_or(job_row, "async_scheduling", False),
        data_parallel_size=ranks,
        lockstep=ranks > 1 and place is not None and place.model.is_moe,
        cpu_offload_bytes=_or(job_row, "cpu_offload_gb", 0.0) * BYTES_PER_GIB,
        kv_offload_blocks=_offload_blocks(job_row, offload, place) if place is not None else 0,
    )


def outside_of(blocks: Blocks, load: RequestLoad, server: Server, *, gpu: str, catalog: Catalog) -> Outside:
    """Return the delays outside the steps that the blocks of :mod:`srfa.fit.outside` say; a missing block says 0.

    Parameters
    ----------
    gpu
        As the fit's observations name it, for ``wall_ratio``.
    catalog
        Says which GPUs have CPU time for a label. One that the fit does not have gets the median of those of them that
        it has; where labels are wall time, the ratio is 1.

    Raises
    ------
    CoefficientsError
        A block was fitted by another version.
    """
    count = load.n_requests
    idle_us, one_us = predicted_us(blocks, "between_steps", 2, scheduled_requests=np.array([0.0, 1.0]))
    synchronous = 0.0 if server.async_scheduling else 1.0
    return Outside(
        alpha_us=predicted_us(blocks, "alpha", count, prompt_tokens=load.prompt_tokens.astype(np.float64)),
        post_us=predicted_us(blocks, "post", count),
        alpha_token_us=predicted_us(blocks, "alpha_token", count, output_tokens=np.ones(count)),
        between_steps_us=synchronous * float(idle_us),
        between_steps_request_us=synchronous * float(one_us - idle_us),
        wall_ratio=_wall_ratio(blocks, gpu, catalog),
    )


def _wall_ratio(blocks: Blocks, gpu: str, catalog: Catalog) -> float:
    if "wall_ratio" not in blocks:
        return 1.0
    block = blocks["wall_ratio"]
    if gpu in block.names:
        return block[gpu]
    alike = [block[name] for name in block.names if _labels_are_cpu_time(name, catalog)]
    return float(np.median(alike)) if alike and _labels_are_cpu_time(gpu, catalog) else 1.0


def _labels_are_cpu_time(gpu: str, catalog: Catalog) -> bool:
    return gpu in catalog.gpus and catalog.gpus[gpu].datasheet.label_clock == "step_cpu_time"


def _integers(table: pa.Table, column: str) -> NDArray[np.int64]:
    """Return a column, 0 where nothing is recorded or the table has no such column."""
    if column not in table.column_names:
        return np.zeros(table.num_rows, dtype=np.int64)
    return np.asarray(pc.fill_null(table[column], 0).to_numpy(), dtype=np.int64)


def _block_hashes(own: pa.Table, block_size: int | None) -> BlockHashes:
    if "block_hashes" in own.column_names and own["block_hashes"].null_count < own.num_rows:
        names = own["block_hashes"].combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(names), 0).to_numpy().astype(np.int64)
        values = np.asarray(pc.list_flatten(names).to_numpy(), dtype=np.int64)
        return BlockHashes(values, np.concatenate([[0], np.cumsum(lengths)]))
    cached = _integers(own, "cached_tokens")
    if not block_size or not cached.any():
        return BlockHashes.none(own.num_rows)
    return _lent_blocks(_integers(own, "prompt_tokens") // block_size, cached // block_size)


def _lent_blocks(own_blocks: IntArray, hit_blocks: IntArray) -> BlockHashes:
    """Name the blocks of prompts so that each request has ``hit_blocks`` in common with one before it."""
    named: list[NDArray[np.int64]] = []
    fresh = 0
    for row, (blocks, hit) in enumerate(zip(own_blocks.tolist(), hit_blocks.tolist(), strict=True)):
        lenders = np.flatnonzero(own_blocks[:row] >= hit)
        shared = named[lenders[0]][:hit] if hit and lenders.size else np.zeros(0, dtype=np.int64)
        mine = max(blocks - len(shared), 0)
        named.append(np.concatenate([shared, np.arange(fresh, fresh + mine)]))
        fresh += mine
    offsets = np.concatenate([[0], np.cumsum([len(names) for names in named])])
    return BlockHashes(np.concatenate(named), offsets.astype(np.int64))


def _place(job_row: Mapping[str, Any], catalog: Catalog | None) -> Place:
    if catalog is None:
        raise InputError(
            f"job {job_row['job_id']}: data-parallel engines and KV offload depend on the model; give the catalogue"
        )
    return place_of(configuration_of(job_row), catalog)


def _offload_blocks(job_row: Mapping[str, Any], offload_bytes: int, place: Place) -> int:
    """Blocks that host memory holds; vLLM's ``kv_offloading_size`` is that of all tensor-parallel ranks."""
    ranks = place.configuration.tensor_parallel_size
    block_bytes = place.shard.kv_bytes_per_token * _recorded(job_row, "block_size") * ranks
    return int(offload_bytes // block_bytes)


def _recorded(job_row: Mapping[str, Any], column: str) -> int:
    value = job_row.get(column)
    if value is None:
        raise InputError(
            f"job {job_row['job_id']}: {column} is not recorded; a replay needs it, ingest the traces again"
        )
    return int(value)


def _or(job_row: Mapping[str, Any], column: str, default: Any) -> Any:
    value = job_row.get(column)
    return default if value is None else value


def _policy(job_row: Mapping[str, Any]) -> Literal["fcfs", "priority"]:
    name = _or(job_row, "scheduling_policy", "fcfs")
    if name not in _POLICIES:
        raise InputError(f"job {job_row['job_id']}: scheduling_policy={name!r} should be {' or '.join(_POLICIES)}")
    return _POLICIES[name]
