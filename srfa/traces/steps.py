"""Step records -> the ``steps`` table: batch composition, label, and which steps may be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from srfa.schema import STEPS
from srfa.specs import BenchmarkJob
from srfa.traces.plugin import TraceRecords
from srfa.units import BYTES_PER_GIB, NS_PER_US

INVALID_REASONS: Final = (
    "no_scheduled_tokens",
    "token_mismatch",
    "clock_not_monotone",
    "first_step",
    "step_id_gap",
    "shorter_than_schedule",
)
"""Why a step may not be used, the first that applies:

``no_scheduled_tokens``: nothing was computed. ``token_mismatch``: a request with no new token or a negative counter.
``clock_not_monotone``: schedule start <= schedule end <= output is broken, or the output is not after the previous one.
``first_step``: the first of a window, whose predecessor is unknown. ``step_id_gap``: so is this one's.
``shorter_than_schedule``: the step time is below the time spent in ``schedule()`` alone.
"""


@dataclass(frozen=True, slots=True)
class Entries:
    """One row for each request in each step, in scheduling order.

    Parameters
    ----------
    step
        Row of the step record, shape (n_entries,), ascending.
    request
        Index into ``request_ids``, shape (n_entries,).
    new_tokens, computed_tokens, prompt_tokens
        Tokens computed in this step, computed before it, and in the prompt; int64, shape (n_entries,).
    request_ids
        The distinct ids, in order of first appearance.
    """

    step: NDArray[np.int64]
    request: NDArray[np.int64]
    new_tokens: NDArray[np.int64]
    computed_tokens: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    request_ids: pa.StringArray

    @property
    def is_prefill(self) -> NDArray[np.bool_]:
        """True where the prompt was not wholly computed before the step: right after preemption and for last chunks."""
        return self.computed_tokens < self.prompt_tokens


def step_entries(steps: pa.Table) -> Entries:
    """Return what each step record says of each of its requests, flattened."""
    lengths = pc.list_value_length(steps["request_ids"]).to_numpy().astype(np.int64)
    coded = steps["request_ids"].combine_chunks().flatten().dictionary_encode()
    return Entries(
        step=np.repeat(np.arange(lengths.size), lengths),
        request=coded.indices.to_numpy().astype(np.int64),
        new_tokens=_flat(steps, "num_new_tokens"),
        computed_tokens=_flat(steps, "num_computed_tokens"),
        prompt_tokens=_flat(steps, "num_prompt_tokens"),
        request_ids=coded.dictionary,
    )


def steps_table(records: TraceRecords, job: BenchmarkJob) -> pa.Table:
    """Return the ``steps`` table (schema :data:`srfa.schema.STEPS`) of one job, one row a step record.

    The label is the busy-loop cycle, method ``output``::

        step_time_us = (t_output - max(t_schedule_start, t_output of the previous step)) / 1000

    It holds for synchronous and asynchronous scheduling and cannot span an idle gap. A request is in prefill iff its
    computed tokens < its prompt tokens; ``decode_context_tokens`` counts the KV entries attended, new ones included.
    Steps that may not be used have ``valid`` false and a reason of :data:`INVALID_REASONS`.
    """
    steps, entries = records.steps, step_entries(records.steps)
    n_steps = steps.num_rows
    start, scheduled, output = (_ns(steps, f) for f in ("t_schedule_start_ns", "t_schedule_end_ns", "t_output_ns"))
    step_time_us = (output - np.maximum(start, _previous(output, start))) / NS_PER_US
    sched_time_us = (scheduled - start) / NS_PER_US
    reason = _invalid_reason(steps, entries, step_time_us, sched_time_us)
    columns: dict[str, Any] = {name: steps[name] for name in STEPS.names if name in steps.column_names}
    columns |= _composition(entries, n_steps) | {
        "job_id": pa.repeat(job.job_id, n_steps),
        "step_time_us": pa.array(step_time_us),
        "step_time_method": pa.repeat("output", n_steps),
        "step_cpu_time_us": pc.divide(pc.cast(steps["step_cpu_time_ns"], pa.float64()), NS_PER_US),
        "sched_time_us": pa.array(sched_time_us),
        "cpu_offload_bytes": pa.repeat(int(job.engine.cpu_offload_gb * BYTES_PER_GIB), n_steps),
        "valid": pa.array(reason == ""),
        "invalid_reason": pa.array(reason, pa.string(), mask=reason == ""),
    }
    return pa.table({name: columns[name] for name in STEPS.names}, schema=STEPS)


def _composition(entries: Entries, n_steps: int) -> dict[str, pa.Array[Any]]:
    prefill = entries.is_prefill
    attended = entries.computed_tokens + entries.new_tokens
    columns: dict[str, pa.Array[Any]] = {}
    for phase, chosen in (("prefill", prefill), ("decode", ~prefill)):
        columns[f"num_{phase}_reqs"] = pa.array(_count(entries.step[chosen], n_steps))
        columns[f"{phase}_tokens"] = pa.array(_total(entries.step[chosen], entries.new_tokens[chosen], n_steps))
    return columns | {
        "prefill_new_tokens": _ragged(entries, prefill, entries.new_tokens, n_steps),
        "prefill_context_tokens": _ragged(entries, prefill, entries.computed_tokens, n_steps),
        "decode_context_tokens": _ragged(entries, ~prefill, attended, n_steps),
    }


def _invalid_reason(
    steps: pa.Table, entries: Entries, step_time_us: NDArray[np.float64], sched_time_us: NDArray[np.float64]
) -> NDArray[np.str_]:
    """Return the reason of each step, empty where it is valid; shape (n_steps,)."""
    start, scheduled, output = (_ns(steps, f) for f in ("t_schedule_start_ns", "t_schedule_end_ns", "t_output_ns"))
    step_id = _ns(steps, "step_id")
    impossible = (entries.new_tokens < 1) | (entries.computed_tokens < 0) | (entries.prompt_tokens < 1)
    broken_clock = (scheduled < start) | (output < scheduled) | (output <= _previous(output, output - 1))
    conditions = (
        _total(entries.step, entries.new_tokens, step_id.size) < 1,
        _count(entries.step[impossible], step_id.size) > 0,
        broken_clock,
        np.arange(step_id.size) == 0,
        step_id != _previous(step_id, step_id - 1) + 1,
        step_time_us < sched_time_us,
    )
    return np.select(conditions, INVALID_REASONS, default="")


def _previous(values: NDArray[np.int64], at_start: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the value one row before; for the first row the first of ``at_start``."""
    return np.concatenate([at_start[:1], values[:-1]])


def _ns(steps: pa.Table, field: str) -> NDArray[np.int64]:
    return np.asarray(steps[field].to_numpy(), dtype=np.int64)


def _flat(steps: pa.Table, field: str) -> NDArray[np.int64]:
    return np.asarray(pc.list_flatten(steps[field]).to_numpy(), dtype=np.int64)


def _count(rows: NDArray[np.int64], n_steps: int) -> NDArray[np.int64]:
    return np.bincount(rows, minlength=n_steps).astype(np.int64)


def _total(rows: NDArray[np.int64], tokens: NDArray[np.int64], n_steps: int) -> NDArray[np.int64]:
    return np.bincount(rows, weights=tokens, minlength=n_steps).astype(np.int64)


def _ragged(entries: Entries, chosen: NDArray[np.bool_], values: NDArray[np.int64], n_steps: int) -> pa.ListArray[Any]:
    offsets = np.concatenate([[0], np.cumsum(_count(entries.step[chosen], n_steps))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values[chosen], pa.int32()))
