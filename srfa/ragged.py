"""Lists of different length, one a step, as flat values and offsets: sums and maxima without a Python loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ragged:
    """``n_rows`` lists of numbers.

    Parameters
    ----------
    values
        All entries, row after row, shape ``(n_values,)``.
    offsets
        Row ``i`` is ``values[offsets[i]:offsets[i + 1]]``; shape ``(n_rows + 1,)``.

    Examples
    --------
    >>> lists = Ragged.from_lists([[1, 2], [], [4]])
    >>> lists.sum().tolist(), lists.max().tolist()
    ([3.0, 0.0, 4.0], [2.0, 0.0, 4.0])
    """

    values: FloatArray
    offsets: IntArray

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray) -> Ragged:
        """Read an Arrow list column; a null list counts as empty."""
        array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0), dtype=np.int64)
        values = np.asarray(array.flatten(), dtype=np.float64)
        return cls(values, _offsets(lengths))

    @classmethod
    def from_lists(cls, lists: list[list[float]]) -> Ragged:
        """Read plain Python lists (tests, small batches)."""
        lengths = np.array([len(row) for row in lists], dtype=np.int64)
        flat = np.array([entry for row in lists for entry in row], dtype=np.float64)
        return cls(flat, _offsets(lengths))

    @classmethod
    def from_equal_shares(cls, totals: FloatArray, counts: IntArray) -> Ragged:
        """Split each row's total evenly over its count: requests whose sizes are unknown are taken as equal."""
        shares = np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0)
        return cls(np.repeat(shares, counts), _offsets(counts))

    @property
    def n_rows(self) -> int:
        """How many lists there are."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """Entries of each list, shape ``(n_rows,)``."""
        return np.diff(self.offsets)

    def sum(self, values: FloatArray | None = None) -> FloatArray:
        """Sum of each list (or of other ``values`` in the same places), shape ``(n_rows,)``; empty lists give 0."""
        return self._reduce(np.add, self.values if values is None else values)

    def max(self) -> FloatArray:
        """Largest entry of each list, shape ``(n_rows,)``; empty lists give 0."""
        return self._reduce(np.maximum, self.values)

    def take(self, rows: IntArray) -> Ragged:
        """Return the lists of the given rows, in that order."""
        lengths = self.lengths[rows]
        offsets = _offsets(lengths)
        positions = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.values[positions], offsets)

    def _reduce(self, ufunc: np.ufunc, values: FloatArray) -> FloatArray:
        result = np.zeros(self.n_rows)
        filled = np.flatnonzero(self.lengths)
        if filled.size:
            result[filled] = ufunc.reduceat(values, self.offsets[filled])
        return result


def _offsets(lengths: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
