"""What travels between Prefect, Ray and the library: models, GPUs, engine arguments, workloads, jobs, outcomes.

Names are upstream's: Hugging Face ``config.json`` keys, vLLM argument names, ``vllm bench serve`` words.
Everything here is read from a file or crosses a process border, so it is pydantic, frozen and refuses unknown fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str)
_SERVER_FIELDS: Final = ("engine", "engine_version", "gpu", "image", "model")
_Figure = Annotated[float | None, Field(gt=0, allow_inf_nan=False)]
SHAREGPT_LONGEST_TOKENS: Final = 2048
"""``vllm bench serve`` drops ShareGPT conversations above this (``is_valid_sequence`` in its datasets module)."""


class Spec(BaseModel):
    """Base of all specifications: frozen, and an unknown field is an error.

    Infinity is written to JSON as the text ``Infinity`` (not ``null``), so that what was written can be read again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class ModelSpec(Spec):
    """The shape facts of a model, in canonical Hugging Face ``config.json`` keys.

    ``srfa.catalog`` maps the spellings of the families onto these (``num_local_experts``, ``n_routed_experts``, ...).

    Parameters
    ----------
    intermediate_size
        Width of a dense layer's MLP; of a shared expert see ``shared_expert_intermediate_size``.
    num_experts
        Routed experts a MoE layer holds; 0 for a dense model.
    moe_layers
        How many of the ``num_hidden_layers`` are MoE layers.
    kv_lora_rank
        Width of MLA's compressed KV vector; None where attention is MHA, MQA or GQA.
    mlp_gated
        True where the MLP has a gate and an up projection (SwiGLU, GeGLU): three matrices instead of two.
    quantization
        ``quant_method`` of the checkpoint itself (DeepSeek-V3 is published in fp8); None: weights have ``torch_dtype``.
    quantization_bits
        Bits a quantised weight takes, where the checkpoint's ``quantization_config`` says so.
    """

    name: str
    model_type: str
    architecture: str
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = 4096
    torch_dtype: str = "bfloat16"
    tie_word_embeddings: bool = False
    mlp_gated: bool = True
    num_experts: int = Field(default=0, ge=0)
    num_experts_per_tok: int = Field(default=0, ge=0)
    moe_intermediate_size: int = Field(default=0, ge=0)
    n_shared_experts: int = Field(default=0, ge=0)
    shared_expert_intermediate_size: int = Field(default=0, ge=0)
    moe_layers: int = Field(default=0, ge=0)
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    sliding_window: int | None = None
    quantization: str | None = None
    quantization_bits: PositiveInt | None = None

    @property
    def is_moe(self) -> bool:
        """True where at least one layer routes tokens to experts."""
        return self.moe_layers > 0

    @property
    def is_mla(self) -> bool:
        """True where attention reads a compressed KV vector (multi-head latent attention)."""
        return self.kv_lora_rank is not None


class Datasheet(Spec):
    """Published figures of a GPU (or measured ones of a CPU profile); dense rates only, never with sparsity."""

    source: str = Field(min_length=1)
    kind: Literal["cuda", "cpu"]
    compute_capability: str | None = None
    bf16_tflops: PositiveFloat
    fp16_tflops: PositiveFloat | None = None
    fp8_tflops: PositiveFloat | None = None
    int8_tops: PositiveFloat | None = None
    memory_gib: PositiveFloat
    memory_bandwidth_tbps: PositiveFloat
    link_gbps_per_direction: PositiveFloat
    pcie_gbps: PositiveFloat
    sm_count: PositiveInt
    boost_clock_mhz: PositiveFloat
    gpus_per_node: PositiveInt = 8
    label_clock: Literal["step_time", "step_cpu_time"] = "step_time"
    engine_env: dict[str, str] = Field(default_factory=dict)
    omp_threads: PositiveInt | None = None


class Calibration(Spec):
    """Efficiencies and latencies that are not on a datasheet, with where they come from."""

    source: str = Field(min_length=1)
    mfu_prefill: PositiveFloat
    mfu_decode: PositiveFloat
    bandwidth_efficiency: PositiveFloat
    allreduce_latency_us: float = Field(ge=0)
    alltoall_latency_us: float = Field(ge=0)
    launch_overhead_us: float = Field(ge=0)
    scheduler_overhead_us: float = Field(ge=0)


