"""The observation table: what is measured of each step, checked, with its per-request lists as arrays.

One flat Parquet file, so that anybody can bring measured steps from elsewhere. Source: the trace contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from srfa.errors import ObservationsError, WrongClockError
from srfa.ragged import FloatArray, IntArray, Ragged
from srfa.schema import OBSERVATIONS, REQUIRED_OBSERVATION_COLUMNS

REFUSED_LABELS = {
    "step.duration_us": (
        "step.duration_us is the CPU time inside schedule(), not the busy-loop cycle: on real H100 traces its median is"
        " 0.3-1.1 ms where a cycle takes 15-19 ms. Ingest the trace, which takes start-to-start deltas of consecutive"
        " step ids as the label and keeps this column as sched_time_us"
    ),
    "sched_time_us": "sched_time_us is the time inside schedule(), not the step; the label is step_time_us",
}
_WRONG_LABEL_METHODS = {"step.duration_us", "schedule", "sched_time"}


@dataclass(frozen=True, slots=True)
class Configuration:
    """What one job ran on, as far as physics depends on it; steps refer to it by index."""

    gpu: str
    model: str
    tensor_parallel_size: int
    expert_parallel_size: int
    data_parallel_size: int
    dtype: str
    quantization: str | None
    kv_cache_dtype: str | None
    moe_routing: str | None
    moe_kernel: str | None
    software_version: str | None
    source: str | None


@dataclass(frozen=True, slots=True)
class Observations:
    """Steps with their job's columns; every array has one entry a step.

    Parameters
    ----------
    table
        All columns of :data:`srfa.schema.OBSERVATIONS`; those the input lacked are null.
    configurations, configuration_index
        The distinct configurations, and which one each step ran on, shape ``(n_steps,)``.
    prefill_new_tokens, prefill_context_tokens, decode_context_tokens
        Per scheduled request: tokens computed in this step, tokens computed before it, KV length attended.
    """

    table: pa.Table
    configurations: tuple[Configuration, ...]
    configuration_index: IntArray
    prefill_new_tokens: Ragged
    prefill_context_tokens: Ragged
    decode_context_tokens: Ragged

    @property
    def n_steps(self) -> int:
        """How many steps there are."""
        return int(self.table.num_rows)

    @property
    def step_time_us(self) -> FloatArray:
        """The label, microseconds, shape ``(n_steps,)``."""
        return self.numbers("step_time_us")

    @property
    def job_ids(self) -> list[str]:
        """The job of each step."""
        return self.strings("job_id")

    def numbers(self, column: str) -> FloatArray:
        """Return a numeric column as float64, null as NaN, shape ``(n_steps,)``."""
        return np.asarray(self.table[column].cast(pa.float64()).to_numpy(), dtype=np.float64)

    def strings(self, column: str) -> list[str]:
        """Return a column as text, null as the empty string."""
        return [str(value) if value is not None else "" for value in self.table[column].to_pylist()]

    def codes(self, column: str) -> tuple[list[str], IntArray]:
        """Return the distinct values of a column as text and each step's index into them."""
        encoded = self.table[column].cast(pa.string()).combine_chunks()
        encoded = pc.fill_null(encoded, "").dictionary_encode()
        return encoded.dictionary.to_pylist(), np.asarray(encoded.indices, dtype=np.int64)

    def take(self, rows: IntArray) -> Observations:
        """Return the given steps, in that order."""
        return Observations(
            self.table.take(pa.array(rows)),
            self.configurations,
            self.configuration_index[rows],
            self.prefill_new_tokens.take(rows),
            self.prefill_context_tokens.take(rows),
            self.decode_context_tokens.take(rows),
        )


def load_observations(paths: Sequence[Path]) -> Observations:
    """Read and check one or more observation files.

    Raises
    ------
    ObservationsError
        A file cannot be read, lacks a required column or holds an impossible value.
    WrongClockError
        A file offers something else than the busy-loop cycle as its step time.
    """
    if not paths:
        raise ObservationsError("no observation file was given")
    return from_table(pa.concat_tables([_read(Path(path)) for path in paths]), where=", ".join(map(str, paths)))


