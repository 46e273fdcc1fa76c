"""Claims about the traces of real engines: one run of engine_driver serves them all."""

import json
from collections import Counter

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

STEP_FIELDS = {
    "record", "step_id", "t_schedule_start_ns", "t_schedule_end_ns", "t_output_ns", "step_cpu_time_ns",
    "engine_cpu_time_ns", "worker_cpu_time_ns", "running_depth", "waiting_depth", "num_preempted", "num_finished",
    "kv_blocks_total", "kv_blocks_free", "kv_usage_ratio", "request_ids", "num_new_tokens", "num_computed_tokens",
    "num_prompt_tokens", "recorder_time_ns",
}  # fmt: skip
ENGINE_FIELDS = {
    "record", "schema_version", "vllm_version", "pid", "worker_pids", "scheduler", "async_scheduling",
    "batch_queue_size", "block_size", "num_gpu_blocks", "max_num_seqs", "max_num_batched_tokens", "max_model_len",
    "enable_chunked_prefill", "enable_prefix_caching", "scheduling_policy", "long_prefill_token_threshold",
    "watermark", "scheduler_reserve_full_isl", "tensor_parallel_size", "data_parallel_size",
    "enable_expert_parallel", "mono_to_epoch_ns",
}  # fmt: skip
REQUEST_FIELDS = {
    "record", "request_id", "prompt_tokens", "output_tokens", "cached_tokens", "num_preemptions", "finish_status",
    "t_arrived_ns", "t_queued_ns", "t_first_scheduled_ns", "t_first_token_ns", "t_finished_ns", "running_at_queue",
    "waiting_at_queue", "kv_usage_at_queue", "priority", "block_hashes",
}  # fmt: skip
FIELDS = {
    "engine": ENGINE_FIELDS,
    "step": STEP_FIELDS,
    "request": REQUEST_FIELDS,
    "preemption": {"record", "request_id", "t_ns", "step_id"},
}


class Trace:
    def __init__(self, path):
        self.records = [json.loads(line) for line in path.read_text().splitlines()]
        self.steps = self.of("step")
        self.requests = self.of("request")

    def of(self, kind):
        return [record for record in self.records if record["record"] == kind]

    def scheduled_tokens(self):
        total = Counter()
        for step in self.steps:
            total.update(dict(zip(step["request_ids"], step["num_new_tokens"], strict=True)))
        return total


@pytest.fixture(params=["dense", "moe"])
def trace(request, engine_folder):
    return Trace(engine_folder / f"{request.param}.jsonl")


@pytest.fixture(params=["dense", "moe", "asynchronous"])
def any_trace(request, engine_folder):
    return Trace(engine_folder / f"{request.param}.jsonl")


def test_records_have_exactly_the_documented_fields(any_trace):
    assert any_trace.records[0]["record"] == "engine"
    for record in any_trace.records:
        assert set(record) == FIELDS[record["record"]]


def test_step_ids_are_contiguous_from_zero(any_trace):
    assert [step["step_id"] for step in any_trace.steps] == list(range(len(any_trace.steps)))


def test_tokens_are_conserved_for_each_request_never_preempted(any_trace):
    scheduled = any_trace.scheduled_tokens()
    kept = [request for request in any_trace.requests if not request["num_preemptions"]]
    assert len(kept) >= 3
    for request in kept:
        needed = request["prompt_tokens"] + request["output_tokens"] - 1
        assert scheduled[request["request_id"]] + request["cached_tokens"] == needed


def test_each_prompt_and_output_has_the_length_that_was_asked_for(trace):
    lengths = Counter((request["prompt_tokens"], request["output_tokens"]) for request in trace.requests)
    assert lengths == {(300, 12): 2, (64, 96): 8, (150, 20): 3}
    assert {request["finish_status"] for request in trace.requests} == {"length"}


def test_a_prompt_above_the_batch_budget_is_computed_in_chunks(trace):
    chunks = [(step["num_computed_tokens"], step["num_new_tokens"]) for step in trace.steps[:4]]
    assert chunks == [([0], [128]), ([128], [128]), ([256], [44]), ([300], [1])]
    assert max(sum(step["num_new_tokens"]) for step in trace.steps) <= trace.records[0]["max_num_batched_tokens"]


def test_the_same_prompt_again_starts_after_its_cached_blocks(trace):
    second = trace.requests[1]
    assert second["cached_tokens"] == 288
    (first_step,) = [s for s in trace.steps if s["t_schedule_start_ns"] == second["t_first_scheduled_ns"]]
    assert (first_step["num_computed_tokens"], first_step["num_new_tokens"]) == ([288], [12])


