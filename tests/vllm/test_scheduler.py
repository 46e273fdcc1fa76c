import json
import logging
from types import SimpleNamespace

import pytest

from srfa.vllm import scheduler as tracing
from srfa.vllm.records import RecordWriter, TracePathError
from srfa.vllm.scheduler import (
    HOOKS,
    TESTED_VERSION,
    TracingScheduler,
    UntestedVllmError,
    check_hooks,
    hashes_per_block,
    traced,
)


def config(**scheduling):
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(
            async_scheduling=False,
            max_num_seqs=8,
            max_num_batched_tokens=128,
            enable_chunked_prefill=True,
            policy="priority",
            long_prefill_token_threshold=64,
            watermark=0.1,
            scheduler_reserve_full_isl=False,
            **scheduling,
        ),
        cache_config=SimpleNamespace(block_size=32, num_gpu_blocks=24, enable_prefix_caching=True),
        parallel_config=SimpleNamespace(
            data_parallel_index=0,
            data_parallel_size=1,
            tensor_parallel_size=2,
            enable_expert_parallel=False,
            distributed_executor_backend="uni",
        ),
        model_config=SimpleNamespace(max_model_len=512),
        max_concurrent_batches=1,
    )


class FakeBase:
    """A scheduler with vLLM's hook signatures that notes what it was called with."""

    def __init__(self, vllm_config):
        self.vllm_config = vllm_config
        self.calls = []
        pool = SimpleNamespace(num_gpu_blocks=24, get_num_free_blocks=lambda: 23)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)
        self.requests = {}
        self.hash_block_size = 16

    def schedule(self, throttle_prefills=False):
        self.calls.append(("schedule", throttle_prefills))
        output = SimpleNamespace(total_num_scheduled_tokens=0, num_scheduled_tokens={})
        self._update_after_schedule(output)
        return output

    def _update_after_schedule(self, scheduler_output):
        self.calls.append(("_update_after_schedule", scheduler_output))

    def update_from_output(self, scheduler_output, model_runner_output):
        self.calls.append(("update_from_output", scheduler_output, model_runner_output))
        return {0: "outputs"}

    def add_request(self, request):
        self.calls.append(("add_request", request))

    def _preempt_request(self, request, timestamp, drop_stale_output=False):
        self.calls.append(("_preempt_request", request, timestamp, drop_stale_output))

    def _free_request(self, request, delay_free_blocks=False):
        self.calls.append(("_free_request", request, delay_free_blocks))
        return "kv", "ec"

    def shutdown(self):
        self.calls.append(("shutdown",))

    def get_request_counts(self):
        return 0, 0

    def get_kv_cache_usage(self):
        return 0.0


@pytest.fixture
def fake_vllm(monkeypatch):
    """The factory on the fake scheduler: no vLLM is imported."""
    monkeypatch.setattr(tracing, "scheduler_class", lambda async_scheduling: FakeBase)
    monkeypatch.setattr(tracing, "installed_version", lambda: "0.32.0+cpu")


def test_the_tested_release_and_its_patches_are_accepted():
    for version in ("0.32.0", "0.32.0+cpu", "0.32.3"):
        check_hooks(FakeBase, version)


@pytest.mark.parametrize("version", ["0.33.0", "0.31.2", "0.320.0", "1.0.0", "dev"])
def test_another_version_is_refused_with_both_versions_and_the_remedy(version):
    with pytest.raises(
        UntestedVllmError, match=rf"tested with vLLM 0\.32\.0, this is {version}: .*Install vllm==0\.32"
    ):
        check_hooks(FakeBase, version)


@pytest.mark.parametrize("name", HOOKS)
def test_a_missing_hook_is_refused_by_name(name):
    without = type("Scheduler", (), {key: value for key, value in vars(FakeBase).items() if key != name})
    with pytest.raises(UntestedVllmError, match=rf"hook Scheduler\.{name} is missing"):
        check_hooks(without, TESTED_VERSION)


def test_a_hook_with_other_parameters_is_refused_with_both_signatures():
    class Scheduler(FakeBase):
        def update_from_output(self, model_runner_output, scheduler_output):
            """The same two parameters, swapped."""

    with pytest.raises(UntestedVllmError, match=r"update_from_output takes \('self', 'model_runner_output'.*expected"):
        check_hooks(Scheduler, TESTED_VERSION)