def from_table(table: pa.Table, *, where: str = "observations") -> Observations:
    """Check a table of the observation form and build its arrays; rows marked ``valid = false`` are left out."""
    table = _normalise(table, where)
    if pc.any(pc.invert(table["valid"])).as_py():
        table = table.filter(pc.fill_null(table["valid"], True))
    if table.num_rows == 0:
        raise ObservationsError(f"{where}: no valid step; every row says valid = false, or the file is empty")
    _check_values(table, where)
    configurations, index = _configurations(table)
    new, context, decode = _lists(table)
    _check_lists(table, new, context, decode, where)
    return Observations(table, configurations, index, new, context, decode)


def _read(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise ObservationsError(f"{path}: no such file") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise ObservationsError(f"{path}: not a Parquet file ({error})") from error
    return _normalise(table, str(path))


def _normalise(table: pa.Table, where: str) -> pa.Table:
    """Refuse wrong clocks and missing columns; return the table with exactly the observation columns."""
    _refuse_wrong_clock(table, where)
    missing = [name for name in REQUIRED_OBSERVATION_COLUMNS if name not in table.column_names]
    if missing:
        raise ObservationsError(
            f"{where}: required column(s) {', '.join(missing)} missing ({table.num_rows} rows, columns:"
            f" {', '.join(table.column_names)}); add them, or ingest raw traces with 'srfa ingest'"
        )
    columns = [_cast(table, field, where) for field in OBSERVATIONS]
    return pa.table(columns, schema=OBSERVATIONS)


def _refuse_wrong_clock(table: pa.Table, where: str) -> None:
    if "step_time_us" not in table.column_names:
        for column, reason in REFUSED_LABELS.items():
            if column in table.column_names:
                raise WrongClockError(f"{where}: refused as a label: {reason}")
    elif "step_time_method" in table.column_names:
        methods = set(pc.unique(table["step_time_method"]).to_pylist()) & _WRONG_LABEL_METHODS
        if methods:
            raise WrongClockError(
                f"{where}: step_time_method={methods.pop()!r} is refused: {REFUSED_LABELS['step.duration_us']}"
            )


def _cast(table: pa.Table, field: pa.Field, where: str) -> pa.ChunkedArray:
    if field.name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, field.type)])
    try:
        return table[field.name].cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ObservationsError(
            f"{where}: column {field.name} is {table[field.name].type}, expected {field.type} ({error})"
        ) from error


def _check_values(table: pa.Table, where: str) -> None:
    for name in REQUIRED_OBSERVATION_COLUMNS:
        if table[name].null_count:
            raise ObservationsError(
                f"{where}: column {name} is null in {table[name].null_count} rows; fill or drop them"
            )
    _refuse_rows(table, "step_time_us", where, lowest_exclusive=0.0)
    for name in ("num_prefill_reqs", "num_decode_reqs", "prefill_tokens", "decode_tokens"):
        _refuse_rows(table, name, where, lowest_exclusive=-1.0)
    _refuse_rows(table, "tensor_parallel_size", where, lowest_exclusive=0.0)
    tokens = _numbers(table, "prefill_tokens") + _numbers(table, "decode_tokens")
    if (empty := int(np.sum(tokens <= 0))) > 0:
        raise ObservationsError(
            f"{where}: {empty} rows schedule no token; such a step has no label, mark it valid=false"
        )
    requests = _numbers(table, "num_prefill_reqs") + _numbers(table, "num_decode_reqs")
    if (orphaned := int(np.sum(requests <= 0))) > 0:
        raise ObservationsError(
            f"{where}: {orphaned} rows have tokens and no request, the first is row {int(np.argmax(requests <= 0))};"
            " correct num_prefill_reqs and num_decode_reqs"
        )


