"""Where every token of a job went: for each request, what was scheduled, cached and computed twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from srfa.traces.steps import Entries


@dataclass(frozen=True, slots=True)
class TokenAccount:
    """What the steps say of each finished request, one entry a row of the ``requests`` table; int64, (n_requests,).

    A request's steps form a chain: each starts at the number of computed tokens where the last one ended. Preemption
    throws computed tokens away, so the chain falls back; nothing can make it jump ahead.

    Parameters
    ----------
    scheduled_tokens, prefill_tokens
        Sum of its new tokens, and of those scheduled while its prompt was not wholly computed.
    first_computed_tokens
        Computed tokens before its first step: what the prefix cache gave it.
    last_computed_tokens
        Computed tokens after its last step.
    recomputed_tokens
        Sum of the chain's falls.
    skipped_tokens
        Sum of the chain's jumps ahead: 0 in a whole trace.
    falls
        How often the chain fell back.
    orphan_tokens
        Tokens the steps hold for ids without a request record (not per request).
    """

    scheduled_tokens: NDArray[np.int64]
    prefill_tokens: NDArray[np.int64]
    first_computed_tokens: NDArray[np.int64]
    last_computed_tokens: NDArray[np.int64]
    recomputed_tokens: NDArray[np.int64]
    skipped_tokens: NDArray[np.int64]
    falls: NDArray[np.int64]
    orphan_tokens: int


def account_tokens(entries: Entries, requests: pa.Table) -> TokenAccount:
    """Return the token account of each row of ``requests`` (a column ``request_id``); a request in no step has zeros.

    The sums obey, by construction, ``first + scheduled - recomputed + skipped = last`` (computed tokens).
    """
    n_requests = requests.num_rows
    row_of_id = pc.index_in(entries.request_ids, value_set=requests["request_id"].combine_chunks())
    owner = pc.fill_null(row_of_id, n_requests).to_numpy().astype(np.int64)[entries.request]
    chain = np.argsort(owner, kind="stable")
    chain = chain[owner[chain] < n_requests]
    row, begin = owner[chain], entries.computed_tokens[chain]
    new = entries.new_tokens[chain]
    end = begin + new
    starts, joins = _first_of_each(row)
    fall = np.where(joins, np.roll(end, 1) - begin, 0)
    ends = np.roll(starts, -1)

    def total(values: NDArray[np.int64], chosen: NDArray[np.bool_] | slice = slice(None)) -> NDArray[np.int64]:
        return np.bincount(row[chosen], weights=values[chosen], minlength=n_requests).astype(np.int64)

    return TokenAccount(
        scheduled_tokens=total(new),
        prefill_tokens=total(new, entries.is_prefill[chain]),
        first_computed_tokens=total(begin, starts),
        last_computed_tokens=total(end, ends),
        recomputed_tokens=total(np.maximum(fall, 0)),
        skipped_tokens=total(np.maximum(-fall, 0)),
        falls=total((fall > 0).astype(np.int64)),
        orphan_tokens=int(entries.new_tokens[owner == n_requests].sum()),
    )


def _first_of_each(row: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return where a run of equal values starts, and where one goes on."""
    goes_on = np.zeros(row.size, dtype=np.bool_)
    goes_on[1:] = row[1:] == row[:-1]
    return ~goes_on, goes_on
