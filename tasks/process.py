"""A command under ``tasks/supervisor.py``: it and everything it starts end with the process that owns this object."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

_SUPERVISOR: Final = Path(__file__).with_name("supervisor.py")
_KILL_MARGIN_S: Final = 15.0
"""What the supervisor itself may need after its grace."""
_TAIL_BYTES: Final = 65_536


class SupervisedProcess:
    """A running command; leave the ``with`` block, or end in any way, and its process tree is gone.

    Parameters
    ----------
    command
        The command line; its first word is an interpreter or program.
    interpreter
        Python that runs the supervisor; any version from 3.9 will do, nothing has to be installed.
    environment
        The command's whole environment.
    log
        File that gets its output.
    grace_s
        Seconds between ``SIGTERM`` and ``SIGKILL``.
    talks
        True where the command answers on stdout what it is asked on stdin; then only stderr is logged.

    Raises
    ------
    OSError
        The interpreter cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        interpreter: Path,
        environment: Mapping[str, str],
        log: Path,
        grace_s: float = 10.0,
        talks: bool = False,
    ) -> None:
        self.log = log
        self._stop_limit_s = grace_s + _KILL_MARGIN_S
        far_end, self._lifeline = os.pipe()
        options = ["--lifeline", str(far_end), "--log", str(log), "--grace-s", str(grace_s)]
        options += ["--pass-stdio"] if talks else []
        try:
            self._process = subprocess.Popen(
                [str(interpreter), "-IS", str(_SUPERVISOR), *options, "--", *command],
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else subprocess.DEVNULL,
                env=dict(environment),
                pass_fds=[far_end],
                start_new_session=True,
            )
        except OSError:
            os.close(self._lifeline)
            raise
        finally:
            os.close(far_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the supervisor, the root of the tree."""
        return self._process.pid

    @property
    def stdin(self) -> IO[bytes]:
        """Where a command that talks is asked."""
        if self._process.stdin is None:
            raise ValueError("the command was started with talks=False: it has no stdin")
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """Where a command that talks answers."""
        if self._process.stdout is None:
            raise ValueError("the command was started with talks=False: it has no stdout")
        return self._process.stdout

    def exit_status(self) -> int | None:
        """Return the exit status (128 + N after signal N), None while the command runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the command's end; return its exit status, None where time was up first."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """End the tree, ``SIGTERM`` then ``SIGKILL``, and return when it is gone; stopping twice is harmless."""
        self._let_go()
        try:
            self._process.wait(self._stop_limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the log, "" where there is none yet."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _let_go(self) -> None:
        """Close the lifeline: the supervisor takes it as the owner's end."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
