import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srfa.vllm import records
from srfa.vllm.records import RecordWriter, TracePathError, trace_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def writer(tmp_path):
    writer = RecordWriter.open(tmp_path / "trace.jsonl")
    yield writer
    writer.close()


def test_a_record_is_in_the_file_when_write_returns(writer, tmp_path):
    assert writer.write({"record": "step", "step_id": 0})
    assert lines(tmp_path / "trace.jsonl") == [{"record": "step", "step_id": 0}]


def test_each_record_is_one_system_call(writer, monkeypatch):
    sizes = []
    real_write = os.write
    monkeypatch.setattr(records.os, "write", lambda fd, data: sizes.append(len(data)) or real_write(fd, data))
    for index in range(3):
        writer.write({"n": index})
    assert sizes == [8, 8, 8]


@given(st.lists(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.lists(st.integers()), st.none()))))
def test_records_come_back_as_written(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("round") / "trace.jsonl"
    writer = RecordWriter.open(path)
    for record in written:
        assert writer.write(record)
    writer.close()
    assert lines(path) == written


def cyclic():
    record = {}
    record["self"] = record
    return record


@pytest.mark.parametrize("record", [{"x": object()}, {"x": float("nan")}, {"x": {1, 2}}, cyclic()])
def test_what_json_cannot_hold_is_dropped_and_reported_before_the_next_record(writer, tmp_path, record):
    assert not writer.write(record)
    assert writer.dropped == 1
    assert writer.write({"n": 1})
    assert writer.write({"n": 2})
    assert lines(tmp_path / "trace.jsonl") == [{"record": "dropped", "count": 1}, {"n": 1}, {"n": 2}]


def test_a_full_device_drops_records_and_raises_nothing():
    writer = RecordWriter.open("/dev/full")
    assert [writer.write({"n": index}) for index in range(5)] == [False] * 5
    assert writer.dropped == 5
    writer.close()


def test_a_closed_file_drops_records_and_raises_nothing(writer):
    writer.close()
    assert not writer.write({"n": 1})
    assert writer.dropped == 1
    writer.close()


def test_closing_reports_what_was_dropped_last(writer, tmp_path):
    writer.drop(3)
    writer.close()
    assert lines(tmp_path / "trace.jsonl") == [{"record": "dropped", "count": 3}]


def test_a_disk_that_fills_and_empties_leaves_whole_lines_and_the_true_count(tmp_path):
    # A file-size limit makes the kernel write the part of a record that fits, as a full disk does.
    script = """
        import resource, sys
        from srfa.vllm.records import RecordWriter
        writer = RecordWriter.open(sys.argv[1])
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        outcomes = [writer.write({"n": n, "padding": "x" * 60}) for n in range(30)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        writer.write({"n": 30})
        sys.stdout.write(str(outcomes.count(False)))
    """
    path = tmp_path / "trace.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True, check=True
    )
    written = lines(path)
    lost = int(done.stdout)
    assert lost > 0
    assert [record["n"] for record in written[:-2]] == list(range(30 - lost))
    assert written[-2:] == [{"record": "dropped", "count": lost}, {"n": 30}]


def test_a_torn_line_that_cannot_be_cut_off_does_not_join_the_next_record():
    reader, sink = os.pipe()
    os.set_blocking(sink, False)
    os.set_blocking(reader, False)
    room = fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 4096)
    writer = RecordWriter(sink)
    assert not writer.write({"padding": "x" * (room + 1000)})
    os.read(reader, room)
    assert writer.write({"n": 1})
    assert [json.loads(line) for line in os.read(reader, room).splitlines() if line] == [
        {"record": "dropped", "count": 1},
        {"n": 1},
    ]
    writer.close()
    os.close(reader)


def test_sigkill_loses_at_most_the_last_record(tmp_path):
    script = """
        import itertools, sys
        from srfa.vllm.records import RecordWriter
        writer = RecordWriter.open(sys.argv[1])
        for n in itertools.count():
            writer.write({"n": n, "padding": "x" * 2000})
            sys.stdout.write(f"{n}\\n"); sys.stdout.flush()
    """
    path = tmp_path / "trace.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        for _ in range(200):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.endswith("\n"))])
    whole = path.read_text().split("\n")[:-1]
    assert [json.loads(line)["n"] for line in whole] == list(range(len(whole)))
    assert len(whole) >= acknowledged + 1


def test_a_trace_file_in_a_missing_folder_is_refused_with_path_and_remedy(tmp_path):
    with pytest.raises(TracePathError, match=r"SRFA_TRACE_PATH='.*/nowhere/t.jsonl'.*existing, writable folder"):
        RecordWriter.open(tmp_path / "nowhere" / "t.jsonl")


def test_an_existing_trace_is_continued_not_overwritten(tmp_path):
    for n in range(2):
        writer = RecordWriter.open(tmp_path / "t.jsonl")
        writer.write({"n": n})
        writer.close()
    assert lines(tmp_path / "t.jsonl") == [{"n": 0}, {"n": 1}]


def test_tracing_is_off_without_a_path():
    assert trace_path({}) is None
    assert trace_path({"SRFA_TRACE_PATH": ""}) is None


def test_engine_cores_of_one_server_write_to_files_of_their_own(tmp_path):
    environment = {"SRFA_TRACE_PATH": str(tmp_path / "trace.jsonl")}
    names = [trace_path(environment, rank).name for rank in range(3)]
    assert names == ["trace.jsonl", "trace.dp1.jsonl", "trace.dp2.jsonl"]