class FusedMoeConfigs(Spec):
    """Which expert shapes the engine has tuned its fused-MoE kernel for on a GPU; other shapes run its default tiles.

    Parameters
    ----------
    names
        ``E=<experts on a rank>,N=<width of an expert's shard>[,dtype=..][,block_shape=..]``, as vLLM names its files.
    """

    source: str = Field(min_length=1)
    names: Annotated[
        tuple[str, ...], BeforeValidator(lambda names: tuple(names) if isinstance(names, list) else names)
    ] = ()


class Microbenchmark(Spec):
    """What single kernels reach on a GPU, or a CPU profile, by a minute's measurement; None was not measured.

    Parameters
    ----------
    gpu
        Stem of the file in ``hardware/``, or the vendor's name that stands in it.
    gemm_tflops, attention_tflops
        Best rate of prefill-like matrix products, and of causal attention (the masked half not counted).
    weight_stream_tbps, kv_stream_tbps
        Bytes of weights read in products with 1 to 16 rows, and of keys and values in attention of one query, a time.
    kernel_latency_us
        Time an operation takes that is too small to take any, launched without a graph.
    allreduce_latency_us, allreduce_gbps
        All-reduce of 8 KiB; and of 64 MiB, what a rank sends in a ring, ``2 (n - 1) / n`` of it, a time.
    spread_ratio
        Robust coefficient of variation of a figure's repeats.
    curves
        The figure, in its unit, by kernel and size.
    notes
        By figure: why it was not measured, or what to distrust in it.
    """

    schema_version: Literal[1] = 1
    gpu: str = Field(min_length=1)
    source: str = Field(min_length=1)
    kind: Literal["cuda", "cpu"]
    dtype: Literal["float32", "bfloat16", "float16"]
    device_name: str = ""
    threads: PositiveInt | None = None
    torch_version: str = ""
    cuda_version: str | None = None
    gemm_tflops: _Figure = None
    weight_stream_tbps: _Figure = None
    kv_stream_tbps: _Figure = None
    attention_tflops: _Figure = None
    kernel_latency_us: _Figure = None
    allreduce_latency_us: _Figure = None
    allreduce_gbps: _Figure = None
    spread_ratio: dict[str, float] = Field(default_factory=dict)
    curves: dict[str, dict[str, float]] = Field(default_factory=dict)
    notes: dict[str, str] = Field(default_factory=dict)


class GpuSpec(Spec):
    """One file of ``hardware/``: a GPU, or a profile of a CPU."""

    name: str
    vendor_name: str
    datasheet: Datasheet
    calibration: Calibration
    fused_moe_configs: FusedMoeConfigs | None = None
    microbenchmark: Microbenchmark | None = None


class EngineArgs(Spec):
    """Arguments of ``vllm serve``, by vLLM's own names; None leaves the choice to the engine.

    Everything here changes the server that is started: jobs with equal engine arguments, model and GPU share one start.
    """

    tensor_parallel_size: PositiveInt = 1
    data_parallel_size: PositiveInt = 1
    enable_expert_parallel: bool = False
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: PositiveInt | None = None
    max_num_seqs: PositiveInt | None = None
    max_num_batched_tokens: PositiveInt | None = None
    block_size: PositiveInt | None = None
    enable_chunked_prefill: bool | None = None
    enable_prefix_caching: bool | None = None
    long_prefill_token_threshold: int | None = Field(default=None, ge=0)
    watermark: float | None = Field(default=None, ge=0, lt=1)
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    kv_cache_memory_bytes: PositiveInt | None = None
    num_gpu_blocks_override: PositiveInt | None = None
    cpu_offload_gb: float = Field(default=0.0, ge=0)
    kv_offloading_size: float | None = Field(default=None, gt=0)
    enforce_eager: bool = False
    load_format: str = "auto"
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    seed: int = 0

    @property
    def expert_parallel_size(self) -> int:
        """Ranks the experts are spread over: tensor x data parallel ranks when expert parallelism is on, else 1."""
        return self.tensor_parallel_size * self.data_parallel_size if self.enable_expert_parallel else 1

    @property
    def gpu_count(self) -> int:
        """GPUs one server occupies."""
        return self.tensor_parallel_size * self.data_parallel_size


