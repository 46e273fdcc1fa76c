import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from srfa.vllm.lifeline import expected_parent_pid

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")

CHILD = "from srfa.vllm.lifeline import register; register(); print('armed', flush=True); import time; time.sleep(60)"


def environment(**more):
    return {**os.environ, "SRFA_LIFELINE": "1", "PYTHONPATH": str(Path(__file__).parents[2]), **more}


def start(script, *arguments, **more):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env=environment(**more),
        stdout=subprocess.PIPE,
        text=True,
    )


def alive(pid):
    """Whether the process runs; a zombie waits for its parent and runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone_within(pid, seconds):
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def owner_of(child):
    """Start a process that starts ``child``; return it and the child's pid once the child is armed."""
    script = """
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        print(child.pid, flush=True)
        child.wait()
    """
    owner = start(script, child)
    return owner, int(owner.stdout.readline())


def test_the_child_dies_with_its_killed_owner():
    owner, child = owner_of(CHILD)
    with owner:
        owner.kill()
        assert gone_within(child, 5.0)


def test_without_the_variable_the_child_outlives_its_owner():
    owner, child = owner_of(f"import os; os.environ.pop('SRFA_LIFELINE'); {CHILD}")
    with owner:
        owner.kill()
        owner.wait()
        assert not gone_within(child, 0.3)
        os.kill(child, signal.SIGKILL)


def test_a_child_whose_owner_is_gone_before_it_asks_exits_at_once():
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    with start(CHILD, SRFA_LIFELINE_PARENT_PID=str(dead.pid)) as child:
        assert child.wait(timeout=30) == -signal.SIGKILL
        assert "armed" not in child.stdout.read()


def test_a_named_owner_that_lives_is_accepted():
    with start(CHILD, SRFA_LIFELINE_PARENT_PID=str(os.getpid())) as child:
        assert child.stdout.readline() == "armed\n"
        child.kill()


def test_a_program_that_an_armed_process_starts_has_that_process_for_its_parent():
    script = """
        import subprocess, sys
        from srfa.vllm.lifeline import register
        register()
        print(subprocess.run([sys.executable, "-c", "from srfa.vllm.lifeline import register; register()"]).returncode)
    """
    with start(script, SRFA_LIFELINE_PARENT_PID=str(os.getpid())) as owner:
        assert owner.stdout.readline() == "0\n"


def test_a_forked_worker_is_armed_though_plugins_are_loaded_once_only():
    script = """
        import multiprocessing, time
        from srfa.vllm.lifeline import register
        register()
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        print(worker.pid, flush=True)
        worker.join()
    """
    with start(script) as owner:
        worker = int(owner.stdout.readline())
        assert alive(worker)
        owner.kill()
        assert gone_within(worker, 5.0)


def test_a_worker_forked_by_a_short_lived_thread_is_not_killed_at_the_threads_end():
    script = """
        import multiprocessing, threading, time
        from srfa.vllm.lifeline import register
        register()
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        thread = threading.Thread(target=worker.start)
        thread.start(); thread.join()
        worker.join(0.3)
        print(worker.is_alive(), flush=True)
        worker.kill(); worker.join()
    """
    with start(script) as owner:
        assert owner.stdout.readline() == "True\n"


def test_the_expected_parent_is_the_named_owner_or_else_the_parent():
    assert expected_parent_pid({"SRFA_LIFELINE_PARENT_PID": "4711"}) == 4711
    assert expected_parent_pid({}) == os.getppid()


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_real_engine_works_on_under_the_lifeline_and_dies_with_its_owner(start_driver, tmp_path):
    # vLLM's own start method for this platform (spawn): engine core and worker load the plugin themselves.
    owner = start_driver(tmp_path, "lifeline", SRFA_LIFELINE="1")
    deadline = time.monotonic() + 570.0
    while not (tmp_path / "lifeline.ready").exists():
        assert owner.poll() is None, (tmp_path / "driver.log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    with (tmp_path / "lifeline.jsonl").open() as trace:
        engine = json.loads(trace.readline())
    processes = [engine["pid"], *engine["worker_pids"]]
    assert len(processes) == 2
    assert all(alive(pid) for pid in processes)
    owner.kill()
    owner.wait()
    assert all(gone_within(pid, 5.0) for pid in processes)
