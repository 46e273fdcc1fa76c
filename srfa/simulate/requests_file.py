"""Requests from a file: arrival and lengths, one row a request, as CSV, JSON lines or Parquet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srfa.errors import InputError
from srfa.ragged import FloatArray, IntArray
from srfa.simulate.load import RequestLoad
from srfa.simulate.workload import DEFAULT_BLOCK_SIZE, UNSHARED, shared_blocks
from srfa.units import US_PER_S
from srfa.wording import unknown

_READERS: Final[Mapping[str, Callable[[Path], pd.DataFrame]]] = {
    ".csv": pd.read_csv,
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
    ".ndjson": lambda path: pd.read_json(path, lines=True, dtype=False),
    ".parquet": pd.read_parquet,
}
_REQUIRED: Final = ("prompt_tokens", "output_tokens")
_OPTIONAL: Final = ("arrival_us", "arrival_s", "priority", "request_id", "prefix_group", "prefix_tokens")
_LARGEST: Final = float(2**31)


def read_requests(path: Path, *, block_size: int = DEFAULT_BLOCK_SIZE) -> RequestLoad:
    """Return the requests of a file, by arrival; the first arrives at 0.

    Parameters
    ----------
    path
        ``.csv``, ``.jsonl`` (``.ndjson``) or ``.parquet`` with columns ``arrival_s`` or ``arrival_us``,
        ``prompt_tokens``, ``output_tokens``, and where wanted ``request_id``, ``priority`` (lower goes first),
        ``prefix_group`` with ``prefix_tokens``: requests of one group share their first ``prefix_tokens`` tokens.
    block_size
        Tokens of a KV block of the server, by which shared prefixes become shared blocks.

    Raises
    ------
    InputError
        The file cannot be read, lacks a column, has an unknown one, or holds an impossible value: with its row,
        counted from 0.
    """
    frame = _frame(path)
    arrival_us = _arrivals(frame, path)
    frame = frame.assign(_arrival_us=arrival_us).sort_values("_arrival_us", kind="stable")
    prompt = _counts(frame, path, "prompt_tokens", least=1)
    names = frame["request_id"].astype(str) if "request_id" in frame else None
    return RequestLoad(
        arrival_us=np.array(frame["_arrival_us"] - arrival_us.min(), dtype=np.float64),
        prompt_tokens=prompt,
        output_tokens=_counts(frame, path, "output_tokens", least=1),
        priority=_priorities(frame, path),
        block_hashes=shared_blocks(*_prefixes(frame, path, prompt), block_size),
        request_ids=() if names is None else tuple(names),
    )


def _frame(path: Path) -> pd.DataFrame:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: ends in {path.suffix or 'nothing'}; requests are read from {', '.join(_READERS)}")
    try:
        frame = reader(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); name a file of requests") from error
    except ValueError as error:
        raise InputError(f"{path}: not {path.suffix[1:]} ({error}); write it anew") from error
    _check_columns(frame, path)
    return frame.reset_index(drop=True)


def _check_columns(frame: pd.DataFrame, path: Path) -> None:
    columns = [str(name) for name in frame.columns]
    if frame.empty:
        raise InputError(f"{path}: holds no request; give one row a request")
    missing = [name for name in _REQUIRED if name not in columns]
    if not {"arrival_us", "arrival_s"} & set(columns):
        missing.append("arrival_s (or arrival_us)")
    if missing:
        raise InputError(f"{path}: column(s) {', '.join(missing)} missing; it has {', '.join(columns)}")
    if {"arrival_us", "arrival_s"} <= set(columns):
        raise InputError(f"{path}: has both arrival_us and arrival_s; leave one out")
    if ("prefix_group" in columns) != ("prefix_tokens" in columns):
        raise InputError(f"{path}: prefix_group and prefix_tokens belong together; give both or neither")
    for name in columns:
        if name not in (*_REQUIRED, *_OPTIONAL):
            raise InputError(f"{path}: {unknown('column', name, (*_REQUIRED, *_OPTIONAL))}")


def _arrivals(frame: pd.DataFrame, path: Path) -> FloatArray:
    name, factor = ("arrival_us", 1.0) if "arrival_us" in frame else ("arrival_s", US_PER_S)
    seconds = _numbers(frame[name])
    _refuse(frame, path, name, ~np.isfinite(seconds), "a finite time")
    return np.asarray((seconds - seconds.min()) * factor)


def _priorities(frame: pd.DataFrame, path: Path) -> IntArray:
    if "priority" not in frame:
        return np.zeros(len(frame), dtype=np.int64)
    return _counts(frame, path, "priority", least=-int(_LARGEST))


def _prefixes(frame: pd.DataFrame, path: Path, prompt_tokens: IntArray) -> tuple[IntArray, IntArray]:
    """Return each request's group as a number, and how many tokens it shares with it."""
    if "prefix_group" not in frame:
        return np.full(len(frame), UNSHARED, dtype=np.int64), np.zeros(len(frame), dtype=np.int64)
    codes, _ = pd.factorize(frame["prefix_group"])
    group = np.array(codes, dtype=np.int64)  # a missing group has code -1, which is UNSHARED
    alone = group == UNSHARED
    shared = _counts(frame.assign(prefix_tokens=frame["prefix_tokens"].mask(alone, 0)), path, "prefix_tokens", least=0)
    _refuse(frame, path, "prefix_tokens", shared > prompt_tokens, "at most prompt_tokens")
    return group, shared


def _counts(frame: pd.DataFrame, path: Path, name: str, *, least: int) -> IntArray:
    values = _numbers(frame[name])
    bad = ~((values >= least) & (values < _LARGEST) & (values == np.floor(values)))
    _refuse(frame, path, name, bad, f"a whole number of at least {least}")
    return np.array(values, dtype=np.int64)


def _numbers(column: pd.Series[Any]) -> FloatArray:
    return np.asarray(pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan))


def _refuse(frame: pd.DataFrame, path: Path, name: str, bad: NDArray[np.bool_], expected: str) -> None:
    """Raise an error that names the first bad row of the file, counted from 0."""
    if bad.any():
        row = frame.index[bad].min()
        (value,) = frame.loc[[row], name].tolist()
        raise InputError(
            f"{path}: row {row}: {name}={value!r}, expected {expected} ({int(bad.sum())} such rows); correct"
            " or drop them"
        )
