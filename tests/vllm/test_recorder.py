import json
from types import SimpleNamespace

import pytest

from srfa.vllm.cputime import CpuReading
from srfa.vllm.recorder import MAX_HOOK_FAILURES, MAX_PENDING_STEPS, Recorder
from srfa.vllm.records import RecordWriter


class Pool:
    num_gpu_blocks = 25

    def get_num_free_blocks(self):
        return 18


class FakeScheduler:
    """As much of vLLM's scheduler as the recorder reads."""

    def __init__(self):
        self.requests = {}
        self.kv_cache_manager = SimpleNamespace(block_pool=Pool())

    def get_request_counts(self):
        return 3, 2

    def get_kv_cache_usage(self):
        return 0.25


class ScriptedClocks:
    """Clocks that read what a test wrote down."""

    in_workers = True

    def __init__(self, *readings):
        self._readings = list(readings)

    def read(self):
        return self._readings.pop(0) if self._readings else CpuReading(0, None)


def request(request_id, prompt_tokens=10, **state):
    fields = {
        "num_computed_tokens": 0,
        "num_output_tokens": 0,
        "num_preemptions": 0,
        "arrival_time": 1000.5,
        "priority": 0,
        "block_hashes": [],
        "prefill_stats": SimpleNamespace(num_cached_tokens=0),
        "get_finished_reason": lambda: "length",
    } | state
    return SimpleNamespace(request_id=request_id, num_prompt_tokens=prompt_tokens, **fields)


def batch(new=(), **num_scheduled_tokens):
    return SimpleNamespace(
        num_scheduled_tokens=num_scheduled_tokens,
        total_num_scheduled_tokens=sum(num_scheduled_tokens.values()),
        scheduled_new_reqs=[SimpleNamespace(req_id=name) for name in new],
    )


class Bench:
    """A recorder on a file, a fake scheduler, and the hooks in the order vLLM calls them."""

    def __init__(self, path, clocks=None, **recording):
        self.path = path
        self.scheduler = FakeScheduler()
        writer = RecordWriter.open(path)
        self.recorder = Recorder(writer, clocks or ScriptedClocks(), mono_to_epoch_ns=999_000_000_000, **recording)

    def add(self, item):
        self.recorder.guarded(self.recorder.request_added, self.scheduler, item)
        self.scheduler.requests[item.request_id] = item
        return item

    def schedule(self, output):
        self.recorder.guarded(self.recorder.schedule_begins)
        self.recorder.guarded(self.recorder.composed, self.scheduler, output)
        self.recorder.guarded(self.recorder.schedule_ended, output)
        return output

    def finish(self, output):
        self.recorder.guarded(self.recorder.output_processed, output)

    def free(self, item):
        self.recorder.guarded(self.recorder.request_freed, item)

    def records(self, kind=None):
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [record for record in found if kind in (None, record["record"])]


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path / "trace.jsonl")
    yield bench
    bench.recorder.close()


def test_a_step_holds_the_composition_with_counters_as_they_stood_before_it(bench):
    first, second = bench.add(request("a", 10)), bench.add(request("b", 64))
    second.num_computed_tokens = 32
    output = bench.schedule(batch(new=["a", "b"], a=10, b=16))
    first.num_computed_tokens, second.num_computed_tokens = 10, 48
    bench.finish(output)
    (step,) = bench.records("step")
    assert step["request_ids"] == ["a", "b"]
    assert step["num_new_tokens"] == [10, 16]
    assert step["num_computed_tokens"] == [0, 32]
    assert step["num_prompt_tokens"] == [10, 64]


def test_kv_blocks_leave_out_the_null_block_and_agree_with_the_ratio(bench):
    bench.add(request("a"))
    bench.finish(bench.schedule(batch(a=1)))
    (step,) = bench.records("step")
    assert (step["kv_blocks_total"], step["kv_blocks_free"]) == (24, 18)
    assert step["kv_usage_ratio"] == 1 - step["kv_blocks_free"] / step["kv_blocks_total"]


