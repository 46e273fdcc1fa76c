import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srfa.errors import InputError
from srfa.simulate.requests_file import read_requests

ROWS = [
    {"arrival_s": 10.5, "prompt_tokens": 100, "output_tokens": 4, "request_id": "b"},
    {"arrival_s": 10.0, "prompt_tokens": 200, "output_tokens": 8, "request_id": "a"},
    {"arrival_s": 12.0, "prompt_tokens": 300, "output_tokens": 1, "request_id": "c"},
]


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.parquet"])
def test_every_format_gives_the_same_requests_by_arrival(tmp_path, name):
    load = read_requests(write(tmp_path / name, ROWS))
    assert load.arrival_us.tolist() == [0.0, 0.5e6, 2e6]
    assert load.prompt_tokens.tolist() == [200, 100, 300]
    assert load.output_tokens.tolist() == [8, 4, 1]
    assert load.request_ids == ("a", "b", "c")


def test_microseconds_are_taken_as_they_are(tmp_path):
    rows = [{"arrival_us": t, "prompt_tokens": 1, "output_tokens": 1} for t in (7.0, 5.0)]
    assert read_requests(write(tmp_path / "r.csv", rows)).arrival_us.tolist() == [0.0, 2.0]


def test_requests_of_a_group_share_the_full_blocks_of_their_prefix(tmp_path):
    groups = [("x", 40), ("y", 16), ("x", 32), (None, None)]
    rows = [
        {"arrival_s": 0.0, "prompt_tokens": 64, "output_tokens": 1, "prefix_group": group, "prefix_tokens": tokens}
        for group, tokens in groups
    ]
    names = read_requests(write(tmp_path / "r.csv", rows), block_size=16).block_hashes
    assert np.diff(names.offsets).tolist() == [2, 1, 2, 0]
    assert names.values[:2].tolist() == names.values[3:].tolist()
    assert names.values[2] not in names.values[:2]


def test_priorities_are_kept(tmp_path):
    rows = [{**row, "priority": priority} for row, priority in zip(ROWS, (5, -1, 0), strict=True)]
    assert read_requests(write(tmp_path / "r.csv", rows)).priority.tolist() == [-1, 5, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt_tokens": 0}, "row 1: prompt_tokens=0, expected a whole number of at least 1"),
        ({"prompt_tokens": 1.5}, "row 1: prompt_tokens=1.5, expected a whole number"),
        ({"output_tokens": None}, "row 1: output_tokens=nan, expected"),
        ({"output_tokens": "many"}, "row 1: output_tokens='many', expected"),
        ({"arrival_s": None}, "row 1: arrival_s=nan, expected a finite time"),
    ],
)
def test_an_impossible_value_is_named_with_its_row(tmp_path, change, said):
    path = write(tmp_path / "r.csv", [ROWS[0], ROWS[1] | change, ROWS[2]])
    with pytest.raises(InputError, match=said) as refused:
        read_requests(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt_tokens": 1, "output_tokens": 1}], r"column\(s\) arrival_s \(or arrival_us\) missing"),
        ([{"arrival_s": 1.0, "output_tokens": 1}], r"column\(s\) prompt_tokens missing"),
        ([ROWS[0] | {"arrival_us": 1.0}], "has both arrival_us and arrival_s"),
        ([ROWS[0] | {"prefix_group": "x"}], "prefix_group and prefix_tokens belong together"),
        ([ROWS[0] | {"promt": 1}], "promt"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, rows, said):
    with pytest.raises(InputError, match=said):
        read_requests(write(tmp_path / "r.csv", rows))


def test_a_prefix_longer_than_its_prompt_is_refused(tmp_path):
    rows = [ROWS[0] | {"prefix_group": "x", "prefix_tokens": 101}]
    with pytest.raises(InputError, match="row 0: prefix_tokens=101, expected at most prompt_tokens"):
        read_requests(write(tmp_path / "r.csv", rows))


@pytest.mark.parametrize(("name", "text"), [("r.txt", "x"), ("r.jsonl", "{"), ("r.csv", ""), ("r.parquet", "no")])
def test_a_file_that_is_not_what_it_is_called_is_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=name):
        read_requests(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read"):
        read_requests(tmp_path / "absent.csv")
