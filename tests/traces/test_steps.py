from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srfa.schema import STEPS
from srfa.traces.plugin import parse_trace
from srfa.traces.steps import INVALID_REASONS, step_entries, steps_table
from srfa.units import BYTES_PER_GIB


def _step(step_id, start, output, entries, scheduled=None):
    """A step record by hand; ``entries`` holds (request, new, computed, prompt)."""
    columns = list(zip(*entries, strict=True)) or [(), (), (), ()]
    names = ("request_ids", "num_new_tokens", "num_computed_tokens", "num_prompt_tokens")
    return {
        "record": "step",
        "step_id": step_id,
        "t_schedule_start_ns": start,
        "t_schedule_end_ns": start + 1000 if scheduled is None else scheduled,
        "t_output_ns": output,
        "step_cpu_time_ns": None,
        "running_depth": 1,
        "waiting_depth": 0,
        "num_preempted": 0,
        "num_finished": 0,
    } | {name: list(column) for name, column in zip(names, columns, strict=True)}


@pytest.fixture(scope="session")
def table_of(toy, job):
    def build(*steps):
        run = toy([(8, 1)])
        run.records[1:] = steps
        return steps_table(parse_trace(run.lines()), job)

    return build


DECODE = [("a", 1, 100, 100)]


def test_composition_by_hand(table_of):
    mixed = [("a", 40, 0, 100), ("b", 1, 70, 64), ("c", 4, 96, 100), ("d", 1, 30, 30)]
    table = table_of(_step(0, 0, 10_000, mixed))
    assert table.schema.equals(STEPS, check_metadata=True)
    row = table.to_pylist()[0]
    assert row["num_prefill_reqs"] == 2
    assert row["prefill_tokens"] == 44
    assert row["prefill_new_tokens"] == [40, 4]
    assert row["prefill_context_tokens"] == [0, 96]
    assert row["num_decode_reqs"] == 2
    assert row["decode_tokens"] == 2
    assert row["decode_context_tokens"] == [71, 31]


def test_a_request_recomputed_after_preemption_is_in_prefill_though_it_has_output(table_of):
    row = table_of(_step(0, 0, 10_000, [("a", 60, 0, 50)])).to_pylist()[0]
    assert (row["num_prefill_reqs"], row["prefill_tokens"], row["num_decode_reqs"]) == (1, 60, 0)


def test_step_time_counts_from_schedule_start_after_an_idle_gap(table_of):
    table = table_of(_step(0, 0, 10_000, DECODE), _step(1, 500_000, 530_000, DECODE))
    assert table["step_time_us"].to_pylist() == [10.0, 30.0]
    assert set(table["step_time_method"].to_pylist()) == {"output"}


def test_step_time_counts_from_the_previous_output_when_scheduled_ahead(table_of):
    """Asynchronous scheduling: step 1 is scheduled while step 0 runs."""
    table = table_of(_step(0, 0, 10_000, DECODE), _step(1, 2_000, 25_000, DECODE))
    assert table["step_time_us"].to_pylist() == [10.0, 15.0]


def test_an_unknown_cpu_time_is_null_and_a_known_one_microseconds(table_of):
    known = _step(1, 20_000, 30_000, DECODE) | {"step_cpu_time_ns": 8_500}
    assert table_of(_step(0, 0, 10_000, DECODE), known)["step_cpu_time_us"].to_pylist() == [None, 8.5]


GOOD = _step(0, 0, 10_000, DECODE)
FAULTS = {
    "no_scheduled_tokens": _step(1, 20_000, 30_000, []),
    "token_mismatch": _step(1, 20_000, 30_000, [("a", 0, 100, 100), ("b", 3, 1, 8)]),
    "clock_not_monotone": _step(1, 20_000, 20_500, DECODE),
    "step_id_gap": _step(2, 20_000, 30_000, DECODE),
    "shorter_than_schedule": _step(1, 2_000, 12_000, DECODE, scheduled=7_000),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_step_that_cannot_be_used_says_why_and_spoils_no_other(table_of, reason):
    last = FAULTS[reason]["step_id"] + 1
    table = table_of(GOOD, FAULTS[reason], _step(last, 40_000, 50_000, DECODE))
    assert table["invalid_reason"].to_pylist() == ["first_step", reason, None]
    assert table["valid"].to_pylist() == [False, False, True]


def test_every_invalid_reason_is_tested():
    assert {*FAULTS, "first_step"} == set(INVALID_REASONS)


def test_an_output_before_the_previous_one_is_not_monotone(table_of):
    table = table_of(GOOD, _step(1, 0, 9_000, DECODE))
    assert table["invalid_reason"].to_pylist()[1] == "clock_not_monotone"


def test_offloaded_weights_are_bytes(toy, make_job):
    table = steps_table(parse_trace(toy([(8, 1)]).lines()), make_job({"cpu_offload_gb": 2.0}))
    assert table["cpu_offload_bytes"].to_pylist() == [2 * BYTES_PER_GIB]


def test_no_step_gives_an_empty_table_of_the_schema(table_of):
    table = table_of()
    assert table.num_rows == 0
    assert table.schema.equals(STEPS)


ENTRY = st.tuples(st.sampled_from("abcdef"), st.integers(1, 500), st.integers(0, 900), st.integers(1, 600))


@settings(deadline=None)
@given(batches=st.lists(st.lists(ENTRY, max_size=5), max_size=6))
def test_columns_equal_a_row_by_row_computation(table_of, batches):
    rows = table_of(*(_step(i, i * 10_000, i * 10_000 + 5_000, batch) for i, batch in enumerate(batches))).to_pylist()
    for row, batch in zip(rows, batches, strict=True):
        prefill = [entry for entry in batch if entry[2] < entry[3]]
        decode = [entry for entry in batch if entry[2] >= entry[3]]
        assert row["prefill_new_tokens"] == [entry[1] for entry in prefill]
        assert row["prefill_context_tokens"] == [entry[2] for entry in prefill]
        assert row["decode_context_tokens"] == [entry[1] + entry[2] for entry in decode]
        assert row["num_prefill_reqs"] == len(prefill)
        assert row["decode_tokens"] == sum(entry[1] for entry in decode)


def test_entries_name_each_request_once_in_order_of_appearance(toy):
    entries = step_entries(parse_trace(toy([(8, 3), (8, 3)]).lines()).steps)
    names = np.asarray(entries.request_ids.to_pylist())[entries.request]
    assert names.tolist() == ["cmpl-bench-0-0-00000000", "cmpl-bench-1-0-00000001"] * 3
    assert entries.step.tolist() == [0, 0, 1, 1, 2, 2]
