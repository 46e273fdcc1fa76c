"""CPU time of a step: the clocks of the engine core and of its worker processes, read from outside (Linux)."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_MAX_SEARCHES = 3


@dataclass(frozen=True, slots=True)
class CpuReading:
    """CPU time used so far: by the engine core, and by each worker process (None: unknown)."""

    engine_ns: int
    workers_ns: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class CpuTime:
    """CPU time of one step; see :func:`cpu_time_between`."""

    step_ns: int | None
    engine_ns: int
    workers_ns: tuple[int, ...] | None


class CpuClocks:
    """The CPU clocks of one engine core and of its worker processes.

    Parameters
    ----------
    in_workers
        Whether the model runs in worker processes. The engine core's clock is then that of the thread that makes
        this object and reads it (the busy loop's), else that of the whole process.
    find_workers
        Returns the workers' process ids. Called once, and at most twice more when a clock cannot be read.

    Attributes
    ----------
    worker_pids
        The workers found; empty where they are not children of this process.
    """

    def __init__(self, *, in_workers: bool, find_workers: Callable[[], list[int]]) -> None:
        self.in_workers = in_workers
        self.worker_pids = find_workers() if in_workers else []
        self._read_engine_ns = time.thread_time_ns if in_workers else time.process_time_ns
        self._find_workers = find_workers
        self._searches = 1

    def read(self) -> CpuReading:
        """Return the clocks now; the workers' part is None where they cannot be read."""
        return CpuReading(self._read_engine_ns(), self._read_workers() if self.worker_pids else None)

    def _read_workers(self) -> tuple[int, ...] | None:
        try:
            return tuple(process_cpu_times_ns(self.worker_pids))
        except OSError:
            self._searches += 1
            self.worker_pids = self._find_workers() if self._searches <= _MAX_SEARCHES else []
            return None


def clocks_of_this_process(executor_backend: str) -> CpuClocks:
    """Return the clocks of the calling engine core.

    Parameters
    ----------
    executor_backend
        vLLM's resolved ``distributed_executor_backend``. With ``uni`` the model runs in the engine core; the
        workers of ``mp`` are its children; those of any other backend are out of reach.
    """
    own_children = executor_backend == "mp"
    return CpuClocks(
        in_workers=executor_backend != "uni", find_workers=lambda: child_pids(os.getpid()) if own_children else []
    )


def cpu_time_between(begin: CpuReading, end: CpuReading, *, in_workers: bool) -> CpuTime:
    """Return the CPU time of a step from the clocks at its two ends.

    The step's own figure is that of its **busiest worker process**: workers run side by side, so their sum would
    count a tensor-parallel step several times. The engine core is left out of it, because its thread spins on a
    shared-memory queue until the workers answer, which would count the same time again. Without worker
    processes the model runs in the engine core, whose CPU time it then is.
    """
    engine_ns = end.engine_ns - begin.engine_ns
    if begin.workers_ns is None or end.workers_ns is None or len(begin.workers_ns) != len(end.workers_ns):
        return CpuTime(None if in_workers else engine_ns, engine_ns, None)
    workers_ns = tuple(after - before for before, after in zip(begin.workers_ns, end.workers_ns, strict=True))
    return CpuTime(max(workers_ns), engine_ns, workers_ns)


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
