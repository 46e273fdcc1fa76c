"""The kept tables: the ``jobs`` table, tables as files, and the observations made from jobs and steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from srfa.errors import DataInvalidError, InputError
from srfa.files import writing
from srfa.schema import JOBS, OBSERVATIONS, SCHEMA_VERSION
from srfa.specs import BenchmarkJob, EngineArgs, GpuSpec
from srfa.traces.plugin import EngineRecord
from srfa.units import BYTES_PER_GIB

_DTYPE_ALIASES: Final = {"half": "float16", "float": "float32"}
_VERSION_KEY: Final = b"schema_version"


def resolved_arguments(
    requested: EngineArgs, engine: EngineRecord, reported: Mapping[str, object] | None = None
) -> EngineArgs:
    """Return the engine arguments as they ran.

    The engine record wins over what the server reported, which wins over what was requested; what nobody reports stays
    as requested. Keys of ``reported`` that are no engine argument, and values of None, are passed over.

    Raises
    ------
    DataInvalidError
        A reported value cannot be an engine argument.
    """
    known = EngineArgs.model_fields.keys()
    seen = {name: value for name, value in (reported or {}).items() if name in known and value is not None}
    seen |= {name: value for name, value in engine.model_dump().items() if name in known and value is not None}
    if requested.num_gpu_blocks_override is not None and engine.num_gpu_blocks is not None:
        seen["num_gpu_blocks_override"] = engine.num_gpu_blocks
    try:
        resolved = EngineArgs.model_validate(requested.model_dump() | seen)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataInvalidError(f"engine.json: {first['loc'][0]}={first['input']!r}: {first['msg']}") from error
    return resolved.model_copy(update={"dtype": canonical_dtype(resolved.dtype)})


def canonical_dtype(name: str) -> str:
    """Return vLLM's long name of a dtype: ``torch.bfloat16`` -> ``bfloat16``, ``half`` -> ``float16``."""
    short = name.removeprefix("torch.")
    return _DTYPE_ALIASES.get(short, short)


