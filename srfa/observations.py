"""The observation table: what is measured of each step, checked, with its per-request lists as arrays.

One flat Parquet file, so that anybody can bring measured steps from elsewhere. Source: the trace contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from srfa.errors import ObservationsError, WrongClockError
from srfa.ragged import FloatArray, IntArray, Ragged
from srfa.schema import OBSERVATIONS, REQUIRED_OBSERVATION_COLUMNS

BoolArray = NDArray[np.bool_]

REFUSED_LABELS = {
    "step.duration_us": (
        "step.duration_us is the CPU time inside schedule(), not the busy-loop cycle: on real H100 traces its median is"
        " 0.3-1.1 ms where a cycle takes 15-19 ms. Ingest the trace, which takes start-to-start deltas of consecutive"
        " step ids as the label and keeps this column as sched_time_us"
    ),
    "sched_time_us": "sched_time_us is the time inside schedule(), not the step; the label is step_time_us",
}
_LABEL: Final = "step_time_us"
_REQUIRED_TO_PREDICT: Final = tuple(name for name in REQUIRED_OBSERVATION_COLUMNS if name != _LABEL)
_DTYPE_SPELLINGS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_UNQUANTISED = frozenset({"", "none", "null", "bfloat16", "float16", "bf16", "fp16"})
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
class Origin:
    """Where steps were read, for errors.

    Parameters
    ----------
    files
        The files' names, or what a table that is no file is called.
    file_index, rows
        Each step's file, and its row there counted from 0, shape ``(n_steps,)``.
    """

    files: tuple[str, ...]
    file_index: IntArray
    rows: IntArray

    @classmethod
    def of(cls, files: Sequence[str], sizes: Sequence[int]) -> Origin:
        """Return the origin of all rows of some files, one after the other."""
        return cls(
            tuple(files), np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(size) for size in sizes])
        )

    def take(self, rows: IntArray) -> Origin:
        """Return the origin of the given steps, in that order."""
        return Origin(self.files, self.file_index[rows], self.rows[rows])

    def file_of(self, bad: BoolArray) -> str:
        """Return the file of the first bad step."""
        return self.files[int(self.file_index[int(np.argmax(bad))])]

    def row_of(self, bad: BoolArray) -> str:
        """Name the row of the first bad step, and how many there are.

        >>> Origin.of(["a.parquet"], [3]).row_of(np.array([False, True, True]))
        'row 1 (2 such rows)'
        """
        return f"row {self.rows[int(np.argmax(bad))]} ({int(np.sum(bad))} such rows)"


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
    origin
        The file and row of each step.
    """

    table: pa.Table
    configurations: tuple[Configuration, ...]
    configuration_index: IntArray
    prefill_new_tokens: Ragged
    prefill_context_tokens: Ragged
    decode_context_tokens: Ragged
    origin: Origin

    @property
    def n_steps(self) -> int:
        """How many steps there are."""
        return int(self.table.num_rows)

    @property
    def step_time_us(self) -> FloatArray:
        """The label, microseconds, shape ``(n_steps,)``; NaN where :func:`load_unlabelled` found none."""
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
            self.origin.take(rows),
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
    return _labelled(*_read_all(paths, REQUIRED_OBSERVATION_COLUMNS))


def load_unlabelled(paths: Sequence[Path]) -> Observations:
    """Read and check steps to predict, as :func:`load_observations` but for the label: it may be absent, null or NaN.

    Raises
    ------
    ObservationsError
        A file cannot be read, lacks another required column or holds an impossible value; a label that is given counts.
    WrongClockError
        A file's ``step_time_method`` says that its label is something else than the busy-loop cycle.
    """
    found = _checked(*_read_all(paths, _REQUIRED_TO_PREDICT))
    _refuse_labels(found, np.isinf(found.step_time_us) | (found.step_time_us <= 0))
    return found


def from_table(table: pa.Table, *, where: str = "observations") -> Observations:
    """Check a table of the observation form and build its arrays; rows marked ``valid = false`` are left out."""
    return _labelled(_normalise(table, where, REQUIRED_OBSERVATION_COLUMNS), Origin.of([where], [table.num_rows]))


def _labelled(table: pa.Table, origin: Origin) -> Observations:
    found = _checked(table, origin)
    _refuse_nulls(found.table, (_LABEL,), found.origin)
    _refuse_labels(found, ~np.isfinite(found.step_time_us) | (found.step_time_us <= 0))
    return found


def _refuse_labels(found: Observations, bad: BoolArray) -> None:
    _refuse_values(found.table, _LABEL, found.origin, bad, "a finite number above 0")


