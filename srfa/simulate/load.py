"""What a simulated server is asked for: requests with their times, lengths and shared prefixes, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from srfa.errors import InputError
from srfa.ragged import FloatArray, IntArray

_EMPTY = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class BlockHashes:
    """Names of the KV blocks of each request: equal names hold equal tokens after equal prefixes.

    Parameters
    ----------
    values
        The names of all full blocks, request after request, shape ``(n_hashes,)``.
    offsets
        Request ``i`` has ``values[offsets[i]:offsets[i + 1]]``, shape ``(n_requests + 1,)``. The list may end before
        the request does: further blocks are its own.
    """

    values: IntArray
    offsets: IntArray

    @classmethod
    def none(cls, n_requests: int) -> BlockHashes:
        """Return the names of requests that share nothing."""
        return cls(_EMPTY, np.zeros(n_requests + 1, dtype=np.int64))

    @property
    def n_requests(self) -> int:
        """How many requests there are."""
        return len(self.offsets) - 1


@dataclass(frozen=True, slots=True)
class RequestLoad:
    """Requests in the order in which they are sent; every array has one entry a request.

    Parameters
    ----------
    arrival_us
        When a request would reach the server, ascending, microseconds. With ``max_concurrency`` it is the earliest
        time: a request also waits for a seat of the client.
    prompt_tokens, output_tokens
        Lengths; a request ends when it has ``output_tokens``, at least 1.
    priority
        Lower goes first; only a server with ``scheduling_policy="priority"`` looks at it.
    block_hashes
        What prompts, and outputs that a later prompt repeats, have in common.
    max_concurrency
        Requests the client keeps in flight at most, as ``vllm bench serve`` does; None is no limit.
    request_ids
        Their names in what is written; empty: their numbers.
    """

    arrival_us: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    priority: NDArray[np.int64]
    block_hashes: BlockHashes
    max_concurrency: int | None = None
    request_ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, arrival_us: FloatArray, prompt_tokens: IntArray, output_tokens: IntArray) -> RequestLoad:
        """Return requests of equal priority that share nothing."""
        count = len(arrival_us)
        nothing = BlockHashes.none(count)
        return cls(arrival_us, prompt_tokens, output_tokens, np.zeros(count, dtype=np.int64), nothing)

    @property
    def n_requests(self) -> int:
        """How many requests there are."""
        return len(self.arrival_us)

    def __post_init__(self) -> None:
        """Refuse what no server could be sent.

        Raises
        ------
        InputError
            Arrays of different lengths, arrivals that are not ascending and finite, or lengths below 1.
        """
        arrays = (self.prompt_tokens, self.output_tokens, self.priority)
        if {len(array) for array in arrays} | {self.block_hashes.n_requests} != {self.n_requests}:
            raise InputError(f"requests: {self.n_requests} arrivals, but other columns differ in length")
        if not np.isfinite(self.arrival_us).all() or np.any(np.diff(self.arrival_us) < 0):
            raise InputError("requests: arrival_us must be finite and ascending; sort the requests by arrival")
        for name, tokens in (("prompt_tokens", self.prompt_tokens), ("output_tokens", self.output_tokens)):
            if np.any(tokens < 1):
                row = int(np.argmax(tokens < 1))
                raise InputError(f"requests: {name} of request {row} is {tokens[row]}; expected at least 1")
