"""One engine group from start to store, on a small real server that misbehaves on demand."""

import gzip
import hashlib
import json
import os

import pytest

from srfa.specs import EngineGroup
from tasks.evidence import Manifest
from tasks.group import GroupRequest, run_group
from tasks.store import open_store


@pytest.fixture
def store(request_):
    return open_store(request_.store_uri)


def plant(monkeypatch, fault):
    monkeypatch.setenv("FAKE_ENGINE", fault)


def reasons(outcomes):
    return [outcome.reason for outcome in outcomes]


def read(store, outcome, name):
    return json.loads(store.get(f"{outcome.prefix}/{name}"))


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(children):
    yield
    assert not children()


def test_each_job_leaves_its_files_and_a_manifest_that_describes_them(group, request_, store):
    outcomes = run_group(group, request_)
    assert [outcome.status for outcome in outcomes] == ["measured"] * 3, outcomes
    assert [outcome.job_id for outcome in outcomes] == [job.job_id for job in group.jobs]
    for job, outcome in zip(group.jobs, outcomes, strict=True):
        manifest = Manifest.model_validate_json(store.get(f"{outcome.prefix}/manifest.json"))
        assert manifest.job == job
        assert manifest.outcome == outcome
        assert set(manifest.files) >= {"trace.jsonl.gz", "client.json", "engine.json", "server.log", "probe.json"}
        for name, file in manifest.files.items():
            data = store.get(f"{outcome.prefix}/{name}")
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (file.sha256, file.size_bytes)


def test_a_job_s_trace_holds_its_steps_and_no_others(group, request_, store):
    outcomes = run_group(group, request_)
    seen = []
    for outcome in outcomes:
        lines = gzip.decompress(store.get(f"{outcome.prefix}/trace.jsonl.gz")).splitlines()
        kinds = [json.loads(line)["record"] for line in lines]
        assert kinds == ["engine"] + ["step"] * 5
        assert outcome.n_steps == outcome.n_requests == 5
        seen += [json.loads(line)["step_id"] for line in lines[1:]]
    assert len(set(seen)) == 15
    assert min(seen) > 1, "a warm-up step lies in a window"


def test_tokens_the_client_counts_are_those_that_were_asked_for(group, request_, store):
    for job, outcome in zip(group.jobs, run_group(group, request_), strict=True):
        client = read(store, outcome, "client.json")
        assert sum(client["input_lens"]) == job.workload.num_prompts * job.workload.random_input_len
        assert sum(client["output_lens"]) == job.workload.num_prompts * job.workload.random_output_len


def test_requested_and_resolved_configuration_and_the_machine_are_kept(group, request_, store):
    document = read(store, run_group(group, request_)[0], "engine.json")
    assert document["requested"]["max_num_seqs"] == document["resolved"]["max_num_seqs"] == 8
    assert document["requested"]["dtype"] == "half"
    assert document["resolved"]["dtype"] == "float16"
    assert document["windows"][0]["t_start_ns"] < document["windows"][0]["t_end_ns"]
    assert document["environment"]["machine"]["cpu_count"] == os.cpu_count()
    assert document["probe"] == {"bf16_tflops": 0.1, "threads": "1"}


def test_measured_jobs_are_not_run_again_and_no_server_is_started_for_them(group, request_, monkeypatch):
    first = run_group(group, request_)
    plant(monkeypatch, "dies,probe_fails")
    assert run_group(group, request_) == first


def test_only_what_is_missing_is_run(group, request_, store, monkeypatch):
    first = run_group(group, request_)
    store.delete(f"{first[1].prefix}/manifest.json")
    plant(monkeypatch, "errors_16")
    again = run_group(group, request_)
    assert (again[0], again[2]) == (first[0], first[2])
    assert again[1].status == "measured"
    assert again[1].wall_s != first[1].wall_s


def test_another_run_measures_anew(group, request_):
    first = run_group(group, request_)
    other = run_group(group, request_.model_copy(update={"run_id": "r2"}))
    assert [outcome.status for outcome in other] == ["measured"] * 3
    assert {outcome.prefix for outcome in first}.isdisjoint(outcome.prefix for outcome in other)


