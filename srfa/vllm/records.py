"""The trace writer: one JSON object a line, one ``write(2)`` a record.

Nothing is buffered in this process, so a record is in the kernel's hands when
:meth:`RecordWriter.write` returns: a ``SIGKILL`` loses at most the record being written.
Nothing is raised into the engine either: what cannot be written is counted, and the count
is itself written as a ``dropped`` record as soon as writing works again. The record formats
are those of ``docs/adr/0001-architecture.md``.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

TRACE_PATH_VARIABLE = "SRFA_TRACE_PATH"
"""Environment variable that names the trace file; unset or empty means no tracing."""

SCHEMA_VERSION = 1
"""Version of the record formats, written into the ``engine`` record."""


# Without the search for cycles encoding takes half the time; a cyclic record ends in a RecursionError and is dropped.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


class TracePathError(RuntimeError):
    """The trace file cannot be opened; raised at engine start only."""


class RecordWriter:
    """Append records to a file descriptor; count what could not be written.

    Parameters
    ----------
    descriptor
        An open, writable file descriptor in append mode. The writer owns it and is its only user.

    Attributes
    ----------
    dropped
        Number of records lost that no ``dropped`` line has reported yet.
    """

    def __init__(self, descriptor: int) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._torn = False

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RecordWriter":
        """Open ``path`` for appending.

        Returns
        -------
        RecordWriter
            A writer on the file, which is created when missing.

        Raises
        ------
        TracePathError
            The file cannot be opened for writing.
        """
        try:
            return cls(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))
        except OSError as error:
            message = (
                f"{TRACE_PATH_VARIABLE}={os.fspath(path)!r}: cannot open the trace file for writing "
                f"({error.strerror}); name a file in an existing, writable folder, or unset the variable"
            )
            raise TracePathError(message) from error

    def write(self, record: Mapping[str, object]) -> bool:
        """Write one record as one line; never raises.

        A ``dropped`` line goes first when earlier records were lost.

        Returns
        -------
        bool
            Whether the record is in the file. When it is not, it is counted in :attr:`dropped`.
        """
        # Broad on purpose: whatever goes wrong here must stay out of the engine's busy loop.
        try:
            self.report_dropped()
            self._append(record)
        except Exception:
            self.dropped += 1
            return False
        return True

    def drop(self, count: int = 1) -> None:
        """Count ``count`` records that were lost before they reached the writer."""
        self.dropped += count

    def report_dropped(self) -> bool:
        """Write the ``dropped`` line that is due, if any; never raises.

        Returns
        -------
        bool
            Whether nothing is left unreported.
        """
        if not self.dropped:
            return True
        try:
            self._append({"record": "dropped", "count": self.dropped})
        except OSError:
            return False
        self.dropped = 0
        return True

    def close(self) -> None:
        """Report what was dropped and close the file; never raises, and closing twice is harmless."""
        self.report_dropped()
        descriptor, self._descriptor = self._descriptor, -1
        try:
            if descriptor >= 0:
                os.close(descriptor)
        except OSError:
            self.dropped += 1

    def _append(self, record: Mapping[str, object]) -> None:
        line = (b"\n" if self._torn else b"") + _encode(record).encode("ascii") + b"\n"
        written = os.write(self._descriptor, line)
        if written == len(line):
            self._torn = False
            return
        self._remove_tail(written)
        raise OSError(f"only {written} of {len(line)} bytes of a record were written")

    def _remove_tail(self, length: int) -> None:
        """Cut a half-written line off, so that the next record does not join it."""
        try:
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - length)
        except OSError:
            self._torn = True


def trace_path(environment: Mapping[str, str], data_parallel_rank: int = 0) -> Path | None:
    """Return the file this engine core writes, or None when tracing is off.

    Parameters
    ----------
    environment
        The process environment.
    data_parallel_rank
        Rank of this engine core. Each one schedules on its own and has its own step ids, so rank ``r > 0``
        writes beside the named file: ``trace.jsonl`` becomes ``trace.dp1.jsonl``.

    Examples
    --------
    >>> str(trace_path({"SRFA_TRACE_PATH": "runs/trace.jsonl"}, 1))
    'runs/trace.dp1.jsonl'
    """
    name = environment.get(TRACE_PATH_VARIABLE, "")
    if not name:
        return None
    path = Path(name)
    return path if data_parallel_rank == 0 else path.with_name(f"{path.stem}.dp{data_parallel_rank}{path.suffix}")
