from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srfa.schema import REQUESTS
from srfa.traces.client import parse_client
from srfa.traces.plugin import parse_trace
from srfa.traces.requests import match_requests, requests_table
from srfa.units import NS_PER_S


@pytest.fixture
def run(toy):
    return toy([(100, 4), (40, 2)])


def _table(run, job, **changes):
    document = {key: value for key, value in (run.client | changes).items() if value is not None}
    client = parse_client(json.dumps(document).encode())
    return requests_table(parse_trace(run.lines()), client, job)


def test_both_views_of_a_request_meet_in_one_row(run, job):
    table = _table(run, job)
    assert table.schema.equals(REQUESTS, check_metadata=True)
    rows = {row["request_id"]: row for row in table.to_pylist()}
    row = rows["cmpl-bench-0-0-00000000"]
    assert (row["prompt_tokens"], row["output_tokens"], row["cached_tokens"]) == (100, 4, 0)
    assert row["itl_us"] == pytest.approx([2000.0] * 3)
    assert row["e2e_us"] == pytest.approx(row["ttft_us"] + 6000.0)
    assert row["t_departed_ns"] == pytest.approx(
        (run.client["start_times"][0] + run.client["latencies"][0]) * NS_PER_S, abs=1000
    )


def test_priority_and_block_names_are_the_traces_and_null_where_it_is_older(run, job):
    assert _table(run, job)["block_hashes"].null_count == _table(run, job)["priority"].null_count == 2
    names = [[(1 << 63) - 1, 7], []]
    for request, blocks in zip(run.kind("request"), names, strict=True):
        request |= {"priority": -1, "block_hashes": blocks}
    table = _table(run, job)
    assert (table["block_hashes"].to_pylist(), table["priority"].to_pylist()) == (names, [-1, -1])


def test_without_a_client_its_columns_are_null(run, job):
    table = requests_table(parse_trace(run.lines()), None, job)
    assert table["ttft_us"].null_count == table["itl_us"].null_count == table.num_rows == 2


def test_without_ids_requests_are_not_guessed_together(run, job):
    assert _table(run, job, request_ids=None)["ttft_us"].null_count == 2


def test_a_client_on_another_clock_gives_no_departure_but_its_durations(run, job):
    table = _table(run, job, start_times=[12.0, 12.0])
    assert table["t_departed_ns"].null_count == 2
    assert table["e2e_us"].null_count == 0


def test_a_request_the_client_saw_fail_has_no_client_times(run, job):
    failed = {"errors": ["", "gone"], "output_lens": [4, 0], "completed": 1, "mean_ttft_ms": None}
    rows = {row["request_id"]: row for row in _table(run, job, **failed).to_pylist()}
    assert rows["cmpl-bench-1-0-00000001"]["ttft_us"] is None
    assert rows["cmpl-bench-0-0-00000000"]["ttft_us"] is not None


def test_an_id_that_is_a_prefix_of_another_takes_nothing_from_it():
    assert match_requests(["cmpl-b-12-0-ffff", "cmpl-b-1-0-ffff"], ["b-1", "b-12"]).tolist() == [1, 0]
    assert match_requests(["cmpl-b-12-0-ffff"], ["b-1"]).tolist() == [-1]


def test_a_trial_request_with_the_first_id_is_not_the_measured_one():
    assert match_requests(["cmpl-b-0-0-aaaa", "cmpl-b-0-0-bbbb"], ["b-0"]).tolist() == [-1, 0]


ID = st.text("ab-1", min_size=1, max_size=6).filter(lambda text: not text.startswith("-"))


@settings(deadline=None)
@given(ids=st.lists(ID, unique=True, max_size=8), suffix=st.text("0123456789cdef", min_size=8, max_size=8))
def test_every_request_finds_its_own_client(ids, suffix):
    assert match_requests([f"cmpl-{own}-0-{suffix}" for own in ids], ids).tolist() == _expected(ids)


def _expected(ids):
    """Distinct ids stay distinct, unless one is another plus the index that the server adds."""
    return [ids.index(f"{own}-0") if f"{own}-0" in ids else row for row, own in enumerate(ids)]
