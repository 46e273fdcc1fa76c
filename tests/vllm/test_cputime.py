import os
import subprocess
import sys
import time

import pytest

from srfa.vllm.cputime import (
    CpuClocks,
    CpuReading,
    child_pids,
    clocks_of_this_process,
    cpu_time_between,
    process_cpu_clock_id,
    process_cpu_times_ns,
)

NOBODY = 2**27  # above the largest process id Linux gives out
SPIN = "import sys\nprint(flush=True)\nwhile True: pass"
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
input()
child.communicate(b"\\n")
"""


def test_our_own_clock_read_from_outside_equals_the_process_time():
    before = time.process_time_ns()
    from_outside = time.clock_gettime_ns(process_cpu_clock_id(os.getpid()))
    assert before <= from_outside <= time.process_time_ns()


def test_the_clock_of_a_busy_process_advances_and_that_of_a_waiting_one_does_not():
    with (
        subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as busy,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as waiting,
    ):
        busy.stdout.readline()
        pids = [busy.pid, waiting.pid]
        first = process_cpu_times_ns(pids)
        deadline = time.monotonic() + 30.0
        while process_cpu_times_ns([busy.pid])[0] < first[0] + 20_000_000 and time.monotonic() < deadline:
            pass
        second = process_cpu_times_ns(pids)
        busy.kill()
        waiting.stdin.close()
    assert second[0] - first[0] >= 20_000_000
    assert second[1] - first[1] < 20_000_000


def test_the_clock_of_a_process_that_is_gone_is_an_error():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(OSError, match=r"Invalid argument|No such process"):
        process_cpu_times_ns([process.pid])


def test_children_are_found_and_grandchildren_are_not():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        grandchild = int(parent.stdout.readline())
        assert parent.pid in child_pids(os.getpid())
        assert grandchild not in child_pids(os.getpid())
        assert child_pids(parent.pid) == [grandchild]
        parent.communicate(b"\n")


def test_helpers_of_multiprocessing_and_unreadable_entries_are_left_out(tmp_path):
    plant(tmp_path, 12, parent=7, name=b"VLLM::Worker (0) x", command=b"VLLM::Worker\0")
    plant(tmp_path, 13, parent=7, name=b"python", command=b"python\0-c\0from multiprocessing.resource_tracker import\0")
    plant(tmp_path, 14, parent=8, name=b"\xff\xfe", command=b"other\0")
    (tmp_path / "15").mkdir()
    (tmp_path / "meminfo").touch()
    assert child_pids(7, tmp_path) == [12]


def test_cpu_time_is_unknown_where_workers_cannot_be_read_and_the_process_where_there_are_none():
    begin, end = CpuReading(10, None), CpuReading(40, (7,))
    assert cpu_time_between(begin, end, in_workers=True).step_ns is None
    assert cpu_time_between(begin, end, in_workers=False).step_ns == 30


def test_the_step_costs_what_its_busiest_worker_spent_and_not_what_the_engine_core_spun():
    spent = cpu_time_between(CpuReading(0, (100, 100)), CpuReading(5000, (300, 340)), in_workers=True)
    assert (spent.step_ns, spent.workers_ns, spent.engine_ns) == (240, (200, 240), 5000)


def test_workers_that_are_gone_are_looked_for_again_but_not_for_ever():
    searches = []
    clocks = CpuClocks(in_workers=True, find_workers=lambda: searches.append(1) or [NOBODY])
    for _ in range(10):
        assert clocks.read().workers_ns is None
    assert len(searches) == 3


@pytest.mark.parametrize("backend", ["uni", "ray"])
def test_only_the_mp_executor_has_workers_among_our_children(backend):
    assert clocks_of_this_process(backend).worker_pids == []


def plant(proc, pid, *, parent, name, command):
    entry = proc / str(pid)
    entry.mkdir()
    (entry / "stat").write_bytes(b"%d (%s) S %d 1 1 0\n" % (pid, name, parent))
    (entry / "cmdline").write_bytes(command)
