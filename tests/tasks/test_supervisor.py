"""The process tree ends with its owner, however the owner ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.process import SupervisedProcess
from tests.processes import living, wait_for

PYTHON = Path(sys.executable)

TREE = """
import os, signal, subprocess, sys, time
if "deaf" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ.get("DEPTH", "0") < "2":
    child = {**os.environ, "DEPTH": str(int(os.environ.get("DEPTH", "0")) + 1)}
    subprocess.Popen([sys.executable, "-S", *sys.argv], env=child, start_new_session=True)
    if "orphan" in sys.argv and os.environ.get("DEPTH"): os._exit(0)
else:
    open(os.environ["READY"], "w").close()
time.sleep(120)
"""
"""Three processes, each in its own session; with ``orphan`` the one in the middle leaves its child behind."""


@pytest.fixture
def tree(tmp_path):
    script = tmp_path / "tree.py"
    script.write_text(TREE)
    return script


def start(tmp_path, *command, grace_s=5.0, talks=False, **environment):
    return SupervisedProcess(
        [sys.executable, "-S", *map(str, command)],
        interpreter=PYTHON,
        environment={**os.environ, "READY": str(tmp_path / "ready"), **environment},
        log=tmp_path / "log",
        grace_s=grace_s,
        talks=talks,
    )


def grown(tmp_path, process):
    wait_for((tmp_path / "ready").exists, 20)
    members = psutil.Process(process.pid).children(recursive=True)
    return [*members, psutil.Process(process.pid)]


def test_the_exit_status_of_the_command_is_forwarded(tmp_path):
    with start(tmp_path, "-c", "raise SystemExit(7)") as process:
        assert process.wait(20) == 7


def test_death_by_a_signal_is_told_as_128_plus_its_number(tmp_path):
    with start(tmp_path, "-c", "import os; os.kill(os.getpid(), 9)") as process:
        assert process.wait(20) == 128 + signal.SIGKILL


def test_a_command_that_cannot_be_started_is_127_and_the_log_says_so(tmp_path):
    log = tmp_path / "log"
    with SupervisedProcess(["/no/such/program"], interpreter=PYTHON, environment={}, log=log) as process:
        assert process.wait(20) == 127
    assert "cannot start /no/such/program" in log.read_text()


def test_output_goes_to_the_log_and_its_tail_is_short(tmp_path):
    with start(tmp_path, "-c", "import sys; [print(i) for i in range(100)]; print('end', file=sys.stderr)") as process:
        process.wait(20)
    assert process.log_tail(2) in {"99\nend", "end\n99"} or "end" in process.log_tail(101)


def test_a_command_that_talks_answers_what_it_is_asked(tmp_path):
    with start(
        tmp_path, "-c", "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)", talks=True
    ) as echo:
        echo.stdin.write(b"ready?\n")
        echo.stdin.flush()
        assert echo.stdout.readline() == b"READY?\n"


def test_stop_ends_the_whole_tree_politely(tmp_path, tree):
    with start(tmp_path, tree) as process:
        members = grown(tmp_path, process)
        assert len(members) == 5
    assert living(members) == []


def test_orphans_of_the_tree_are_adopted_and_end_too(tmp_path, tree):
    with start(tmp_path, tree, "orphan") as process:
        members = grown(tmp_path, process)
    assert living(members) == []


def test_a_deaf_tree_is_killed_after_the_grace(tmp_path, tree):
    begin = time.monotonic()
    with start(tmp_path, tree, "deaf", grace_s=0.3) as process:
        members = grown(tmp_path, process)
        begin = time.monotonic()
    assert living(members) == []
    assert 0.3 <= time.monotonic() - begin < 5


def test_what_the_command_leaves_behind_ends_with_it(tmp_path, tree):
    with start(tmp_path, tree) as process:
        members = grown(tmp_path, process)
        command = next(member for member in members if member.ppid() not in {process.pid, os.getpid()})
        os.kill(command.pid, signal.SIGKILL)
        assert process.wait(20) == 128 + signal.SIGKILL
    assert living(members) == []


OWNER = """
import os, sys, time
from pathlib import Path
from tasks.process import SupervisedProcess
command = [sys.executable, "-S", *sys.argv[1:]]
log = Path(os.environ["READY"]).with_name("log")
process = SupervisedProcess(command, interpreter=Path(sys.executable), environment=os.environ, log=log, grace_s=1.0)
time.sleep(120)
"""


def test_kill_9_of_the_owner_leaves_nothing(tmp_path, tree):
    environment = {**os.environ, "READY": str(tmp_path / "ready")}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tree)], env=environment, cwd=Path(__file__).parents[2]
    ) as owner:
        wait_for((tmp_path / "ready").exists, 20)
        members = psutil.Process(owner.pid).children(recursive=True)
        assert len(members) == 5
        owner.kill()
    wait_for(lambda: not living(members), 20)


def test_kill_9_of_the_outer_guard_leaves_nothing(tmp_path, tree):
    with start(tmp_path, tree) as process:
        members = grown(tmp_path, process)
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: not living(members), 20)


def test_kill_9_of_the_inner_guard_ends_the_command(tmp_path, tree):
    with start(tmp_path, "-c", f"open({str(tmp_path / 'ready')!r}, 'w'); import time; time.sleep(120)") as process:
        members = grown(tmp_path, process)
        inner = next(member for member in members if member.ppid() == process.pid)
        inner.kill()
        wait_for(lambda: not living(members), 20)


def test_stopping_twice_is_harmless(tmp_path):
    process = start(tmp_path, "-c", "import time; time.sleep(120)")
    process.stop()
    process.stop()
    assert process.exit_status() is not None
