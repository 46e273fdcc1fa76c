"""Functions compiled to machine code by numba; the compiled form is kept beside the source for the next process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])
_KERNELS: Final = (
    "compiled",
    "routing",
    "operator_kernels",
    "smooth_roofline",
    "step_kernel",
    "simulate/state",
    "simulate/blocks",
    "simulate/waiting",
    "simulate/scheduler",
    "simulate/times",
    "simulate/loop",
)
"""Modules whose functions and constants are compiled into each other."""


def fingerprint(sources: Iterable[Path]) -> str:
    """Return 12 hex digits over the content of source files; a file that cannot be read counts as its name."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes() if source.is_file() else source.name.encode())
    return digest.hexdigest()[:12]


_FINGERPRINT: Final = fingerprint(Path(__file__).parent / f"{name}.py" for name in _KERNELS)


def compiled(function: Function) -> Function:
    """Compile a function of numbers and arrays at its first call; it releases the interpreter lock while it runs.

    What is kept bears the fingerprint of all kernels in its name: numba looks at a function's own file alone, and would
    go on with what it compiled before a function or constant of another file was changed. Where neither
    ``NUMBA_CACHE_DIR``, the package's folder nor the home can be written, every process compiles anew.
    """
    return _compiled(function)


def compiled_part(function: Function) -> Function:
    """Compile a function that only compiled ones call and that allocates nothing: in a fraction of the time.

    It has no entry from Python and counts no references to the arrays it is given, which its caller keeps alive.
    """
    return _compiled(function, no_cpython_wrapper=True, **_WITHOUT_MEMORY)


def compiled_loop(function: Function) -> Function:
    """Compile the function through which Python enters :func:`compiled_part` ones; it allocates nothing either."""
    return _compiled(function, **_WITHOUT_MEMORY)


_WITHOUT_MEMORY: Final = {"_nrt": False, "no_cfunc_wrapper": True, "error_model": "numpy"}


def _compiled(function: Function, **options: object) -> Function:
    function.__qualname__ = f"{function.__qualname__}_{_FINGERPRINT}"
    try:
        return cast(Function, numba.njit(cache=True, nogil=True, **options)(function))
    except RuntimeError:  # numba's word for "no place to keep it", raised when decorated
        return cast(Function, numba.njit(nogil=True, **options)(function))
