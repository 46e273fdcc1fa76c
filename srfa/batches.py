"""Batches that nobody measured, as observations: for asking an estimator what it says of them.

Everything is drawn and joined as arrays; a table of 10,000 batches takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from srfa.observations import Configuration, Observations, from_table
from srfa.ragged import FloatArray, IntArray, Ragged

MAX_DECODES, MAX_PREFILLS = 256, 4
MAX_CONTEXT_TOKENS, MAX_NEW_TOKENS = 16_384, 8_192
"""vLLM's own defaults: 256 sequences and 8,192 batched tokens; contexts up to what most models of 2024 hold."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches as lists of requests, without a place to run.

    Parameters
    ----------
    prefill_new, prefill_context, decode_context
        Per scheduled request: tokens computed in the step, tokens computed before it, KV length attended.
    """

    prefill_new: Ragged
    prefill_context: Ragged
    decode_context: Ragged

    @property
    def n_batches(self) -> int:
        """How many batches there are."""
        return self.decode_context.n_rows

    def take(self, rows: IntArray) -> Batches:
        """Return the given batches, in that order."""
        return Batches(self.prefill_new.take(rows), self.prefill_context.take(rows), self.decode_context.take(rows))

    def words(self, row: int) -> str:
        """Describe one batch for people.

        >>> empty, two = Ragged.from_lists([[]]), Ragged.from_lists([[100, 300]])
        >>> Batches(empty, empty, two).words(0)
        '2 decodes at 200 tokens of context'
        """
        one = self.take(np.array([row], dtype=np.int64))
        new, context, decode = one.prefill_new.values, one.prefill_context.values, one.decode_context.values
        parts = []
        if new.size:
            parts.append(f"{new.size} prefill(s) of {new.sum():.0f} new tokens after {context.sum():.0f}")
        if decode.size:
            parts.append(f"{decode.size} decodes at {decode.mean():.0f} tokens of context")
        return " and ".join(parts)


def random_batches(n_batches: int, rng: np.random.Generator) -> Batches:
    """Draw batches: a third decode alone, a third prefill alone, a third both; sizes spread evenly in logarithm."""
    kind = rng.integers(0, 3, n_batches)
    n_decodes = np.where(kind == 1, 0, whole(log_uniform(rng, 1, MAX_DECODES, n_batches)))
    n_prefills = np.where(kind == 0, 0, rng.integers(1, MAX_PREFILLS + 1, n_batches))
    new = log_uniform(rng, 1, MAX_NEW_TOKENS / MAX_PREFILLS, int(n_prefills.sum()))
    cached = log_uniform(rng, 1, MAX_CONTEXT_TOKENS, len(new)) * rng.integers(0, 2, len(new))
    decode = log_uniform(rng, 1, MAX_CONTEXT_TOKENS, int(n_decodes.sum()))
    return Batches(
        ragged(np.ceil(new), n_prefills), ragged(np.floor(cached), n_prefills), ragged(np.ceil(decode), n_decodes)
    )


def prefill_batches(new_tokens: FloatArray) -> Batches:
    """Return batches of one fresh prompt each."""
    n_batches = len(new_tokens)
    one, none = np.ones(n_batches, dtype=np.int64), np.zeros(n_batches, dtype=np.int64)
    return Batches(ragged(new_tokens, one), ragged(np.zeros(n_batches), one), ragged(np.empty(0), none))


def ragged(values: FloatArray, lengths: IntArray) -> Ragged:
    """Cut ``values`` into lists of the given lengths."""
    return Ragged(values, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]))


def log_uniform(rng: np.random.Generator, low: float, high: float, size: int) -> FloatArray:
    """Draw numbers whose logarithm is uniform."""
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def whole(values: FloatArray) -> IntArray:
    """Round to whole numbers."""
    return np.rint(values).astype(np.int64)


def batches_on(batches: Batches, configurations: Sequence[Configuration], index: IntArray) -> Observations:
    """Put each batch on one of the configurations; labels are a placeholder of 1 microsecond.

    Parameters
    ----------
    index
        The configuration of each batch, shape ``(n_batches,)``.
    """
    names = [field.name for field in fields(Configuration)]
    facts = pa.Table.from_pylist([{name: getattr(one, name) for name in names} for one in configurations])
    table = facts.take(pa.array(index))
    prefills, decodes = batches.prefill_new.lengths, batches.decode_context.lengths
    columns = {
        "job_id": pa.array(np.full(len(index), "imagined")),
        "step_time_us": pa.array(np.ones(len(index))),
        "num_prefill_reqs": pa.array(prefills),
        "num_decode_reqs": pa.array(decodes),
        "prefill_tokens": pa.array(whole(batches.prefill_new.sum())),
        "decode_tokens": pa.array(decodes),
        "prefill_new_tokens": _lists(batches.prefill_new),
        "prefill_context_tokens": _lists(batches.prefill_context),
        "decode_context_tokens": _lists(batches.decode_context),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return from_table(table, where="imagined batches")


def _lists(lists: Ragged) -> pa.Array:
    values = pa.array(lists.values.astype(np.int32))
    return pa.ListArray.from_arrays(pa.array(lists.offsets.astype(np.int32)), values)
