"""The small recordings of real engines that other tests read must stay in the documented format."""

import gzip
import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"


def recording(name):
    with gzip.open(DATA / f"trace_{name}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_recording_shows_chunks_a_prefix_hit_and_preemptions(name):
    records = recording(name)
    steps = [record for record in records if record["record"] == "step"]
    assert records[0]["record"] == "engine"
    assert [step["step_id"] for step in steps] == list(range(len(steps)))
    assert any(
        computed and computed < prompt and new > 1
        for step in steps
        for new, computed, prompt in zip(
            step["num_new_tokens"], step["num_computed_tokens"], step["num_prompt_tokens"], strict=True
        )
    )
    assert any(record["record"] == "request" and record["cached_tokens"] for record in records)
    assert any(record["record"] == "preemption" for record in records)
    assert not any(record["record"] == "dropped" for record in records)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_tokens_are_conserved_in_a_recording(name):
    records = recording(name)
    scheduled = {}
    for step in (record for record in records if record["record"] == "step"):
        for request_id, tokens in zip(step["request_ids"], step["num_new_tokens"], strict=True):
            scheduled[request_id] = scheduled.get(request_id, 0) + tokens
    for request in (record for record in records if record["record"] == "request" and not record["num_preemptions"]):
        needed = request["prompt_tokens"] + request["output_tokens"] - 1
        assert scheduled[request["request_id"]] + request["cached_tokens"] == needed
