"""What ``vllm bench serve`` sends for the words of a workload, without its tokenizer: lengths, prefixes, arrival times.

Lengths, their order and arrival times of ``random`` are those of the bench to the token and the microsecond: it draws
lengths from ``numpy.random.default_rng(seed)`` and delays from the legacy generator seeded alike. With
``prefix_repetition`` the bench draws its tokens from the generator of the delays, as many as its tokenizer makes it
repeat: the order of the prefixes is the bench's, the delays are of its distribution only. Source: vLLM 0.32,
``vllm/benchmarks/serve.py`` (``get_request``), ``vllm/benchmarks/datasets``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from srfa.errors import UsageError
from srfa.ragged import FloatArray, IntArray
from srfa.simulate.load import BlockHashes, RequestLoad
from srfa.specs import Workload
from srfa.units import US_PER_S

DEFAULT_BLOCK_SIZE: Final = 16
"""Tokens of a KV block where vLLM runs on a GPU and nobody says otherwise."""
UNSHARED: Final = -1
"""The prefix group of a request that shares its prompt with none."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Prompts as the bench makes them; every array has one entry a request."""

    prompt_tokens: IntArray
    output_tokens: IntArray
    prefix: IntArray
    prefix_tokens: IntArray


def workload_load(workload: Workload, *, seed: int, block_size: int = DEFAULT_BLOCK_SIZE) -> RequestLoad:
    """Return the requests of a workload.

    A tokenizer that puts tokens of its own before a prompt shortens the drawn lengths of ``random`` by as many; it is
    taken to add none.

    Parameters
    ----------
    seed
        ``--seed`` of the bench.
    block_size
        Tokens of a KV block of the server, by which shared prefixes become shared blocks.

    Raises
    ------
    UsageError
        The workload reads a file (``sharegpt``), has more prefixes than prompts, or prompts of no tokens.

    Examples
    --------
    >>> load = workload_load(Workload(name="w", random_input_len=100, random_output_len=8, num_prompts=3), seed=0)
    >>> load.prompt_tokens.tolist(), load.output_tokens.tolist(), load.arrival_us.tolist()
    ([100, 100, 100], [8, 8, 8], [0.0, 0.0, 0.0])
    """
    sample = _sampler(workload)(workload, seed)
    arrival_us = arrival_times_us(
        len(sample.prompt_tokens), workload.request_rate, burstiness=workload.burstiness, seed=seed
    )
    names = shared_blocks(sample.prefix, np.minimum(sample.prefix_tokens, sample.prompt_tokens), block_size)
    load = RequestLoad.of(arrival_us, sample.prompt_tokens, sample.output_tokens)
    return replace(load, block_hashes=names, max_concurrency=workload.max_concurrency)


def arrival_times_us(n_requests: int, request_rate: float, *, burstiness: float = 1.0, seed: int = 0) -> FloatArray:
    """Return when the bench sends each request, microseconds from the start of the load, shape ``(n_requests,)``.

    Delays are gamma distributed with shape ``burstiness`` and mean ``1 / request_rate`` (burstiness 1 is a Poisson
    process, infinity a fixed interval), summed, and stretched so that the last request goes at
    ``n_requests / request_rate``. An infinite rate sends all at once.

    Parameters
    ----------
    request_rate
        Requests a second.

    Examples
    --------
    >>> arrival_times_us(3, 2.0, burstiness=float("inf")).tolist()
    [500000.0, 1000000.0, 1500000.0]
    """
    if math.isinf(request_rate):
        return np.zeros(n_requests)
    if math.isinf(burstiness):
        return np.asarray(np.cumsum(np.full(n_requests, 1.0 / request_rate)) * US_PER_S)
    theta = 1.0 / (request_rate * burstiness)
    # The legacy generator, because the bench uses it: the same seed gives the same delays.
    total_s = np.cumsum(np.random.RandomState(seed).gamma(shape=burstiness, scale=theta, size=n_requests))
    return np.asarray(total_s * (n_requests / request_rate / total_s[-1]) * US_PER_S)