def _checked(table: pa.Table, origin: Origin) -> Observations:
    """Check everything but the labels, leave out rows marked ``valid = false``, and build the arrays."""
    valid = np.asarray(pc.fill_null(table["valid"], True), dtype=bool)
    if not valid.any():
        raise ObservationsError(
            f"{', '.join(origin.files)}: no valid step; every row says valid = false, or the file is empty"
        )
    if not valid.all():
        table, origin = table.filter(pa.array(valid)), origin.take(np.flatnonzero(valid))
    _check_values(table, origin)
    configurations, index = _configurations(table)
    new, context, decode = _lists(table)
    _check_lists(table, new, context, decode, origin)
    return Observations(table, configurations, index, new, context, decode, origin)


def _read_all(paths: Sequence[Path], required: Sequence[str]) -> tuple[pa.Table, Origin]:
    if not paths:
        raise ObservationsError("no observation file was given")
    tables = [_read(Path(path), required) for path in paths]
    return pa.concat_tables(tables), Origin.of([str(path) for path in paths], [table.num_rows for table in tables])


def _read(path: Path, required: Sequence[str]) -> pa.Table:
    if path.is_dir():
        raise ObservationsError(f"{path}: is a folder; name the Parquet files in it, such as {path}/*.parquet")
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise ObservationsError(f"{path}: no such file") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise ObservationsError(f"{path}: not a Parquet file ({error})") from error
    return _normalise(table, str(path), required)


def _normalise(table: pa.Table, where: str, required: Sequence[str]) -> pa.Table:
    """Refuse wrong clocks and missing columns; return the table with exactly the observation columns."""
    if _LABEL in required or _LABEL in table.column_names:
        _refuse_wrong_clock(table, where)
    missing = [name for name in required if name not in table.column_names]
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


def _check_values(table: pa.Table, origin: Origin) -> None:
    _refuse_nulls(table, _REQUIRED_TO_PREDICT, origin)
    for name in ("num_prefill_reqs", "num_decode_reqs", "prefill_tokens", "decode_tokens"):
        _refuse_values(table, name, origin, _numbers(table, name) < 0, "a whole number of at least 0")
    name = "tensor_parallel_size"
    _refuse_values(table, name, origin, _numbers(table, name) < 1, "a whole number of at least 1")
    empty = _numbers(table, "prefill_tokens") + _numbers(table, "decode_tokens") <= 0
    if empty.any():
        raise ObservationsError(
            f"{origin.file_of(empty)}: no token is scheduled in {origin.row_of(empty)}; such a step has no label, mark"
            " it valid=false"
        )
    orphaned = _numbers(table, "num_prefill_reqs") + _numbers(table, "num_decode_reqs") <= 0
    if orphaned.any():
        raise ObservationsError(
            f"{origin.file_of(orphaned)}: tokens and no request in {origin.row_of(orphaned)}; correct num_prefill_reqs"
            " and num_decode_reqs"
        )


def _refuse_nulls(table: pa.Table, names: Sequence[str], origin: Origin) -> None:
    for name in names:
        if table[name].null_count:
            absent = np.asarray(pc.is_null(table[name]), dtype=bool)
            raise ObservationsError(
                f"{origin.file_of(absent)}: column {name} is null in {origin.row_of(absent)}; fill or drop them"
            )


def _refuse_values(table: pa.Table, name: str, origin: Origin, bad: BoolArray, expected: str) -> None:
    if bad.any():
        value = table[name][int(np.argmax(bad))].as_py()
        raise ObservationsError(
            f"{origin.file_of(bad)}: column {name} is {value} in {origin.row_of(bad)}, expected {expected}; drop those"
            " rows or mark them valid=false"
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
    """Return the configuration of a row of jobs or observations; what it leaves null has vLLM's default.

    Spellings in use are brought to vLLM's: ``torch.bfloat16`` and ``bf16``, and ``none`` where nothing is quantised.
    """
    names = [field.name for field in fields(Configuration)]
    defaults: dict[str, object] = {"expert_parallel_size": 1, "data_parallel_size": 1, "dtype": "bfloat16"}
    known = {name: row[name] for name in names if row[name] is not None}
    nothing = dict.fromkeys(names)
    if "dtype" in known:
        written = str(known["dtype"]).lower().removeprefix("torch.")
        known["dtype"] = _DTYPE_SPELLINGS.get(written, written)
    if str(known.get("quantization", "")).lower() in _UNQUANTISED:
        known["quantization"] = None
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


def _check_lists(table: pa.Table, new: Ragged, context: Ragged, decode: Ragged, origin: Origin) -> None:
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
            raise ObservationsError(f"{origin.file_of(bad)}: {claim} in {origin.row_of(bad)}; correct the lists")