def test_one_job_whose_requests_fail_does_not_take_the_others(group, request_, store, monkeypatch):
    plant(monkeypatch, "errors_32")
    outcomes = run_group(group, request_)
    assert reasons(outcomes) == [None, "load_failed", None]
    assert "0 of 5 requests completed" in outcomes[1].message
    assert "HTTP Error 500" in outcomes[1].message
    assert not store.exists(f"{outcomes[1].prefix}/manifest.json")
    assert read(store, outcomes[1], "failure.json")["reason"] == "load_failed"
    assert store.exists(f"{outcomes[1].prefix}/client.json")


def test_a_later_success_removes_the_note_of_the_failure(group, request_, store, monkeypatch):
    plant(monkeypatch, "errors_32")
    run_group(group, request_)
    plant(monkeypatch, "")
    outcomes = run_group(group, request_)
    assert reasons(outcomes) == [None] * 3
    assert not store.exists(f"{outcomes[1].prefix}/failure.json")


def test_the_death_of_the_engine_fails_the_rest_with_its_last_words(group, request_, store, monkeypatch):
    plant(monkeypatch, "dies_in_load")
    outcomes = run_group(group, request_)
    assert reasons(outcomes) == ["engine_died"] * 3
    for outcome in outcomes:
        assert "the engine core is lost: out of memory" in outcome.message
        assert b"out of memory" in store.get(f"{outcome.prefix}/server.log")


def test_an_engine_that_cannot_start_fails_all_and_keeps_what_was_measured_before(group, request_, store, monkeypatch):
    first = run_group(group, request_)
    store.delete(f"{first[2].prefix}/manifest.json")
    plant(monkeypatch, "dies")
    outcomes = run_group(group, request_)
    assert reasons(outcomes) == [None, None, "engine_start"]
    assert outcomes[:2] == first[:2]
    assert "no such attention backend" in outcomes[2].message
    assert b"no such attention backend" in store.get(f"{outcomes[2].prefix}/server.log")


@pytest.mark.parametrize(
    ("fault", "reason", "says"),
    [
        ("wrong_config", "config_mismatch", "max_num_seqs"),
        ("probe_fails", "engine_start", "no such instruction"),
        ("load_dies", "load_failed", "the client is broken"),
    ],
)
def test_a_failure_is_an_outcome_with_its_reason(group, request_, monkeypatch, fault, reason, says):
    plant(monkeypatch, fault)
    outcomes = run_group(group, request_)
    assert reasons(outcomes) == [reason] * 3
    assert all(says in outcome.message for outcome in outcomes)


def test_a_load_that_does_not_end_is_given_up_and_the_next_one_has_a_fresh_client(group, request_, monkeypatch):
    plant(monkeypatch, "load_hangs")
    settings = request_.settings.model_copy(update={"load_timeout_s": 0.5})
    outcomes = run_group(group, request_.model_copy(update={"settings": settings}))
    assert reasons(outcomes) == ["timeout"] * 3


def test_a_store_that_cannot_be_used_is_the_reason(group, request_, tmp_path):
    (tmp_path / "file").write_text("")
    outcomes = run_group(group, request_.model_copy(update={"store_uri": str(tmp_path / "file" / "below")}))
    assert reasons(outcomes) == ["store"] * 3
    assert reasons(run_group(group, request_.model_copy(update={"store_uri": "gs://x/y"}))) == ["store"] * 3


def test_a_broken_manifest_is_told_with_its_remedy(group, request_, store):
    first = run_group(group, request_)
    store.put(f"{first[0].prefix}/manifest.json", b"{}")
    outcomes = run_group(group, request_)
    assert set(reasons(outcomes)) == {"store"}
    assert "delete it to measure the job again" in outcomes[0].message


def test_request_and_outcome_travel_as_json(group, request_):
    assert GroupRequest.model_validate_json(request_.model_dump_json()) == request_
    assert EngineGroup.model_validate_json(group.model_dump_json()) == group