def test_running_out_of_blocks_shows_as_preemptions(trace):
    preemptions = trace.of("preemption")
    by_request = Counter(record["request_id"] for record in preemptions)
    assert preemptions
    assert by_request == {r["request_id"]: r["num_preemptions"] for r in trace.requests if r["num_preemptions"]}
    by_step = Counter(record["step_id"] for record in preemptions)
    assert by_step == {step["step_id"]: step["num_preempted"] for step in trace.steps if step["num_preempted"]}


def test_a_preempted_request_computes_its_tokens_again(trace):
    scheduled = trace.scheduled_tokens()
    for request in trace.requests:
        if request["num_preemptions"]:
            needed = request["prompt_tokens"] + request["output_tokens"] - 1
            assert scheduled[request["request_id"]] + request["cached_tokens"] > needed


def test_a_requests_times_are_in_order(any_trace):
    for request in any_trace.requests:
        names = ["t_arrived_ns", "t_queued_ns", "t_first_scheduled_ns", "t_first_token_ns", "t_finished_ns"]
        times = [request[name] for name in names]
        assert times == sorted(times)


def test_a_steps_times_are_in_order_and_outputs_come_one_after_the_other(any_trace):
    outputs = [step["t_output_ns"] for step in any_trace.steps]
    assert outputs == sorted(outputs)
    for step in any_trace.steps:
        assert step["t_schedule_start_ns"] <= step["t_schedule_end_ns"] <= step["t_output_ns"]


def test_every_request_that_ended_is_counted_by_a_step(any_trace):
    assert sum(step["num_finished"] for step in any_trace.steps) == len(any_trace.requests)


def test_kv_usage_agrees_with_the_block_counts(trace):
    assert trace.steps[0]["kv_blocks_total"] == trace.records[0]["num_gpu_blocks"] - 1
    for step in trace.steps:
        used = step["kv_blocks_total"] - step["kv_blocks_free"]
        assert step["kv_usage_ratio"] == pytest.approx(used / step["kv_blocks_total"])
    assert max(step["kv_usage_ratio"] for step in trace.steps) > 0.9


def test_a_step_cannot_cost_its_one_threaded_worker_more_cpu_than_wall_time(trace):
    # Clock reads of another process lag by a scheduler tick at most; one compute thread and idle helpers.
    previous_ns = 0
    for step in trace.steps:
        wall_ns = step["t_output_ns"] - max(step["t_schedule_start_ns"], previous_ns)
        previous_ns = step["t_output_ns"]
        assert 0 < step["step_cpu_time_ns"] <= 1.1 * wall_ns + 4_000_000


def test_the_workers_cpu_time_is_most_of_the_engines_busy_time(trace):
    cpu_ns = sum(step["step_cpu_time_ns"] for step in trace.steps)
    assert cpu_ns > 0.2 * sum(step["t_output_ns"] - step["t_schedule_start_ns"] for step in trace.steps)


def test_the_asynchronous_scheduler_is_used_as_resolved_and_runs_two_batches_ahead(engine_folder):
    trace = Trace(engine_folder / "asynchronous.jsonl")
    engine = trace.records[0]
    assert (engine["scheduler"], engine["async_scheduling"], engine["batch_queue_size"]) == ("AsyncScheduler", True, 2)
    overlapping = [
        later["t_schedule_start_ns"] < earlier["t_output_ns"]
        for earlier, later in zip(trace.steps, trace.steps[1:], strict=False)
    ]
    assert sum(overlapping) >= len(overlapping) - 1


def test_a_synchronous_engine_says_so(trace):
    engine = trace.records[0]
    assert (engine["scheduler"], engine["async_scheduling"], engine["batch_queue_size"]) == ("Scheduler", False, 1)
    assert engine["vllm_version"].startswith("0.32.")
    assert len(engine["worker_pids"]) == 1


def test_sigkill_of_the_engine_core_loses_at_most_the_last_line(engine_folder):
    lines = (engine_folder / "killed.jsonl").read_text().split("\n")
    records = [json.loads(line) for line in lines[:-1]]
    step_ids = [record["step_id"] for record in records if record["record"] == "step"]
    assert len(step_ids) > 20
    assert step_ids == list(range(len(step_ids)))


def test_hooks_that_explode_neither_stop_the_engine_nor_go_unreported(engine_folder):
    assert (engine_folder / "exploding.outcome").read_text() == "30 30 30 30"
    trace = Trace(engine_folder / "exploding.jsonl")
    assert trace.of("dropped") == [{"record": "dropped", "count": 10}]
    assert trace.steps == []


def test_without_a_trace_path_the_engine_answers_and_says_so_once(engine_folder):
    assert (engine_folder / "untraced.outcome").read_text() == "3"
    assert not (engine_folder / "untraced.jsonl").exists()
    assert (engine_folder / "driver.log").read_text().count("srfa tracing is off: SRFA_TRACE_PATH names no file") == 1
