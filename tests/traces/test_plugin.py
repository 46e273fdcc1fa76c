from __future__ import annotations

import json

import pytest

from srfa.errors import DataInvalidError
from srfa.traces.plugin import Window, cut_windows, parse_trace


@pytest.fixture
def run(toy):
    return toy([(100, 9), (30, 3), (200, 2)])


def test_every_record_becomes_a_row_in_file_order(run):
    records = parse_trace(run.lines())
    assert records.steps["step_id"].to_pylist() == [step["step_id"] for step in run.kind("step")]
    assert records.steps["num_new_tokens"].to_pylist() == [step["num_new_tokens"] for step in run.kind("step")]
    assert records.requests["request_id"].to_pylist() == [request["request_id"] for request in run.kind("request")]
    assert records.engine.max_num_batched_tokens == 64
    assert (records.dropped, records.torn) == (0, 0)


def test_compact_lines_without_newlines_read_the_same(run):
    compact = [json.dumps(record, separators=(",", ":")).encode() for record in run.records]
    assert parse_trace(compact) == parse_trace(run.lines())


def test_every_prefix_of_a_trace_is_readable_and_loses_at_most_its_last_line(run):
    whole = b"".join(run.lines())
    first_line = len(run.lines()[0])
    for size in range(first_line, len(whole), 37):
        lines = whole[:size].splitlines(keepends=True)
        records = parse_trace(lines)
        n_records = 1 + records.steps.num_rows + records.requests.num_rows + records.preemptions.num_rows
        assert n_records + records.torn == len(lines)


def test_a_torn_last_line_is_skipped_and_counted(run):
    lines = run.lines()
    assert lines[-1].startswith(b'{"record": "step"')
    records = parse_trace([*lines[:-1], lines[-1][:50]])
    assert records.torn == 1
    assert records.steps.num_rows == len(run.kind("step")) - 1


def test_a_torn_line_inside_the_file_is_refused_with_its_number(run):
    lines = run.lines()
    lines[3] = lines[3][:60] + b"\n"
    with pytest.raises(DataInvalidError, match=r"^host7\.jsonl:4: not a JSON object"):
        parse_trace(lines, name="host7.jsonl")


def test_two_records_on_one_line_are_refused_with_its_number(run):
    lines = run.lines()
    lines[2:4] = [lines[2].strip() + lines[3]]
    with pytest.raises(DataInvalidError, match=r"^trace\.jsonl:3: .*Extra data"):
        parse_trace(lines)


def test_blank_lines_count_as_lines_of_the_file(run):
    lines = run.lines()
    lines[3] = b"[1, 2]\n"
    with pytest.raises(DataInvalidError, match=r"^trace\.jsonl:5: .*expected an object, found list"):
        parse_trace([b"\n", *lines])


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("step_id", "seven", r".*Column\(/step_id\) changed from number to string"),
        ("num_new_tokens", [1.5], r".*couldn't parse:1\.5"),
        ("t_output_ns", None, "step record without 't_output_ns'"),
        ("num_new_tokens", [], "step record with lists that are not parallel: 2 request_ids, 0 num_new_tokens"),
        ("record", "stepp", "\"record\" is 'stepp'; expected one of engine, step"),
    ],
)
def test_a_wrong_field_is_refused_by_line_and_name(run, field, value, complaint):
    target = next(row for row, record in enumerate(run.records) if len(record.get("request_ids", ())) == 2)
    run.records[target][field] = value
    with pytest.raises(DataInvalidError, match=rf"^trace\.jsonl:{target + 1}: {complaint}"):
        parse_trace(run.lines())


def test_a_field_this_version_does_not_know_is_ignored(run):
    for record in run.records:
        record["worker_cpu_time_ns"] = [1, 2]
    assert parse_trace(run.lines()).steps.num_rows == len(run.kind("step"))


