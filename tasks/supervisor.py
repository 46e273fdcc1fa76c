"""A process that owns a process tree and takes it along when its own owner goes (standard library only, Linux).

Run by file path with any interpreter::

    python supervisor.py --lifeline FD --log FILE [--grace-s 10] [--pass-stdio] -- COMMAND...

The owner holds the write end of the pipe ``FD``. When it closes (the owner ended, ``SIGKILL`` included), or on
``SIGTERM`` or ``SIGINT``, every process of the tree gets ``SIGTERM``, and ``SIGKILL`` after the grace. The exit status
is the command's, 128 + N where signal N ended it, 127 where it could not be started.

Two processes stand guard: the outer one is the owner's child and only waits; the inner one, in its own session, is the
parent of the tree and adopts its orphans (``PR_SET_CHILD_SUBREAPER``). An owner that kills its direct children on its
way out, as a Ray worker does, ends the outer one only, and the inner one then cleans up. Kill the inner one and the
kernel kills the command; what the command started must then be tied to it (``srfa.vllm.lifeline``).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

PARENT_VARIABLE: Final = "SRFA_LIFELINE_PARENT_PID"
"""Tells the command's processes who their owner is; read by ``srfa.vllm.lifeline``."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_KILL_LIMIT_S: Final = 10.0
_POLL_S: Final = 0.02


def main(arguments: Sequence[str]) -> int:
    """Fork into outer and inner guard; return the exit status to end with."""
    options = _parser().parse_args(arguments)
    outer = os.getpid()
    wake = _wake_on_signals()
    inner = os.fork()
    if inner:
        os.close(options.lifeline)
        return _outer(inner, wake)
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # A forked child shares its parent's wake-up pipe: take one of its own.
    return Guard(options, _wake_on_signals()).run(abandoned=os.getppid() != outer)


class Guard:
    """The inner process: parent of the tree.

    Parameters
    ----------
    options
        ``command``, ``log``, ``grace_s``, ``pass_stdio`` and ``lifeline``.
    wake
        A descriptor on which every signal of this process arrives as one byte, its number.
    """

    def __init__(self, options: argparse.Namespace, wake: int) -> None:
        self._options = options
        self._wake = wake
        self._command_pid = -1
        self._status: int | None = None

    def run(self, *, abandoned: bool) -> int:
        """Start the command, wait for its end or the owner's, and leave no process."""
        if abandoned:
            return 128 + signal.SIGTERM
        try:
            self._command_pid = _start(self._options)
        except OSError as error:
            with Path(self._options.log).open("a") as log:
                log.write(f"supervisor: cannot start {self._options.command[0]}: {error.strerror}\n")
            return 127
        while self._status is None and not self._owner_is_gone():
            self._reap()
        self._stop_tree()
        return 128 + signal.SIGKILL if self._status is None else _exit_code(self._status)

    def _owner_is_gone(self) -> bool:
        """Block until a signal comes or the lifeline ends; return whether the tree has to stop."""
        ready, _, _ = select.select([self._wake, self._options.lifeline], [], [])
        if self._options.lifeline in ready and not os.read(self._options.lifeline, 1):
            return True
        return self._wake in ready and bool(_STOP_SIGNALS & set(os.read(self._wake, 512)))

    def _stop_tree(self) -> None:
        self._signal_until_gone(signal.SIGTERM, self._options.grace_s)
        self._signal_until_gone(signal.SIGKILL, _KILL_LIMIT_S)

    def _signal_until_gone(self, number: signal.Signals, limit_s: float) -> None:
        """Signal each process of the tree once, those that appear meanwhile too, until none is left or time is up."""
        told: set[int] = set()
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            self._reap()
            tree = descendants(os.getpid())
            if not tree:
                return
            for pid in tree - told:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= tree
            time.sleep(_POLL_S)

    def _reap(self) -> None:
        """Collect every child that ended, adopted ones too."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._command_pid:
                    self._status = ended[1]


def descendants(root: int) -> set[int]:
    """Return the ids of all living processes below ``root``; the ended ones that wait to be collected are left out."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    open_ends = [root]
    while open_ends:
        below = children.get(open_ends.pop(), [])
        found.update(below)
        open_ends += below
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError, IndexError, ValueError):
            # The name in field 2 may hold brackets and spaces: what follows its last bracket is state, parent, ...
            state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state not in "ZX":
                yield int(entry.name), int(parent)


def _start(options: argparse.Namespace) -> int:
    guard = os.getpid()

    def tie_to_guard() -> None:
        # Between fork and exec of a process with one thread, where Python code is safe.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(128 + signal.SIGKILL)

    with Path(options.log).open("ab") as log:
        process = subprocess.Popen(
            options.command,
            stdin=None if options.pass_stdio else subprocess.DEVNULL,
            stdout=None if options.pass_stdio else log,
            stderr=log,
            env={**os.environ, PARENT_VARIABLE: str(guard)},
            preexec_fn=tie_to_guard,  # noqa: PLW1509 - as above
        )
    process.returncode = 0  # collected by waitpid(-1); keeps Popen from waiting for it
    return process.pid


def _outer(inner: int, wake: int) -> int:
    """Wait for the inner guard and hand signals on to it; return its exit status."""
    while True:
        ended, status = os.waitpid(inner, os.WNOHANG)
        if ended:
            return _exit_code(status)
        select.select([wake], [], [])
        if _STOP_SIGNALS & set(os.read(wake, 512)):
            os.kill(inner, signal.SIGTERM)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _wake_on_signals() -> int:
    """Return a descriptor that gets one byte, the number, for each signal of interest."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _STOP_SIGNALS | {signal.SIGCHLD}:
        signal.signal(number, lambda *_: None)
    return reader


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, int(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed; the supervisor needs Linux 3.4 or newer")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run a command whose whole process tree ends with its owner.")
    parser.add_argument("--lifeline", type=int, required=True, help="descriptor of a pipe the owner keeps open")
    parser.add_argument("--log", required=True, help="file that gets the command's output")
    parser.add_argument("--grace-s", type=float, default=10.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument(
        "--pass-stdio", action="store_true", help="the command keeps stdin and stdout; only stderr is logged"
    )
    parser.add_argument("command", nargs="+")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
