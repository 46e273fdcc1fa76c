"""Functions compiled to machine code by numba; the compiled form is kept beside the source for the next process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile a function of numbers and arrays at its first call; it releases the interpreter lock while it runs.

    Where neither ``NUMBA_CACHE_DIR``, the package's folder nor the home can be written, every process compiles anew.
    """
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # numba's word for "no place to keep it", raised when decorated
        return cast(Function, numba.njit(nogil=True)(function))
