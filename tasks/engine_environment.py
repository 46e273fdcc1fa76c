"""The environment variables of the engine's processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from srfa.specs import GpuSpec

_INHERITED_NOT: Final = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS"})
"""Another environment's paths; what makes a start compile everything anew; the threads Ray gives its tasks."""

_ALWAYS: Final[Mapping[str, str]] = {
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "SRFA_LIFELINE": "1",
}


def bound_cores(allowed: Sequence[int], first: int, *, threads: int, ranks: int) -> tuple[str, ...]:
    """Return the cores of each rank as vLLM words them, counted on from the ``first`` allowed one, round and round.

    Examples
    --------
    >>> bound_cores([0, 1, 2, 3], 1, threads=1, ranks=1), bound_cores([0, 1, 2, 3], 2, threads=2, ranks=2)
    (('1',), ('2,3', '0,1'))
    """
    picked = [allowed[(first + place) % len(allowed)] for place in range(threads * ranks)]
    return tuple(",".join(map(str, picked[rank * threads : (rank + 1) * threads])) for rank in range(ranks))


def engine_environment(
    base: Mapping[str, str], gpu: GpuSpec, *, package_root: Path, cores: Sequence[str], offline: bool
) -> dict[str, str]:
    """Return the environment of a server, a load generator or a probe on ``gpu``.

    Parameters
    ----------
    base
        This process's environment.
    package_root
        Goes on ``PYTHONPATH``, alone.
    cores
        For a CPU profile: the cores each rank is bound to; see :func:`bound_cores`.
    offline
        Keeps the engine from asking the Hugging Face hub for what is not on this machine.
    """
    environment = {name: value for name, value in base.items() if name not in _INHERITED_NOT}
    environment |= {**_ALWAYS, "PYTHONPATH": str(package_root), **gpu.datasheet.engine_env}
    if offline:
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if gpu.datasheet.omp_threads is not None:
        environment["OMP_NUM_THREADS"] = str(gpu.datasheet.omp_threads)
    if gpu.datasheet.kind == "cpu":
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(cores)
    return environment
