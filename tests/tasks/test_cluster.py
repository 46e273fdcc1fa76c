"""Engine groups on a local Ray, with a small real server in place of vLLM."""

import os
import threading
import time

import psutil
import pytest

from srfa.specs import BenchmarkJob, EngineGroup
from tasks.cluster import ClusterSettings, bundle, connected, first_core, resource_name, run_group_on_ray
from tests.processes import wait_for

FAST = ClusterSettings(placement_timeout_s=1.0, group_timeout_s=60.0)


def test_profiles_of_a_campaign_take_different_cores_in_sorted_order(cpu):
    other = cpu.model_copy(update={"name": "cpu-another"})
    gpu = cpu.model_copy(update={"name": "a100", "datasheet": cpu.datasheet.model_copy(update={"kind": "cuda"})})
    assert [first_core(spec, [cpu, gpu, other]) for spec in (other, cpu, gpu)] == [0, 1, 0]


def test_a_server_s_gpus_are_one_bundle_of_its_type(cpu, job):
    gpu = cpu.model_copy(update={"name": "a100", "datasheet": cpu.datasheet.model_copy(update={"kind": "cuda"})})
    engine = job.engine.model_copy(update={"tensor_parallel_size": 4, "data_parallel_size": 2})
    assert bundle(gpu, job.model_copy(update={"engine": engine})) == {"GPU": 8.0, "CPU": 8.0, "gpu_type:a100": 8.0}
    assert bundle(cpu, job) == {"CPU": 2.0, "gpu_type:cpu-test": 1.0}, "one core computes, one is for its clients"


