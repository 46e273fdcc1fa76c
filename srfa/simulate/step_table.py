"""Simulated steps as observations: what an estimator's domain is asked about."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from srfa.observations import Configuration, Observations, from_table
from srfa.ragged import IntArray
from srfa.simulate.load import RequestLoad
from srfa.simulate.served import StepLog
from srfa.simulate.server import Server


def step_observations(
    log: StepLog, load: RequestLoad, *, configuration: Configuration, server: Server, at_most: int | None = None
) -> Observations:
    """Return the steps of a simulation in the form of measured ones.

    A request is in prefill iff its computed tokens are less than its prompt's, as in :mod:`srfa.traces.steps`.

    Parameters
    ----------
    at_most
        Take that many steps at even distances; None takes all.
    """
    chosen = _evenly(log.n_steps, at_most)
    lengths = np.diff(log.offsets)[chosen]
    rows = np.repeat(log.offsets[chosen], lengths) + _ranks(lengths)
    step = np.repeat(np.arange(len(chosen)), lengths)
    new, computed = log.new_tokens[rows], log.computed_tokens[rows]
    prefill = computed < load.prompt_tokens[log.request[rows]]
    count = len(chosen)
    columns: dict[str, Any] = {
        "job_id": pa.repeat("simulated", count),
        "step_time_us": pa.array(log.step_time_us[chosen]),
        "num_prefill_reqs": pa.array(_counts(step[prefill], count)),
        "num_decode_reqs": pa.array(_counts(step[~prefill], count)),
        "prefill_tokens": pa.array(_sums(step[prefill], new[prefill], count)),
        "decode_tokens": pa.array(_sums(step[~prefill], new[~prefill], count)),
        "prefill_new_tokens": _lists(step[prefill], new[prefill], count),
        "prefill_context_tokens": _lists(step[prefill], computed[prefill], count),
        "decode_context_tokens": _lists(step[~prefill], (computed + new)[~prefill], count),
        "cpu_offload_bytes": pa.repeat(int(server.cpu_offload_bytes), count),
    }
    columns |= {name: pa.repeat(value, count) for name, value in asdict(configuration).items() if value is not None}
    return from_table(pa.table(columns), where="simulated steps")


def _evenly(n_steps: int, at_most: int | None) -> IntArray:
    wanted = min(n_steps, at_most or n_steps)
    return np.unique(np.linspace(0, n_steps - 1, wanted).astype(np.int64))


def _ranks(lengths: IntArray) -> IntArray:
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _counts(step: IntArray, n_steps: int) -> IntArray:
    return np.bincount(step, minlength=n_steps).astype(np.int64)


def _sums(step: IntArray, tokens: IntArray, n_steps: int) -> IntArray:
    return np.bincount(step, weights=tokens, minlength=n_steps).astype(np.int64)


def _lists(step: IntArray, values: NDArray[np.int64], n_steps: int) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(_counts(step, n_steps))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))
