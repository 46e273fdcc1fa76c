"""CPU clocks of other processes, read from outside (Linux)."""

import time
from collections.abc import Sequence
from pathlib import Path


def child_pids(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """Return the ids of the processes whose parent is ``pid``, ascending, helpers of multiprocessing left out.

    Parameters
    ----------
    pid
        The parent's process id.
    proc
        Where procfs is mounted.
    """
    children = (int(entry.name) for entry in proc.iterdir() if entry.name.isdigit() and _parent(entry) == pid)
    return sorted(child for child in children if not _is_helper(proc / str(child)))


def process_cpu_clock_id(pid: int) -> int:
    """Return the clock id of a process's CPU time, as ``clock_getcpuclockid(3)`` forms it on Linux.

    Examples
    --------
    >>> process_cpu_clock_id(1)
    -14
    """
    return (~pid << 3) | 2


def process_cpu_times_ns(pids: Sequence[int]) -> list[int]:
    """Return the CPU time each process has used so far, all its threads together, in ns.

    Raises
    ------
    OSError
        One of the processes is gone, or its clock cannot be read.
    """
    return [time.clock_gettime_ns(process_cpu_clock_id(pid)) for pid in pids]


def _parent(entry: Path) -> int:
    """Parent of the process at ``/proc/<pid>``; -1 when it ended meanwhile or belongs to somebody else."""
    try:
        # The name in field 2 may hold spaces and brackets: count fields from its closing bracket on.
        return int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return -1


def _is_helper(entry: Path) -> bool:
    """Whether the process is the resource tracker or fork server of multiprocessing: it computes nothing."""
    try:
        command = (entry / "cmdline").read_bytes()
    except OSError:
        return True
    return b"multiprocessing.resource_tracker" in command or b"multiprocessing.forkserver" in command
