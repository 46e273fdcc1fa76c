"""Schedules of real vLLM engines, step for step: ``tests/vllm/recorded_schedules.py`` says what was recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from srfa.observations import from_table
from srfa.operators import step_totals
from srfa.simulate.engine import simulate
from srfa.specs import BenchmarkJob, EngineArgs, Workload
from srfa.traces.steps import steps_table
from srfa.traces.tables import jobs_table, observations_table
from tests.schedules import CLOCK, load_of, read, recorded_schedule, server_of, simulated_schedule
from tests.steps import catalog

DATA = Path(__file__).parents[1] / "data"
NAMES = sorted(path.name.split(".")[0] for path in DATA.glob("schedule_*.jsonl.gz"))
JOB = BenchmarkJob(
    model="meta-llama/Llama-3.1-8B",
    gpu="h100-sxm-80gb",
    engine=EngineArgs(),
    workload=Workload(name="w"),
    engine_version="0.32.0",
)


@pytest.fixture(params=NAMES)
def records(request):
    return read(DATA / f"{request.param}.jsonl.gz")


def test_every_step_of_a_real_engine_is_simulated_exactly(records):
    simulated_schedule(load_of(records), server_of(records.engine)).assert_equals(recorded_schedule(records))


def test_a_simulated_steps_features_are_bit_for_bit_those_of_its_trace(records):
    jobs, steps = jobs_table(JOB, records.engine, run_id="r"), steps_table(records, JOB)
    observed = observations_table(jobs, steps, {JOB.gpu: catalog().gpus[JOB.gpu]})
    log = simulate(load_of(records), server_of(records.engine), CLOCK, record_steps=True).steps
    rows = observed["step_id"].to_numpy()
    assert len(rows) >= records.steps.num_rows - 2
    expected = step_totals(from_table(observed))
    assert log.totals[rows].tobytes() == expected.tobytes()


def recordings(*words):
    return [read(DATA / f"{name}.jsonl.gz") for name in NAMES if any(word in name for word in words)]


def test_the_recordings_have_every_request_waiting_before_the_first_step():
    for records in recordings("schedule"):
        assert sorted(records.requests["waiting_at_queue"].to_pylist()) == list(range(records.requests.num_rows))


def test_the_recordings_hold_what_they_are_for():
    models = {name.split("_")[1] for name in NAMES}
    budgets = {records.engine.max_num_batched_tokens for records in recordings("schedule")}
    assert models == {"dense", "moe"}
    assert len(budgets) >= 4
    for records in recordings("prefix", "turns"):
        assert sum(map(bool, records.requests["cached_tokens"].to_pylist())) >= 8
    for records in recordings("preempt", "prefix", "priority", "uncached", "headroom"):
        assert records.preemptions.num_rows >= 1
    (whole,) = recordings("whole")
    assert not whole.engine.enable_chunked_prefill


def test_a_later_turn_of_a_recording_finds_the_answer_of_the_one_before_in_the_cache():
    (turns,) = recordings("turns")
    rows = turns.requests.sort_by("t_queued_ns").to_pylist()
    first = {name for row in rows[:6] for name in row["block_hashes"][row["prompt_tokens"] // 32 :]}
    hits = [set(row["block_hashes"][: row["cached_tokens"] // 32]) & first for row in rows[6:]]
    assert any(hits)


def test_a_step_that_differs_is_named():
    (records,) = recordings("dense_chunks")
    whole = recorded_schedule(records)
    other = recorded_schedule(records)
    other.batches[7] = other.batches[8]
    with pytest.raises(AssertionError, match="step 7"):
        whole.assert_equals(other)
