"""The trace of one vLLM server, as ``srfa.vllm`` writes it: JSON lines in, columns out, or cut by load window.

The records are those of ``docs/adr/0001-architecture.md``. Reading is one pass of Arrow's JSON reader; Python looks at
single lines only to say which one is wrong.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as paj
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from srfa.errors import DataInvalidError
from srfa.specs import Spec

TRACE_SCHEMA_VERSION: Final = 1
"""The ``schema_version`` of the engine record this module reads."""

_BLOCK_BYTES: Final = 1 << 22
_TOKENS = pa.list_(pa.int32())
_STEP_FIELDS: Final[dict[str, pa.DataType]] = {
    "step_id": pa.int64(),
    "t_schedule_start_ns": pa.int64(),
    "t_schedule_end_ns": pa.int64(),
    "t_output_ns": pa.int64(),
    "running_depth": pa.int64(),
    "waiting_depth": pa.int64(),
    "num_preempted": pa.int64(),
    "num_finished": pa.int64(),
    "request_ids": pa.list_(pa.string()),
    "num_new_tokens": _TOKENS,
    "num_computed_tokens": _TOKENS,
    "num_prompt_tokens": _TOKENS,
}
_STEP_OPTIONAL: Final[dict[str, pa.DataType]] = {
    "step_cpu_time_ns": pa.int64(),
    "kv_blocks_total": pa.int64(),
    "kv_blocks_free": pa.int64(),
    "kv_usage_ratio": pa.float64(),
    "recorder_time_ns": pa.int64(),
}
_REQUEST_FIELDS: Final[dict[str, pa.DataType]] = {
    "request_id": pa.string(),
    "prompt_tokens": pa.int64(),
    "output_tokens": pa.int64(),
}
_REQUEST_OPTIONAL: Final[dict[str, pa.DataType]] = {
    "priority": pa.int64(),
    "block_hashes": pa.list_(pa.int64()),
    "cached_tokens": pa.int64(),
    "num_preemptions": pa.int64(),
    "finish_status": pa.string(),
    "t_arrived_ns": pa.int64(),
    "t_queued_ns": pa.int64(),
    "t_first_scheduled_ns": pa.int64(),
    "t_first_token_ns": pa.int64(),
    "t_finished_ns": pa.int64(),
    "running_at_queue": pa.int64(),
    "waiting_at_queue": pa.int64(),
    "kv_usage_at_queue": pa.float64(),
}
_PREEMPTION_FIELDS: Final[dict[str, pa.DataType]] = {
    "request_id": pa.string(),
    "t_ns": pa.int64(),
    "step_id": pa.int64(),
}
_DROPPED_FIELDS: Final[dict[str, pa.DataType]] = {"count": pa.int64()}
_PARALLEL_LISTS: Final = ("request_ids", "num_new_tokens", "num_computed_tokens", "num_prompt_tokens")
_RECORD_KINDS: Final = ("engine", "step", "request", "preemption", "dropped")
_TIME_FIELDS: Final = ("t_schedule_start_ns", "t_output_ns", "t_arrived_ns", "t_queued_ns", "t_ns")


class EngineRecord(BaseModel):
    """What the engine resolved, as its scheduler saw it. Fields this version does not know are ignored.

    Parameters
    ----------
    mono_to_epoch_ns
        What to add to a CLOCK_MONOTONIC reading of that machine to get nanoseconds since the epoch.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int
    vllm_version: str
    pid: int | None = None
    worker_pids: tuple[int, ...] = ()
    scheduler: str | None = None
    async_scheduling: bool
    batch_queue_size: int
    block_size: int
    num_gpu_blocks: int | None = None
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_chunked_prefill: bool | None = None
    enable_prefix_caching: bool | None = None
    scheduling_policy: str | None = None
    long_prefill_token_threshold: int | None = None
    watermark: float | None = None
    scheduler_reserve_full_isl: bool | None = None
    tensor_parallel_size: int
    data_parallel_size: int
    enable_expert_parallel: bool
    mono_to_epoch_ns: int


@dataclass(frozen=True, slots=True)
class TraceRecords:
    """One trace, by columns.

    Parameters
    ----------
    steps, requests, preemptions
        One row a record, in the order of the file, with the columns of the record of that kind.
    dropped
        Records the recorder says it lost.
    torn
        1 where the last line of the file was incomplete (a killed process) and was skipped, else 0.
    """

    engine: EngineRecord
    steps: pa.Table
    requests: pa.Table
    preemptions: pa.Table
    dropped: int
    torn: int


class Window(Spec):
    """The time one job's load ran on a server: nanoseconds of CLOCK_MONOTONIC, both ends included."""

    job_id: str
    t_start_ns: int
    t_end_ns: int