@pytest.fixture
def traced_scheduler(tmp_path):
    scheduler = traced(FakeBase)(config())
    scheduler.start_recording(RecordWriter.open(tmp_path / "trace.jsonl"))
    yield scheduler
    scheduler.shutdown()


@pytest.mark.usefixtures("fake_vllm")
def test_the_base_class_gets_every_call_as_it_came_and_its_answer_is_passed_on(traced_scheduler):
    output = traced_scheduler.schedule(True)
    assert traced_scheduler.update_from_output(output, "model output") == {0: "outputs"}
    traced_scheduler.add_request("request")
    traced_scheduler._preempt_request("request", 1.5, drop_stale_output=True)
    assert traced_scheduler._free_request("request", delay_free_blocks=True) == ("kv", "ec")
    assert traced_scheduler.calls == [
        ("schedule", True),
        ("_update_after_schedule", output),
        ("update_from_output", output, "model output"),
        ("add_request", "request"),
        ("_preempt_request", "request", 1.5, True),
        ("_free_request", "request", True),
    ]


@pytest.mark.usefixtures("fake_vllm")
def test_an_error_of_the_engine_itself_is_passed_on(traced_scheduler, monkeypatch):
    monkeypatch.setattr(FakeBase, "schedule", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        traced_scheduler.schedule()


@pytest.mark.usefixtures("fake_vllm")
def test_without_a_path_the_scheduler_is_the_engines_own_and_the_log_says_so_once(monkeypatch, caplog):
    monkeypatch.delenv("SRFA_TRACE_PATH", raising=False)
    with caplog.at_level(logging.WARNING, logger="vllm.srfa"):
        assert type(TracingScheduler(vllm_config=config())) is FakeBase
    assert [record.getMessage() for record in caplog.records] == ["srfa tracing is off: SRFA_TRACE_PATH names no file"]


@pytest.mark.usefixtures("fake_vllm")
def test_the_engine_record_comes_first_and_holds_the_resolved_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("SRFA_TRACE_PATH", str(tmp_path / "t.jsonl"))
    TracingScheduler(vllm_config=config()).shutdown()
    (record,) = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert record["record"] == "engine"
    assert record["scheduler"] == "FakeBase"
    assert (record["schema_version"], record["vllm_version"], record["worker_pids"]) == (1, "0.32.0+cpu", [])
    assert (record["block_size"], record["num_gpu_blocks"], record["tensor_parallel_size"]) == (32, 24, 2)
    assert (record["scheduling_policy"], record["long_prefill_token_threshold"]) == ("priority", 64)
    assert (record["watermark"], record["scheduler_reserve_full_isl"]) == (0.1, False)


@pytest.mark.parametrize(("caching", "hash_block_size", "expected"), [(True, 16, 2), (True, 32, 1), (False, 16, 0)])
def test_a_block_has_the_hash_of_its_last_piece_where_there_is_a_prefix_cache(caching, hash_block_size, expected):
    cache = SimpleNamespace(block_size=32, enable_prefix_caching=caching)
    scheduler = SimpleNamespace(vllm_config=SimpleNamespace(cache_config=cache), hash_block_size=hash_block_size)
    assert hashes_per_block(scheduler) == expected


@pytest.mark.usefixtures("fake_vllm")
def test_a_trace_path_that_cannot_be_written_stops_the_start(monkeypatch, tmp_path):
    monkeypatch.setenv("SRFA_TRACE_PATH", str(tmp_path / "missing" / "t.jsonl"))
    with pytest.raises(TracePathError):
        TracingScheduler(vllm_config=config())


@pytest.mark.usefixtures("fake_vllm")
def test_an_untested_version_stops_the_start_and_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setenv("SRFA_TRACE_PATH", str(tmp_path / "t.jsonl"))
    monkeypatch.setattr(tracing, "installed_version", lambda: "0.40.1")
    with pytest.raises(UntestedVllmError, match=r"0\.40\.1"):
        TracingScheduler(vllm_config=config())
    assert not (tmp_path / "t.jsonl").exists()
