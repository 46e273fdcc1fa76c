"""Arrow schemas of the kept tables: jobs, steps, requests, kv_events, and the observations a fit reads.

Times are float64 microseconds (``_us``); clock readings are int64 nanoseconds of CLOCK_MONOTONIC (``_ns``) unless the
name says ``epoch``. Source: the trace contract of this project.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

SCHEMA_VERSION: Final = 1
SPEED_OF_LIGHT_MARGIN: Final = 0.8
"""A label under this share of its roofline floor is impossible; the rest is room for rounding (trace contract)."""
TOLERATED_SHARE: Final = 0.01
"""Up to this share of a job's steps may break the floor (a torn pair of clock readings); more mark the job invalid."""
METADATA: Final[dict[bytes | str, bytes | str]] = {b"schema_version": str(SCHEMA_VERSION).encode()}

_TOKENS = pa.list_(pa.int32())


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()), metadata=METADATA)


JOBS: Final = _schema(
    job_id=pa.string(),
    run_id=pa.string(),
    source=pa.string(),
    software_version=pa.string(),
    gpu=pa.string(),
    gpu_count=pa.int64(),
    model=pa.string(),
    dtype=pa.string(),
    quantization=pa.string(),
    kv_cache_dtype=pa.string(),
    tensor_parallel_size=pa.int64(),
    expert_parallel_size=pa.int64(),
    data_parallel_size=pa.int64(),
    moe_routing=pa.string(),
    moe_kernel=pa.string(),
    workload=pa.string(),
    max_concurrency=pa.int64(),
    request_rate=pa.float64(),
    max_model_len=pa.int64(),
    max_num_seqs=pa.int64(),
    max_num_batched_tokens=pa.int64(),
    block_size=pa.int64(),
    enable_chunked_prefill=pa.bool_(),
    enable_prefix_caching=pa.bool_(),
    scheduling_policy=pa.string(),
    long_prefill_token_threshold=pa.int64(),
    watermark=pa.float64(),
    cpu_offload_gb=pa.float64(),
    kv_offload_bytes=pa.int64(),
    async_scheduling=pa.bool_(),
    batch_queue_size=pa.int64(),
    num_gpu_blocks=pa.int64(),
    mono_to_epoch_ns=pa.int64(),
    environment=pa.string(),
)

STEPS: Final = _schema(
    job_id=pa.string(),
    step_id=pa.int64(),
    t_schedule_start_ns=pa.int64(),
    t_output_ns=pa.int64(),
    step_time_us=pa.float64(),
    step_time_method=pa.string(),
    step_cpu_time_us=pa.float64(),
    sched_time_us=pa.float64(),
    num_prefill_reqs=pa.int64(),
    num_decode_reqs=pa.int64(),
    prefill_tokens=pa.int64(),
    decode_tokens=pa.int64(),
    running_depth=pa.int64(),
    waiting_depth=pa.int64(),
    num_preempted=pa.int64(),
    num_finished=pa.int64(),
    kv_usage_ratio=pa.float64(),
    kv_blocks_total=pa.int64(),
    kv_blocks_free=pa.int64(),
    cpu_offload_bytes=pa.int64(),
    valid=pa.bool_(),
    invalid_reason=pa.string(),
    prefill_new_tokens=_TOKENS,
    prefill_context_tokens=_TOKENS,
    decode_context_tokens=_TOKENS,
)

REQUESTS: Final = _schema(
    job_id=pa.string(),
    request_id=pa.string(),
    prompt_tokens=pa.int64(),
    output_tokens=pa.int64(),
    cached_tokens=pa.int64(),
    priority=pa.int64(),
    num_preemptions=pa.int64(),
    finish_status=pa.string(),
    t_arrived_ns=pa.int64(),
    t_queued_ns=pa.int64(),
    t_first_scheduled_ns=pa.int64(),
    t_first_token_ns=pa.int64(),
    t_finished_ns=pa.int64(),
    t_departed_ns=pa.int64(),
    running_at_queue=pa.int64(),
    waiting_at_queue=pa.int64(),
    kv_usage_at_queue=pa.float64(),
    block_hashes=pa.list_(pa.int64()),
    ttft_us=pa.float64(),
    e2e_us=pa.float64(),
    itl_us=pa.list_(pa.float64()),
)

KV_EVENTS: Final = _schema(
    job_id=pa.string(),
    seq=pa.int64(),
    t_epoch_ns=pa.int64(),
    event=pa.string(),
    medium=pa.string(),
    source_medium=pa.string(),
    dest_medium=pa.string(),
    request_id=pa.string(),
    transfer_id=pa.string(),
    block_count=pa.int64(),
    block_size=pa.int64(),
    num_tokens=pa.int64(),
    success=pa.bool_(),
    dedup_count=pa.int64(),
)

REQUIRED_OBSERVATION_COLUMNS: Final = (
    "job_id",
    "gpu",
    "model",
    "tensor_parallel_size",
    "step_time_us",
    "num_prefill_reqs",
    "num_decode_reqs",
    "prefill_tokens",
    "decode_tokens",
)

_NOT_OBSERVED_JOB_COLUMNS: Final = {
    "job_id",
    "mono_to_epoch_ns",
    "environment",
    "max_concurrency",
    "request_rate",
    "async_scheduling",
    "scheduling_policy",
    "long_prefill_token_threshold",
    "watermark",
}
_OBSERVED_JOB_COLUMNS = tuple(name for name in JOBS.names if name not in _NOT_OBSERVED_JOB_COLUMNS)
_OBSERVED_STEP_COLUMNS = tuple(name for name in STEPS.names if name not in {"valid", "invalid_reason"})

OBSERVATIONS: Final = pa.schema(
    [JOBS.field(name) for name in ("job_id", *_OBSERVED_JOB_COLUMNS)]
    + [STEPS.field(name) for name in _OBSERVED_STEP_COLUMNS if name != "job_id"]
    + [
        pa.field("step_wall_time_us", pa.float64()),
        pa.field("sum_prefill_context_tokens", pa.float64()),
        pa.field("sum_decode_context_tokens", pa.float64()),
        pa.field("valid", pa.bool_()),
    ],
    metadata=METADATA,
)
"""Steps with their job's columns joined in: the one table ``fit``, ``validate``, ``compare`` and ``predict`` read."""