@dataclass(frozen=True, slots=True)
class _Lines:
    """The lines of a file that hold something, with their numbers there; ``torn`` is the incomplete last one."""

    name: str
    numbers: NDArray[np.int64]
    texts: list[bytes]
    torn: bytes | None

    def fail(self, row: int, problem: str) -> DataInvalidError:
        return DataInvalidError(f"{self.name}:{self.numbers[row]}: {problem}")


def parse_trace(lines: Iterable[bytes], *, name: str = "trace.jsonl") -> TraceRecords:
    """Return the records of one trace file.

    A torn last line is skipped and counted; anything else that is not a whole record is an error.

    Parameters
    ----------
    lines
        The lines of the file, with or without their newlines.
    name
        What error messages call the file.

    Raises
    ------
    DataInvalidError
        ``FILE:LINE:`` a line is not JSON, of an unknown kind, lacks a field, or its four request lists differ in
        length; the file has no engine record, more than one, or one of another schema version.
    """
    found = _split(lines, name)
    fields = _STEP_FIELDS | _STEP_OPTIONAL | _REQUEST_FIELDS | _REQUEST_OPTIONAL | _PREEMPTION_FIELDS | _DROPPED_FIELDS
    table = _read(found, fields)
    kinds = _kinds(found, table)
    steps = _select(found, table, kinds == "step", required=_STEP_FIELDS, optional=_STEP_OPTIONAL)
    _check_parallel(found, steps, np.flatnonzero(kinds == "step"))
    dropped = _select(found, table, kinds == "dropped", required=_DROPPED_FIELDS, optional={})
    return TraceRecords(
        engine=_engine(found, np.flatnonzero(kinds == "engine")),
        steps=steps,
        requests=_select(found, table, kinds == "request", required=_REQUEST_FIELDS, optional=_REQUEST_OPTIONAL),
        preemptions=_select(found, table, kinds == "preemption", required=_PREEMPTION_FIELDS, optional={}),
        dropped=pc.sum(dropped["count"]).as_py() or 0,
        torn=int(found.torn is not None),
    )


def cut_windows(
    lines: Iterable[bytes], windows: Sequence[Window], *, name: str = "trace.jsonl"
) -> dict[str, list[bytes]]:
    """Return the lines of each window's job: one server's trace, cut into one trace a job.

    The engine record goes into each. A step belongs to a window that holds it whole (schedule start to output), a
    request to the window in which it was queued (arrived, where it never was), a preemption to its instant. What has no
    time of its own (``dropped``, a torn last line) goes to every window that meets the span between its timed
    neighbours: a loss is never cut away. Lines are kept byte for byte, each with its newline, in their order.

    Raises
    ------
    DataInvalidError
        As :func:`parse_trace`, for lines that are not records.
    """
    found = _split(lines, name)
    table = _read(found, dict.fromkeys(_TIME_FIELDS, pa.int64()))
    kinds = _kinds(found, table)
    begin, end = _spans(table, kinds)
    engine = kinds == "engine"
    cut = {}
    for window in windows:
        inside = (begin >= window.t_start_ns) & (end <= window.t_end_ns)
        meets = (begin <= window.t_end_ns) & (end >= window.t_start_ns)
        kept = engine | np.where(kinds == "dropped", meets, inside)
        cut[window.job_id] = [found.texts[row] + b"\n" for row in np.flatnonzero(kept)]
        if found.torn is not None and begin.size and meets[-1]:
            cut[window.job_id].append(found.torn)
    return cut


def _split(lines: Iterable[bytes], name: str) -> _Lines:
    stripped = [line.strip() for line in lines]
    rows = [row for row, text in enumerate(stripped) if text]
    texts = [stripped[row] for row in rows]
    torn = texts.pop() if texts and _json_problem(texts[-1]) else None
    return _Lines(name, np.asarray(rows[: len(texts)], dtype=np.int64) + 1, texts, torn)


def _json_problem(text: bytes) -> str | None:
    try:
        value = json.loads(text)
    except ValueError as error:
        return str(error)
    return None if isinstance(value, dict) else f"expected an object, found {type(value).__name__}"


def _read(found: _Lines, fields: dict[str, pa.DataType]) -> pa.Table:
    """Read ``record`` and ``fields`` of every line: one row a line, null where a line lacks the field."""
    schema = pa.schema({"record": pa.string()} | fields)
    if not found.texts:
        return schema.empty_table()
    try:
        table = _arrow(found.texts, schema)
    except pa.ArrowInvalid as error:
        raise _culprit(found, schema, str(error)) from error
    if table.num_rows != len(found.texts):
        raise _culprit(found, schema, f"{len(found.texts)} lines hold {table.num_rows} records")
    return table