def test_empty_schedules_leave_no_step_and_no_gap(bench):
    bench.add(request("a"))
    for tokens in ({"a": 1}, {}, {}, {"a": 1}, {}, {"a": 1}):
        bench.finish(bench.schedule(batch(**tokens)))
    assert [step["step_id"] for step in bench.records("step")] == [0, 1, 2]


def test_with_two_steps_in_flight_each_output_closes_its_own_step(bench):
    bench.add(request("a", 10))
    first = bench.schedule(batch(new=["a"], a=10))
    second = bench.schedule(batch(a=1))
    bench.finish(first)
    third = bench.schedule(batch(a=1))
    bench.finish(second)
    bench.finish(third)
    steps = bench.records("step")
    assert [step["step_id"] for step in steps] == [0, 1, 2]
    assert [step["num_new_tokens"] for step in steps] == [[10], [1], [1]]
    assert steps[1]["t_schedule_start_ns"] < steps[0]["t_output_ns"] < steps[2]["t_schedule_start_ns"]
    assert all(s["t_schedule_start_ns"] <= s["t_schedule_end_ns"] <= s["t_output_ns"] for s in steps)


def test_an_output_that_never_comes_leaves_a_gap_and_is_counted_once_given_up(bench):
    bench.add(request("a"))
    outputs = [bench.schedule(batch(a=1)) for _ in range(MAX_PENDING_STEPS + 1)]
    bench.finish(outputs[0])
    bench.finish(outputs[1])
    assert bench.records("dropped") == [{"record": "dropped", "count": 1}]
    assert [step["step_id"] for step in bench.records("step")] == [1]


def test_cpu_time_counts_from_the_later_of_schedule_and_previous_output(tmp_path):
    readings = [
        CpuReading(0, (0, 0)),  # at the start
        CpuReading(10, (100, 100)),  # step 0 is scheduled
        CpuReading(11, (120, 110)),  # step 1 is scheduled while step 0 runs
        CpuReading(15, (300, 340)),  # output of step 0
        CpuReading(20, (900, 800)),  # output of step 1
    ]
    bench = Bench(tmp_path / "t.jsonl", ScriptedClocks(*readings))
    bench.add(request("a"))
    outputs = [bench.schedule(batch(a=1)), bench.schedule(batch(a=1))]
    for output in outputs:
        bench.finish(output)
    steps = bench.records("step")
    assert [step["worker_cpu_time_ns"] for step in steps] == [[200, 240], [600, 460]]
    assert [step["step_cpu_time_ns"] for step in steps] == [240, 600]
    assert [step["engine_cpu_time_ns"] for step in steps] == [5, 5]


def test_a_request_record_follows_its_journey(bench):
    item = bench.add(request("a", 64, prefill_stats=SimpleNamespace(num_cached_tokens=32)))
    prefill = bench.schedule(batch(new=["a"], a=16))
    bench.finish(prefill)
    item.prefill_stats = None
    last_chunk = bench.schedule(batch(a=16))
    item.num_output_tokens = 1
    bench.finish(last_chunk)
    item.num_output_tokens = 5
    bench.free(item)
    (record,) = bench.records("request")
    steps = bench.records("step")
    assert record["t_arrived_ns"] == 1_500_000_000
    assert record["t_first_scheduled_ns"] == steps[0]["t_schedule_start_ns"]
    assert record["t_first_token_ns"] == steps[1]["t_output_ns"]
    assert record["t_queued_ns"] <= record["t_first_scheduled_ns"] <= record["t_first_token_ns"]
    assert record["t_first_token_ns"] <= record["t_finished_ns"]
    assert (record["prompt_tokens"], record["output_tokens"], record["cached_tokens"]) == (64, 5, 32)
    assert (record["running_at_queue"], record["waiting_at_queue"], record["kv_usage_at_queue"]) == (3, 2, 0.25)
    assert record["finish_status"] == "length"


def test_a_request_that_ends_with_its_first_token_has_both_times(bench):
    item = bench.add(request("a"))
    output = bench.schedule(batch(new=["a"], a=10))
    item.num_output_tokens = 1
    bench.free(item)
    bench.finish(output)
    (record,) = bench.records("request")
    assert record["t_first_token_ns"] == record["t_finished_ns"]
    assert bench.records("step")[0]["num_finished"] == 1


