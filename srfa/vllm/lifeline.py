"""Every vLLM process dies with the process that started it (Linux).

Entry point ``vllm.general_plugins: srfa_lifeline``: vLLM calls :func:`register` in the API server, the
engine core and each worker. With ``SRFA_LIFELINE=1`` the process asks the kernel for ``SIGKILL`` at its
parent's death (``prctl(2)``, ``PR_SET_PDEATHSIG``), so a killed owner leaves no process behind.

The kernel watches the parent *thread* that created the process. Start the server from a thread that
lives as long as the server does (the main thread of a supervisor), never from a thread pool.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping

LIFELINE_VARIABLE = "SRFA_LIFELINE"
"""Set to ``1`` to tie vLLM's processes to their parents."""

PARENT_VARIABLE = "SRFA_LIFELINE_PARENT_PID"
"""Process id of the server's owner; lets a server notice that its owner died while it was importing."""

_PR_SET_PDEATHSIG = 1
_logger = logging.getLogger("vllm.srfa")


def register() -> None:
    """Tie this process, and those it forks, to their parents where ``SRFA_LIFELINE`` is ``1``.

    What the variable says of the owner holds for this process alone and is taken out of its environment: a program
    that it starts (vLLM inspects a model's class in one) has this process as its parent, not the owner.

    vLLM loads plugins once a process and a forked child counts as loaded, so children are armed at the
    fork. A child forked by another thread than the main one is not: that thread's end would kill it.
    """
    if os.environ.get(LIFELINE_VARIABLE) != "1":
        return
    if sys.platform != "linux":
        _logger.warning("%s=1 has no effect on %s: it needs Linux", LIFELINE_VARIABLE, sys.platform)
        return
    arm(expected_parent_pid(os.environ))
    os.environ.pop(PARENT_VARIABLE, None)
    fork = _Fork()
    os.register_at_fork(before=fork.before, after_in_child=fork.after_in_child)


def expected_parent_pid(environment: Mapping[str, str]) -> int:
    """Return the process id this process's parent must have while the owner lives.

    The process that started it through ``multiprocessing`` where there is one, else the value of
    ``SRFA_LIFELINE_PARENT_PID``, else the parent of this moment.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        return parent.pid
    return int(environment.get(PARENT_VARIABLE) or os.getppid())


def arm(parent_pid: int) -> None:
    """Ask for ``SIGKILL`` at the parent's death, and die at once if ``parent_pid`` is the parent no more.

    The check comes after the request: a parent that dies between the two is seen by one of them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        _logger.warning("prctl(PR_SET_PDEATHSIG) failed: %s; this process may outlive its owner", ctypes.get_errno())
        return
    if os.getppid() != parent_pid:
        _logger.error("parent is %d where %d was expected: the owner is gone, exiting", os.getppid(), parent_pid)
        os.kill(os.getpid(), signal.SIGKILL)


class _Fork:
    """What a forked child must know about the fork: who forked, and whether its main thread did."""

    def __init__(self) -> None:
        self._parent_pid = os.getpid()
        self._by_main_thread = True

    def before(self) -> None:
        self._parent_pid = os.getpid()
        self._by_main_thread = threading.current_thread() is threading.main_thread()

    def after_in_child(self) -> None:
        if self._by_main_thread:
            arm(self._parent_pid)