def _arrow(texts: list[bytes], schema: pa.Schema) -> pa.Table:
    longest = max(map(len, texts))
    table = paj.read_json(
        io.BytesIO(b"\n".join(texts)),
        read_options=paj.ReadOptions(block_size=max(_BLOCK_BYTES, 2 * longest)),
        parse_options=paj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    return table.select(schema.names)


def _culprit(found: _Lines, schema: pa.Schema, problem: str) -> DataInvalidError:
    """Return the error that names the line Arrow stumbled over: the first that is no object, else of a wrong type."""
    remedy = "a line inside the file is torn or was edited; measure the job again"
    for row, text in enumerate(found.texts):
        if broken := _json_problem(text):
            return found.fail(row, f"not a JSON object ({broken}): {_excerpt(text)}; {remedy}")
    for row, text in enumerate(found.texts):
        try:
            _arrow([text], schema)
        except pa.ArrowInvalid as error:
            return found.fail(row, f"{error}: {_excerpt(text)}; {remedy}")
    return DataInvalidError(f"{found.name}: {problem}; {remedy}")


def _excerpt(line: bytes) -> str:
    text = line.decode(errors="replace")
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kinds(found: _Lines, table: pa.Table) -> NDArray[np.str_]:
    known = pc.is_in(table["record"], value_set=pa.array(_RECORD_KINDS))
    if not pc.all(known, min_count=0).as_py():
        row = pc.index(known, value=False).as_py()
        kind = table["record"][row].as_py()
        raise found.fail(row, f'"record" is {kind!r}; expected one of {", ".join(_RECORD_KINDS)}')
    return np.asarray(table["record"].to_numpy(), dtype=np.str_)


def _select(
    found: _Lines,
    table: pa.Table,
    chosen: NDArray[np.bool_],
    *,
    required: dict[str, pa.DataType],
    optional: dict[str, pa.DataType],
) -> pa.Table:
    part = table.select([*required, *optional]).filter(pa.array(chosen)).combine_chunks()
    kind = table["record"].filter(pa.array(chosen))
    for field in required:
        if part[field].null_count:
            row = int(np.flatnonzero(chosen)[pc.index(pc.is_null(part[field]), value=True).as_py()])
            raise found.fail(row, f"{kind[0]} record without {field!r}; the recorder and this reader disagree")
    return part


def _check_parallel(found: _Lines, steps: pa.Table, rows: NDArray[np.int64]) -> None:
    lengths = np.stack([pc.list_value_length(steps[field]).to_numpy() for field in _PARALLEL_LISTS])
    differing = np.flatnonzero((lengths != lengths[0]).any(axis=0))
    if differing.size:
        counts = ", ".join(
            f"{n} {field}" for field, n in zip(_PARALLEL_LISTS, lengths[:, differing[0]].tolist(), strict=True)
        )
        raise found.fail(int(rows[differing[0]]), f"step record with lists that are not parallel: {counts}")


def _engine(found: _Lines, rows: NDArray[np.int64]) -> EngineRecord:
    if rows.size != 1:
        raise DataInvalidError(f"{found.name}: {rows.size} engine records; expected 1, one server writes one file")
    row = int(rows[0])
    try:
        engine = EngineRecord.model_validate_json(found.texts[row])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise found.fail(row, f"engine record: {place}: {first['msg']}, found {first['input']!r:.80}") from error
    if engine.schema_version != TRACE_SCHEMA_VERSION:
        problem = (
            f"schema_version {engine.schema_version}; this srfa reads {TRACE_SCHEMA_VERSION}, measure again with it"
        )
        raise found.fail(row, problem)
    return engine


def _spans(table: pa.Table, kinds: NDArray[np.str_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first and last instant of each line; an untimed one spans from the step before it to the one after.

    float64 holds CLOCK_MONOTONIC nanoseconds exactly up to 104 days of uptime, and to 2 ns up to 208 days.
    """
    time = {field: table[field].to_numpy(zero_copy_only=False).astype(np.float64) for field in _TIME_FIELDS}
    queued = np.where(np.isnan(time["t_queued_ns"]), time["t_arrived_ns"], time["t_queued_ns"])
    begin = np.select([kinds == "step", kinds == "request"], [time["t_schedule_start_ns"], queued], time["t_ns"])
    end = np.where(kinds == "step", time["t_output_ns"], begin)
    # A request's record is written when it ends, so its instant says nothing about the lines around it.
    before, after = (np.where(kinds == "request", np.nan, instant) for instant in (end, begin))
    return _carried_forward(before, begin), _carried_forward(after[::-1], end[::-1])[::-1]


def _carried_forward(source: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``values`` with each NaN replaced by the last known ``source`` before it, else by the first after it."""
    known = np.flatnonzero(~np.isnan(source))
    if not known.size:
        return values
    last = np.searchsorted(known, np.arange(source.size), side="right") - 1
    return np.where(np.isnan(values), source[known[np.maximum(last, 0)]], values)