def test_a_request_aborted_while_waiting_was_never_scheduled(bench):
    bench.free(bench.add(request("a", get_finished_reason=lambda: "abort")))
    (record,) = bench.records("request")
    assert record["t_first_scheduled_ns"] is None
    assert record["t_first_token_ns"] is None
    assert record["finish_status"] == "abort"


def test_a_request_says_its_priority_and_nothing_of_blocks_without_a_prefix_cache(bench):
    bench.free(bench.add(request("a", priority=-3, block_hashes=[bytes(range(32))])))
    (record,) = bench.records("request")
    assert (record["priority"], record["block_hashes"]) == (-3, None)


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_request_names_its_full_blocks_by_63_bits_of_their_hashes(tmp_path, pieces):
    bench = Bench(tmp_path / "trace.jsonl", hashes_per_block=pieces)
    hashes = [bytes([255, 0, 0, 0, 0, 0, 0, index]) + b"more" for index in range(5)]
    bench.free(bench.add(request("a", block_hashes=hashes)))
    (record,) = bench.records("request")
    blocks = {1: [0, 0, 1, 1, 2], 2: [0, 1]}[pieces]
    assert record["block_hashes"] == [0x7F80_0000_0000_0000 + block for block in blocks]
    bench.recorder.close()


def test_a_further_piece_of_a_known_request_is_not_an_arrival(bench):
    item = bench.add(request("a"))
    bench.scheduler.get_request_counts = lambda: (99, 99)
    bench.add(item)
    bench.free(item)
    assert bench.records("request")[0]["running_at_queue"] == 3


def test_a_preemption_names_the_step_that_was_being_scheduled(bench):
    item = bench.add(request("a"))
    bench.finish(bench.schedule(batch(new=["a"], a=10)))
    bench.recorder.guarded(bench.recorder.schedule_begins)
    bench.recorder.guarded(bench.recorder.request_preempted, item)
    output = batch(a=1)
    bench.recorder.guarded(bench.recorder.composed, bench.scheduler, output)
    bench.finish(output)
    bench.finish(bench.schedule(batch(a=1)))
    (preemption,) = bench.records("preemption")
    assert preemption["request_id"] == "a"
    assert preemption["step_id"] == 1
    assert [step["num_preempted"] for step in bench.records("step")] == [0, 1, 0]


def test_recorder_time_adds_up_to_what_the_hooks_took(bench):
    bench.add(request("a"))
    for _ in range(20):
        bench.finish(bench.schedule(batch(a=1)))
    steps = bench.records("step")
    span_ns = steps[-1]["t_output_ns"] - steps[0]["t_schedule_start_ns"]
    assert 0 < sum(step["recorder_time_ns"] for step in steps[1:]) <= span_ns


def test_a_hook_that_fails_raises_nothing_and_counts_as_dropped(bench):
    bench.schedule(batch(unknown=1))
    bench.add(request("a"))
    bench.finish(bench.schedule(batch(a=1)))
    assert bench.records("dropped") == [{"record": "dropped", "count": 1}]
    assert bench.recorder.enabled


def test_a_recorder_that_keeps_failing_turns_itself_off_and_says_so(bench):
    for _ in range(MAX_HOOK_FAILURES + 5):
        bench.schedule(batch(unknown=1))
    assert not bench.recorder.enabled
    bench.add(request("a"))
    bench.finish(bench.schedule(batch(a=1)))
    assert bench.records() == [{"record": "dropped", "count": MAX_HOOK_FAILURES}]


def test_steps_that_cannot_be_written_are_reported_when_the_disk_has_room_again(bench, monkeypatch):
    from srfa.vllm import records

    bench.add(request("a"))
    full = True
    real_write = records.os.write

    def write(descriptor, data):
        if full:
            raise OSError(28, "No space left on device")
        return real_write(descriptor, data)

    monkeypatch.setattr(records.os, "write", write)
    for index in range(6):
        full = index < 4
        bench.finish(bench.schedule(batch(a=1)))
    assert [record.get("count", record.get("step_id")) for record in bench.records()] == [4, 4, 5]