def shared_blocks(group: IntArray, prefix_tokens: IntArray, block_size: int) -> BlockHashes:
    """Return the names of the full blocks that requests of one group have in common.

    Parameters
    ----------
    group
        Requests with equal numbers start with equal tokens; :data:`UNSHARED` shares nothing, shape ``(n_requests,)``.
    prefix_tokens
        How many of its first tokens each request shares with its group, shape ``(n_requests,)``.

    Examples
    --------
    >>> names = shared_blocks(np.array([0, 1, 0]), np.array([40, 16, 70]), 16)
    >>> names.values.tolist(), names.offsets.tolist()
    ([1, 2, 6, 1, 2, 3, 4], [0, 2, 3, 7])
    """
    n_blocks = np.where(group == UNSHARED, 0, prefix_tokens // block_size).astype(np.int64)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(n_blocks)])
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], n_blocks)
    stride = int(n_blocks.max(initial=0)) + 1
    return BlockHashes(np.repeat(group, n_blocks) * stride + position + 1, offsets)


def _sampler(workload: Workload) -> Callable[[Workload, int], _Sample]:
    if workload.dataset_name == "sharegpt":
        raise UsageError(
            f"workload {workload.name}: dataset_name=sharegpt takes its lengths from a file of conversations, which is "
            "not simulated; write arrival_s, prompt_tokens and output_tokens of its requests into a file for --requests"
        )
    return _prefix_repetition if workload.dataset_name == "prefix_repetition" else _random


def _random(workload: Workload, seed: int) -> _Sample:
    """Draw lengths between ``floor(length x (1 - ratio))`` and ``ceil(length x (1 + ratio))``, outputs at least 1."""
    draw, ratio, count = np.random.default_rng(seed), workload.random_range_ratio, workload.num_prompts
    low, high = _range(workload.random_input_len, ratio)
    if low + workload.random_prefix_len < 1:
        raise UsageError(
            f"workload {workload.name}: random_input_len={workload.random_input_len} with random_range_ratio={ratio} "
            "may draw a prompt of no tokens; raise the length or random_prefix_len, or lower the ratio"
        )
    prompts = draw.integers(low, high + 1, size=count)
    low, high = _range(workload.random_output_len, ratio)
    outputs = draw.integers(max(low, 1), max(high, 1) + 1, size=count)
    prefix = np.full(count, 0 if workload.random_prefix_len else UNSHARED, dtype=np.int64)
    shared = np.full(count, workload.random_prefix_len, dtype=np.int64)
    return _Sample(prompts + workload.random_prefix_len, outputs, prefix, shared)


def _range(length: int, ratio: float) -> tuple[int, int]:
    return math.floor(length * (1.0 - ratio)), math.ceil(length * (1.0 + ratio))


def _prefix_repetition(workload: Workload, seed: int) -> _Sample:
    """Give every prefix equally many prompts, rounded down, and shuffle them as the bench does."""
    n_prefixes = workload.prefix_repetition_num_prefixes
    each = workload.num_prompts // n_prefixes
    if each == 0:
        raise UsageError(
            f"workload {workload.name}: num_prompts={workload.num_prompts} is less than "
            f"prefix_repetition_num_prefixes={n_prefixes}; raise num_prompts to at least that"
        )
    order = np.repeat(np.arange(n_prefixes), each).tolist()
    random.Random(seed).shuffle(order)
    count, shared = len(order), workload.prefix_repetition_prefix_len
    return _Sample(
        np.full(count, shared + workload.prefix_repetition_suffix_len, dtype=np.int64),
        np.full(count, workload.prefix_repetition_output_len, dtype=np.int64),
        np.asarray(order, dtype=np.int64),
        np.full(count, shared, dtype=np.int64),
    )