@pytest.mark.parametrize("count", [0, 2])
def test_a_trace_has_exactly_one_engine_record(run, count):
    lines = run.lines()
    with pytest.raises(DataInvalidError, match=f"{count} engine records; expected 1"):
        parse_trace(lines[:1] * count + lines[1:])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"schema_version": 2}, "schema_version 2; this srfa reads 1"), ({"block_size": "big"}, "block_size: .*'big'")],
)
def test_an_unreadable_engine_record_is_refused(run, change, complaint):
    run.records[0] |= change
    with pytest.raises(DataInvalidError, match=rf"^trace\.jsonl:1: .*{complaint}"):
        parse_trace(run.lines())


def test_dropped_records_are_summed(run):
    run.records += [{"record": "dropped", "count": 2}, {"record": "dropped", "count": 5}]
    assert parse_trace(run.lines()).dropped == 7


def test_a_trace_with_nothing_but_its_engine_record_has_empty_tables(run):
    records = parse_trace(run.lines()[:1])
    assert (records.steps.num_rows, records.requests.num_rows, records.dropped) == (0, 0, 0)


def _window(steps, first, last, name="j"):
    return Window(job_id=name, t_start_ns=steps[first]["t_schedule_start_ns"], t_end_ns=steps[last]["t_output_ns"])


def test_windows_partition_the_steps_and_keep_lines_byte_for_byte(run):
    steps = run.kind("step")
    half = len(steps) // 2
    cut = cut_windows(run.lines(), [_window(steps, 0, half - 1, "a"), _window(steps, half, -1, "b")])
    step_lines = {line for line in run.lines() if b'"step"' in line}
    a, b = (step_lines.intersection(cut[name]) for name in "ab")
    assert a | b == step_lines
    assert not a & b
    assert parse_trace(cut["b"]).steps["step_id"].to_pylist() == list(range(half, len(steps)))


def test_the_engine_record_goes_into_every_window(run):
    nowhere = [Window(job_id=name, t_start_ns=1, t_end_ns=2) for name in "ab"]
    assert cut_windows(run.lines(), nowhere) == {"a": run.lines()[:1], "b": run.lines()[:1]}


def test_a_step_across_a_window_border_belongs_to_neither_side(run):
    steps = run.kind("step")
    middle = (steps[2]["t_schedule_start_ns"] + steps[2]["t_output_ns"]) // 2
    windows = [Window(job_id="a", t_start_ns=0, t_end_ns=middle), Window(job_id="b", t_start_ns=middle, t_end_ns=2**62)]
    cut = {
        name: parse_trace(lines).steps["step_id"].to_pylist()
        for name, lines in cut_windows(run.lines(), windows).items()
    }
    assert cut == {"a": [0, 1], "b": list(range(3, len(steps)))}


def test_a_request_belongs_to_the_window_it_was_queued_in(toy):
    run = toy([(50, 2), (50, 2)], every_ns=10**12)
    first, second = run.kind("request")
    border = second["t_queued_ns"] - 1
    windows = [Window(job_id="a", t_start_ns=0, t_end_ns=border), Window(job_id="b", t_start_ns=border, t_end_ns=2**62)]
    cut = cut_windows(run.lines(), windows)
    assert parse_trace(cut["a"]).requests["request_id"].to_pylist() == [first["request_id"]]
    assert parse_trace(cut["b"]).requests["request_id"].to_pylist() == [second["request_id"]]


def test_a_loss_goes_to_every_window_it_may_lie_in(run):
    steps = run.kind("step")
    position = run.records.index(steps[4])
    run.records.insert(position, {"record": "dropped", "count": 1})
    windows = [
        _window(steps, 0, 1, "a"),
        _window(steps, 2, 3, "b"),
        _window(steps, 4, 5, "c"),
        _window(steps, 6, 7, "d"),
    ]
    lost = {name: parse_trace(lines).dropped for name, lines in cut_windows(run.lines(), windows).items()}
    assert lost == {"a": 0, "b": 1, "c": 1, "d": 0}


def test_a_torn_end_stays_torn_in_the_window_it_ends(run):
    steps = run.kind("step")
    lines = [*run.lines(), b'{"record": "st']
    cut = cut_windows(lines, [_window(steps, 0, 1, "a"), _window(steps, 2, -1, "b")])
    assert (parse_trace(cut["a"]).torn, parse_trace(cut["b"]).torn) == (0, 1)