def jobs_table(
    job: BenchmarkJob,
    engine: EngineRecord,
    *,
    run_id: str,
    reported: Mapping[str, object] | None = None,
    environment: Mapping[str, object] | None = None,
) -> pa.Table:
    """Return the ``jobs`` table (schema :data:`srfa.schema.JOBS`): one row, with the arguments as they ran.

    Parameters
    ----------
    reported
        Arguments the server itself reports, by vLLM's names; see :func:`resolved_arguments`.
    environment
        Kept as JSON: driver, clocks, container image, commits.

    Notes
    -----
    ``moe_routing`` and ``moe_kernel`` are null: the scheduler does not see them. ``max_concurrency`` and
    ``request_rate`` are null where the client had no limit.
    """
    args = resolved_arguments(job.engine, engine, reported)
    row = {name: value for name, value in args.model_dump().items() if name in JOBS.names}
    row |= {
        "job_id": job.job_id,
        "run_id": run_id,
        "source": "srfa-plugin",
        "software_version": f"vllm {engine.vllm_version}",
        "gpu": job.gpu,
        "gpu_count": args.gpu_count,
        "model": job.model,
        "expert_parallel_size": args.expert_parallel_size,
        "workload": job.workload.name,
        "max_concurrency": job.workload.max_concurrency,
        "request_rate": job.workload.request_rate if isfinite(job.workload.request_rate) else None,
        "kv_offload_bytes": None if args.kv_offloading_size is None else int(args.kv_offloading_size * BYTES_PER_GIB),
        "async_scheduling": engine.async_scheduling,
        "batch_queue_size": engine.batch_queue_size,
        "num_gpu_blocks": engine.num_gpu_blocks,
        "mono_to_epoch_ns": engine.mono_to_epoch_ns,
        "environment": json.dumps(environment or {}, sort_keys=True, default=str),
    }
    return pa.Table.from_pylist([row], schema=JOBS)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet (zstd) under a temporary name in the same folder, then rename it to ``path``.

    Raises
    ------
    InputError
        The file cannot be written.
    ValueError
        The table carries no ``schema_version``: it is not one of :mod:`srfa.schema`.
    """
    if _version(table.schema) is None:
        raise ValueError(
            f"{path}: the table has no schema_version in its metadata; build it with a schema of srfa.schema"
        )
    with writing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """Return the table :func:`write_table` wrote.

    Parameters
    ----------
    schema
        What its columns must be; None takes any.

    Raises
    ------
    InputError
        The file is missing or no Parquet file, of another ``schema_version``, or of other columns.
    """
    try:
        # Not read_table: that would add the partition columns of folders called name=value.
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error}); ingest the traces again") from error
    version = _version(table.schema)
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema_version {version}, this srfa reads {SCHEMA_VERSION}; ingest the traces again")
    if schema is not None and not table.schema.equals(schema):
        differing = sorted(set(table.schema) ^ set(schema), key=str)
        raise InputError(f"{path}: columns differ from the schema in {differing}; ingest the traces again")
    return table


def observations_table(jobs: pa.Table, steps: pa.Table, gpus: Mapping[str, GpuSpec]) -> pa.Table:
    """Return the observations (schema :data:`srfa.schema.OBSERVATIONS`): usable steps with their job's columns.

    Kept are steps that are ``valid`` and whose label is known and above zero. Warm-up is not among them: warm-up
    requests run outside every load window, and the first step of a window is not valid. Where the GPU's datasheet says
    ``label_clock = "step_cpu_time"``, the label is the step's CPU time, method ``cpu_time``, and the busy-loop cycle
    stays in ``step_wall_time_us``, which every row has.

    Raises
    ------
    DataInvalidError
        Steps of a job that ``jobs`` does not hold, a GPU that ``gpus`` does not hold, or a job on a profile with
        ``step_cpu_time`` none of whose valid steps has a CPU time.
    """
    row_of_job = _rows_of_jobs(jobs, steps)
    cpu_clock = _uses_cpu_clock(jobs, gpus)[row_of_job]
    wall_us = _floats(steps["step_time_us"])
    label_us = np.where(cpu_clock, _floats(steps["step_cpu_time_us"]), wall_us)
    valid = steps["valid"].to_numpy()
    usable = valid & (label_us > 0)
    _check_labelled(jobs, row_of_job[valid & cpu_clock], row_of_job[usable])
    method = np.where(cpu_clock, "cpu_time", steps["step_time_method"].to_numpy())
    joined = jobs.take(pa.array(row_of_job))
    columns: dict[str, Any] = {name: joined[name] for name in jobs.column_names}
    columns |= {name: steps[name] for name in steps.column_names}
    columns |= {
        "step_time_us": pa.array(label_us),
        "step_time_method": pa.array(method, pa.string()),
        "step_wall_time_us": pa.array(wall_us),
        "sum_prefill_context_tokens": pa.array(_list_sums(steps["prefill_context_tokens"])),
        "sum_decode_context_tokens": pa.array(_list_sums(steps["decode_context_tokens"])),
    }
    table = pa.table({name: columns[name] for name in OBSERVATIONS.names}, schema=OBSERVATIONS)
    return table.filter(pa.array(usable)).combine_chunks()


def _version(schema: pa.Schema) -> int | None:
    text = (schema.metadata or {}).get(_VERSION_KEY)
    return int(text) if text is not None and text.isdigit() else None


def _rows_of_jobs(jobs: pa.Table, steps: pa.Table) -> NDArray[np.int64]:
    rows = pc.index_in(steps["job_id"], value_set=jobs["job_id"].combine_chunks())
    if rows.null_count:
        unknown = sorted(set(steps["job_id"].filter(pc.is_null(rows)).to_pylist()))
        raise DataInvalidError(f"steps of jobs without a row in the jobs table: {unknown}; ingest them together")
    return np.asarray(rows.to_numpy(), dtype=np.int64)


def _uses_cpu_clock(jobs: pa.Table, gpus: Mapping[str, GpuSpec]) -> NDArray[np.bool_]:
    names = jobs["gpu"].to_pylist()
    if unknown := sorted(set(names) - set(gpus)):
        raise DataInvalidError(f"jobs on GPUs without a datasheet: {unknown}; add them to hardware/")
    return np.asarray([gpus[name].datasheet.label_clock == "step_cpu_time" for name in names], dtype=np.bool_)


def _check_labelled(jobs: pa.Table, expected: NDArray[np.int64], found: NDArray[np.int64]) -> None:
    if (unlabelled := np.setdiff1d(expected, found)).size:
        job = jobs.slice(int(unlabelled[0]), 1).to_pylist()[0]
        raise DataInvalidError(
            f"job {job['job_id']}: no step has a CPU time, but the label of {job['gpu']} is step_cpu_time; the "
            'recorder could not read the CPU clocks: fix that, or set "label_clock": "step_time" in the datasheet'
        )


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(), dtype=np.float64)


def _list_sums(column: pa.ChunkedArray) -> NDArray[np.float64]:
    lists = column.combine_chunks()
    rows = pc.list_parent_indices(lists).to_numpy()
    return np.bincount(rows, weights=pc.list_flatten(lists).to_numpy(), minlength=len(lists)).astype(np.float64)