def _refuse_rows(table: pa.Table, name: str, where: str, *, lowest_exclusive: float) -> None:
    values = _numbers(table, name)
    bad = ~np.isfinite(values) | (values <= lowest_exclusive)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ObservationsError(
            f"{where}: column {name} is {values[first]} in row {first} ({int(bad.sum())} such rows), expected a finite"
            f" number above {lowest_exclusive:g}; drop those rows or mark them valid=false"
        )


def _numbers(table: pa.Table, name: str) -> FloatArray:
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def _configurations(table: pa.Table) -> tuple[tuple[Configuration, ...], IntArray]:
    names = [field.name for field in fields(Configuration)]
    codes = np.stack([_codes(table[name]) for name in names], axis=1)
    _, first, index = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    rows = table.select(names).take(pa.array(first)).to_pylist()
    return tuple(configuration_of(row) for row in rows), np.asarray(index, dtype=np.int64).reshape(-1)


def _codes(column: pa.ChunkedArray) -> IntArray:
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return np.asarray(encoded.indices, dtype=np.int64)


def configuration_of(row: Mapping[str, object]) -> Configuration:
    """Return the configuration of a row of jobs or observations; what it leaves null has vLLM's default."""
    names = [field.name for field in fields(Configuration)]
    defaults: dict[str, object] = {"expert_parallel_size": 1, "data_parallel_size": 1, "dtype": "bfloat16"}
    known = {name: row[name] for name in names if row[name] is not None}
    nothing = dict.fromkeys(names)
    return Configuration(**{**nothing, **defaults, **known})  # type: ignore[arg-type]


def _lists(table: pa.Table) -> tuple[Ragged, Ragged, Ragged]:
    n_prefill = _numbers(table, "num_prefill_reqs").astype(np.int64)
    n_decode = _numbers(table, "num_decode_reqs").astype(np.int64)
    new = _lists_or_shares(table, "prefill_new_tokens", _numbers(table, "prefill_tokens"), n_prefill)
    context = _lists_or_shares(table, "prefill_context_tokens", _sums(table, "sum_prefill_context_tokens"), n_prefill)
    decode = _lists_or_shares(table, "decode_context_tokens", _sums(table, "sum_decode_context_tokens"), n_decode)
    return new, context, decode


def _lists_or_shares(table: pa.Table, name: str, totals: FloatArray, counts: IntArray) -> Ragged:
    """Take the column's lists; where a row has none, equal shares of the total."""
    column = table[name]
    if column.null_count == 0:
        return Ragged.from_arrow(column)
    shares = Ragged.from_equal_shares(totals, counts)
    if column.null_count == table.num_rows:
        return shares
    given = Ragged.from_arrow(column)
    absent = np.asarray(pc.is_null(column), dtype=bool)
    both = Ragged(
        np.concatenate([given.values, shares.values]),
        np.concatenate([given.offsets, shares.offsets[1:] + given.offsets[-1]]),
    )
    rows = np.arange(table.num_rows, dtype=np.int64)
    return both.take(np.where(absent, rows + table.num_rows, rows))


def _sums(table: pa.Table, name: str) -> FloatArray:
    return np.nan_to_num(_numbers(table, name), nan=0.0)


def _check_lists(table: pa.Table, new: Ragged, context: Ragged, decode: Ragged, where: str) -> None:
    n_prefill, n_decode = _numbers(table, "num_prefill_reqs"), _numbers(table, "num_decode_reqs")
    inexact = ~np.isclose(new.sum(), _numbers(table, "prefill_tokens"))
    checks = (
        ("prefill_new_tokens holds another number of requests than num_prefill_reqs", new.lengths != n_prefill),
        ("prefill_context_tokens is not parallel to prefill_new_tokens", context.lengths != new.lengths),
        ("decode_context_tokens holds another number of requests than num_decode_reqs", decode.lengths != n_decode),
        ("prefill_new_tokens does not sum to prefill_tokens", inexact),
    )
    for claim, bad in checks:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise ObservationsError(f"{where}: {claim} in row {row} ({int(bad.sum())} such rows); correct the lists")
