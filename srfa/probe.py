"""``srfa probe``: the microbenchmark of this machine, measured by the engine's interpreter, where PyTorch is."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import srfa
from srfa.errors import SrfaError, UsageError
from srfa.microbenchmark import read_microbenchmark
from srfa.specs import Microbenchmark

_PROGRAM: Final = "srfa.vllm.microbenchmark"
_REFUSED: Final = 2
_START_S: Final = 600.0
"""Loading PyTorch on a cold disk, filling memory and starting the peers of an all-reduce."""
_LAST_LINES: Final = 5


def run_probe(python: str, out: Path, *, seconds: float, arguments: Sequence[str] = ()) -> Microbenchmark:
    """Measure this machine for about ``seconds``, write the figures to ``out`` and return them.

    Of srfa the interpreter sees the package alone, not what is installed beside it: the engine's environment stays its
    own.

    Parameters
    ----------
    python
        The engine's interpreter.
    arguments
        Further options of ``python -m srfa.vllm.microbenchmark``.

    Raises
    ------
    UsageError
        There is no such interpreter, it has no PyTorch, or it lacks the device that was asked for.
    SrfaError
        The probe failed or did not end; with its last lines.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [python, "-m", _PROGRAM, "--out", str(out.absolute()), "--seconds", str(seconds), *arguments]
    with TemporaryDirectory(prefix="srfa-probe-") as folder:
        Path(folder, "srfa").symlink_to(Path(srfa.__file__).parent)
        status, said = _run(command, folder, timeout_s=2 * seconds + _START_S)
    if status == 0:
        return read_microbenchmark(out)
    if "No module named 'torch'" in said:
        raise UsageError(f"{python} has no PyTorch; name the engine's interpreter with --python")
    ends = "\n".join(said.strip().splitlines()[-_LAST_LINES:])
    if status == _REFUSED:
        raise UsageError(ends)
    raise SrfaError(f"the probe ended with status {status}; run it again with nothing else running. It said:\n{ends}")


def _run(command: Sequence[str], folder: str, *, timeout_s: float) -> tuple[int, str]:
    """Run in ``folder``, which ``-m`` puts first on the path; return the exit status and what stderr says."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False)
    except OSError as error:
        raise UsageError(f"--python {command[0]}: {error.strerror}; name an interpreter that has PyTorch") from error
    except subprocess.TimeoutExpired as error:
        raise SrfaError(f"the probe has not ended within {timeout_s:g} s; is the device in use?") from error
    return done.returncode, done.stderr
