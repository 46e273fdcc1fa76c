from __future__ import annotations

import json

import numpy as np
import pytest

from srfa.errors import DataInvalidError
from srfa.traces.client import parse_client
from srfa.units import US_PER_MS, US_PER_S

MS_PER_S = US_PER_S / US_PER_MS


def _file(**changes):
    """Two requests by hand: 3 tokens in 50 + 2 x 10 ms, and 1 token in 80 ms."""
    document = {
        "duration": 0.2,
        "completed": 2,
        "input_lens": [30, 40],
        "output_lens": [3, 1],
        "ttfts": [0.05, 0.08],
        "itls": [[0.01, 0.01], []],
        "errors": ["", ""],
        "start_times": [100.0, 100.1],
        "latencies": [0.07, 0.08],
        "mean_ttft_ms": 65.0,
        "mean_tpot_ms": 10.0,
    }
    return json.dumps({key: value for key, value in (document | changes).items() if value is not None}).encode()


def test_seconds_become_microseconds():
    result = parse_client(_file())
    assert result.ttft_us.tolist() == [50_000.0, 80_000.0]
    assert result.itl_us.to_pylist() == [[10_000.0, 10_000.0], []]
    assert result.e2e_us.tolist() == pytest.approx([70_000.0, 80_000.0])
    assert result.start_us.tolist() == pytest.approx([100_000_000.0, 100_100_000.0])
    assert result.duration_us == pytest.approx(200_000.0)
    assert result.succeeded.tolist() == [True, True]
    assert result.request_ids is None


def test_without_latencies_end_to_end_is_ttft_and_the_inter_token_times():
    assert parse_client(_file(latencies=None)).e2e_us.tolist() == pytest.approx([70_000.0, 80_000.0])


def test_without_start_times_they_are_unknown():
    assert np.isnan(parse_client(_file(start_times=None)).start_us).all()


def test_a_failed_request_is_kept_and_counted():
    failed = {"output_lens": [3, 0], "ttfts": [0.05, 0.0], "latencies": [0.07, 0.0], "errors": ["", "Bad Request"]}
    result = parse_client(_file(**failed, completed=1, mean_ttft_ms=50.0))
    assert result.succeeded.tolist() == [True, False]
    assert result.failed_ratio == 0.5
    assert result.errors[1] == "Bad Request"


def test_a_run_in_which_every_request_failed_can_be_read():
    nothing = {"output_lens": [0, 0], "ttfts": [0.0, 0.0], "itls": [[], []], "latencies": [0.0, 0.0]}
    result = parse_client(_file(**nothing, errors=["refused", "refused"], completed=0, mean_ttft_ms=0.0))
    assert result.failed_ratio == 1.0


def test_chunks_of_several_tokens_are_no_error():
    """A busy server sends two tokens at once: fewer gaps, the same end."""
    assert parse_client(_file(itls=[[0.02], []])).e2e_us[0] == pytest.approx(70_000.0)


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("client_half_itl", {"itls": [[0.005] * 4, []]}),
        ("client_identity", {"itls": [[0.005] * 2, []]}),
        ("client_identity", {"latencies": [0.0735, 0.08]}),
        ("client_units", {name: [[1000 * v for v in r] if isinstance(r, list) else 1000 * r for r in values]
                          for name, values in {"ttfts": [0.05, 0.08], "itls": [[0.01, 0.01], []],
                                               "latencies": [0.07, 0.08]}.items()}),
        ("client_units", {"ttfts": [0.00005, 0.00008], "itls": [[0.00001] * 2, []], "latencies": [0.00007, 0.00008]}),
        ("client_completed", {"completed": 1}),
    ],
)  # fmt: skip
def test_times_that_disagree_are_refused_by_name(rule, changes):
    with pytest.raises(DataInvalidError, match=rf"^client\.json: {rule}: "):
        parse_client(_file(**changes))


def test_a_deviation_within_two_percent_passes():
    parse_client(_file(latencies=[0.0713, 0.08]))


def test_one_odd_request_in_a_hundred_passes():
    many = {name: value * 50 for name, value in json.loads(_file()).items() if isinstance(value, list)}
    many["latencies"][0] = 0.1
    parse_client(_file(**many, completed=100))


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (b"{", "not JSON"),
        (b"[]", "expected the file of vllm bench serve"),
        (_file(ttfts=None), "ttfts: Field required"),
        (_file(ttfts=[0.05]), "per-request lists differ in length: .*'ttfts': 1"),
        (_file(duration=0), "duration: "),
    ],
)
def test_a_file_that_is_no_such_result_is_refused(document, complaint):
    with pytest.raises(DataInvalidError, match=rf"^client\.json: .*{complaint}"):
        parse_client(document)