class Workload(Spec):
    """One load run, in the words of ``vllm bench serve``."""

    name: str
    dataset_name: Literal["random", "prefix_repetition", "sharegpt"] = "random"
    dataset_path: str | None = None
    random_input_len: PositiveInt = 1024
    random_output_len: PositiveInt = 128
    random_range_ratio: float = Field(default=0.0, ge=0, lt=1)
    random_prefix_len: int = Field(default=0, ge=0)
    prefix_repetition_prefix_len: PositiveInt = 256
    prefix_repetition_suffix_len: PositiveInt = 256
    prefix_repetition_num_prefixes: PositiveInt = 10
    prefix_repetition_output_len: PositiveInt = 128
    num_prompts: PositiveInt = 100
    request_rate: PositiveFloat = float("inf")
    burstiness: PositiveFloat = 1.0
    max_concurrency: PositiveInt | None = None
    ignore_eos: bool = True
    temperature: float = Field(default=0.0, ge=0)

    @property
    def longest_request_tokens(self) -> int:
        """Prompt plus output tokens of the longest request this workload can send."""
        if self.dataset_name == "prefix_repetition":
            prompt = self.prefix_repetition_prefix_len + self.prefix_repetition_suffix_len
            return prompt + self.prefix_repetition_output_len
        if self.dataset_name == "sharegpt":
            return SHAREGPT_LONGEST_TOKENS
        stretch = 1.0 + self.random_range_ratio
        prompt = self.random_prefix_len + int(self.random_input_len * stretch)
        return prompt + int(self.random_output_len * stretch)


class BenchmarkJob(Spec):
    """One measurement: one workload against one engine configuration, once."""

    model: str
    gpu: str
    engine: EngineArgs
    workload: Workload
    seed: int = 0
    repeat: int = Field(default=0, ge=0)
    engine_version: str
    image: str | None = None

    @property
    def job_id(self) -> str:
        """First 12 hex digits of sha256 over the job's canonical JSON: everything that changes the measurement."""
        return _digest(_canonical_fields(self, sorted(BenchmarkJob.model_fields)))

    @property
    def group_id(self) -> str:
        """The same over what one server start needs; jobs that share it share the start."""
        return _digest(_canonical_fields(self, _SERVER_FIELDS))


class EngineGroup(Spec):
    """The jobs that one server start serves, in the order they will run."""

    group_id: str
    jobs: tuple[BenchmarkJob, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_server(self) -> EngineGroup:
        if any(job.group_id != self.group_id for job in self.jobs):
            raise ValueError(f"group {self.group_id} holds jobs of another server configuration")
        return self

    @property
    def first(self) -> BenchmarkJob:
        """A job that stands for the group where only the server matters."""
        return self.jobs[0]


class Skipped(Spec):
    """A cell of the matrix that was not turned into a job, and why."""

    job: BenchmarkJob
    reason: str


FailureReason = Literal[
    "unschedulable",
    "engine_start",
    "not_ready",
    "port_in_use",
    "config_mismatch",
    "engine_died",
    "load_failed",
    "timeout",
    "store",
    "data_gate",
    "worker_lost",
    "not_simulated",
]


class JobOutcome(Spec):
    """How a job ended, small enough to travel; the evidence lies in the store under ``prefix``."""

    job_id: str
    group_id: str
    prefix: str
    status: Literal["measured", "failed"]
    reason: FailureReason | None = None
    message: str = ""
    n_requests: int = 0
    n_steps: int = 0
    wall_s: float = 0.0
    server_start_s: float = 0.0


def content_id(document: object) -> str:
    """Return the first 12 hex digits of sha256 over the canonical JSON of ``document``.

    >>> content_id({"b": 1, "a": 2}) == content_id({"a": 2, "b": 1})
    True
    """
    return _digest(_CANONICAL.encode(document))


def _digest(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _canonical_fields(job: BenchmarkJob, names: Sequence[str]) -> str:
    """Canonical JSON of some fields, named in sorted order; thousands of jobs share their engine and workload."""
    values = ((name, getattr(job, name)) for name in names)
    texts = (f'"{name}":{_canonical(v) if isinstance(v, Spec) else _CANONICAL.encode(v)}' for name, v in values)
    return f"{{{','.join(texts)}}}"


@lru_cache(maxsize=4096)
def _canonical(spec: Spec) -> str:
    return _CANONICAL.encode(spec.model_dump(mode="json"))