@pytest.fixture(scope="module")
def local_ray(cpu):
    other = cpu.model_copy(update={"name": "cpu-other"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_RUN", str(os.getpid()))
        with connected(ClusterSettings(num_cpus=4), [cpu, other]):
            yield


def with_faults(request, **faults):
    """The request with faults planted in its commands: Ray's processes have the environment of Ray's start."""
    commands = {name: getattr(request.settings, name) for name in ("serve_command", "load_command", "probe_command")}
    for name, fault in faults.items():
        script, verb = commands[name]
        commands[name] = (script, f"--faults={fault}", verb)
    settings = request.settings.model_copy(update=commands)
    return request.model_copy(update={"settings": settings})


def engine_processes():
    """The processes below any Ray worker that belong to a group: guards, server, client."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if ("fake_engine.py" in line or "supervisor.py" in line) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return [process for process in found if f"PYTEST_RUN={os.getpid()}" in environment_of(process)]


def environment_of(process):
    try:
        return [f"{name}={value}" for name, value in process.environ().items()]
    except psutil.Error:
        return []


def in_thread(function):
    """Run in a thread as a Prefect task would; return where its answer will be."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function()), daemon=True)
    thread.start()
    return thread, answers


def worker_of(processes):
    """The Ray worker above the engine's processes."""
    ancestors = [parent for process in processes for parent in process.parents()]
    return next(parent for parent in ancestors if "ray::" in " ".join(parent.cmdline()))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestOnRay:
    def test_a_group_runs_in_a_process_of_its_own_and_leaves_none(self, group, request_):
        outcomes = run_group_on_ray(group, request_, FAST)
        assert [outcome.status for outcome in outcomes] == ["measured"] * 3, outcomes
        wait_for(lambda: not engine_processes())

    def test_the_engine_runs_with_the_priority_of_its_caller(self, group, request_):
        hanging = with_faults(request_, load_command="load_hangs")
        brief = hanging.settings.model_copy(update={"load_timeout_s": 1.0})
        request = hanging.model_copy(update={"settings": brief})
        thread, _ = in_thread(lambda: run_group_on_ray(group, request, FAST))
        wait_for(lambda: any("serve" in process.info["cmdline"] for process in engine_processes()))
        assert {process.nice() for process in engine_processes()} == {psutil.Process().nice()}
        thread.join(60)

    def test_a_group_no_node_can_hold_is_unschedulable_in_bounded_time(self, group, request_):
        gpu = request_.gpu.model_copy(update={"name": "h100-sxm-80gb"})
        begin = time.monotonic()
        outcomes = run_group_on_ray(group, request_.model_copy(update={"gpu": gpu}), FAST)
        assert time.monotonic() - begin < 15
        assert {outcome.reason for outcome in outcomes} == {"unschedulable"}
        assert "gpu_type:h100-sxm-80gb" in outcomes[0].message
        assert "the cluster offers gpu_type:cpu-other, gpu_type:cpu-test" in outcomes[0].message

    def test_a_rehearsed_group_needs_no_node_with_its_gpu(self, rehearsed_group, rehearsed_request):
        assert rehearsed_request.gpu.name == "h100-sxm-80gb"
        outcomes = run_group_on_ray(rehearsed_group, rehearsed_request, FAST)
        assert [outcome.status for outcome in outcomes] == ["measured"] * 3, outcomes

    def test_a_group_waits_for_a_busy_node_longer_than_for_a_missing_one(self, group, request_):
        slow = ClusterSettings(placement_timeout_s=0.0, group_timeout_s=60.0)
        again = request_.model_copy(update={"run_id": "r2"})
        first, answers = in_thread(lambda: run_group_on_ray(group, request_, slow))
        second, others = in_thread(lambda: run_group_on_ray(group, again, slow))
        first.join(60)
        second.join(60)
        assert [outcome.reason for outcome in (*answers[0], *others[0])] == [None] * 6

    def test_two_profiles_run_at_the_same_time(self, job, request_):
        def hanging(name):
            gpu = request_.gpu.model_copy(update={"name": name})
            mine = BenchmarkJob.model_validate(job.model_dump() | {"gpu": name})
            request = with_faults(request_, load_command="load_hangs").model_copy(update={"gpu": gpu})
            group = EngineGroup(group_id=mine.group_id, jobs=(mine,))
            settings = request.settings.model_copy(update={"load_timeout_s": 8})
            return lambda: run_group_on_ray(group, request.model_copy(update={"settings": settings}), FAST)

        threads = [in_thread(hanging(name))[0] for name in ("cpu-test", "cpu-other")]
        wait_for(lambda: sum("serve" in process.info["cmdline"][2:4] for process in engine_processes()) == 2)
        for thread in threads:
            thread.join(60)

    def test_kill_9_of_the_ray_worker_leaves_no_process_and_tells_worker_lost(self, group, request_):
        request = with_faults(request_, serve_command="tree,deaf", load_command="load_hangs")
        thread, answers = in_thread(lambda: run_group_on_ray(group, request, FAST))
        wait_for(lambda: sum("load" in process.info["cmdline"][-1:] for process in engine_processes()) >= 1)
        wait_for(lambda: any("serve" in process.info["cmdline"] for process in engine_processes()))
        processes = engine_processes()
        descendants = worker_of(processes).children(recursive=True)
        worker_of(processes).kill()
        thread.join(60)
        assert {outcome.reason for outcome in answers[0]} == {"worker_lost"}
        wait_for(lambda: not any(process.is_running() for process in descendants))
        assert not engine_processes()

    def test_a_group_that_takes_too_long_is_ended_with_its_engine(self, group, request_):
        request = with_faults(request_, serve_command="tree", load_command="load_hangs")
        short = FAST.model_copy(update={"group_timeout_s": 5.0})
        outcomes = run_group_on_ray(group, request, short)
        assert {outcome.reason for outcome in outcomes} == {"timeout"}
        wait_for(lambda: not engine_processes())

    def test_the_resource_is_free_again_after_a_failure(self, group, request_):
        import ray

        lost = with_faults(request_, load_command="load_hangs")
        run_group_on_ray(group, lost, FAST.model_copy(update={"group_timeout_s": 2.0}))
        wait_for(lambda: ray.available_resources().get(resource_name("cpu-test"), 0) == 1)
