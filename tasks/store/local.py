"""A folder as a trace store: temporary file and rename, hard link for write-once, a lock file for pointers."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from srfa.errors import StoreError
from tasks.store.protocol import checked_key, checked_prefix

_LOCK: Final = ".lock"
_TEMPORARY: Final = ".part-"


class LocalStore:
    """A folder on this machine, or on a file system that all nodes share.

    Parameters
    ----------
    root
        The folder; made on the first write. Kept absolute, so that a process with another working directory opens the
        same one.

    Notes
    -----
    ``put`` with ``if_absent`` needs hard links, ``replace`` needs ``flock``; :meth:`check` proves both.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()

    @property
    def uri(self) -> str:
        """The folder as ``file:///...``."""
        return self._root.as_uri()

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> bool:
        """Write the object under a temporary name, then rename it, or link it where it must not replace another."""
        with self._told(key):
            target = self._path(key)
            if if_absent and target.exists():
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
            try:
                _write(temporary, data)
                return _link(temporary, target) if if_absent else _rename(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        """Return the file's bytes."""
        with self._told(key):
            return self._path(key).read_bytes()

    def exists(self, key: str) -> bool:
        """Return whether the file is there."""
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with ``prefix``, sorted as S3 sorts them."""
        folder = self._root / checked_prefix(prefix).rpartition("/")[0]
        with self._told(prefix):
            keys = sorted(self._walk(folder))
        return (key for key in keys if key.startswith(prefix))

    def version(self, key: str) -> str | None:
        """Return the sha256 of the content, None where the file is not there."""
        try:
            return hashlib.sha256(self._path(key).read_bytes()).hexdigest()
        except FileNotFoundError:
            return None

    def replace(self, key: str, data: bytes, *, expected: str | None) -> bool:
        """Compare and rename under the store's lock; ``put`` does not take it, so move a pointer only with this."""
        with self._told(key), self._locked():
            if self.version(key) != expected:
                return False
            return self.put(key, data)

    def delete(self, key: str) -> None:
        """Remove the file."""
        with self._told(key):
            self._path(key).unlink(missing_ok=True)

    def check(self) -> None:
        """Write, link, lock and remove a probe in the folder."""
        key = f"probe-{uuid.uuid4().hex}"
        try:
            if not self.put(key, b"", if_absent=True) or self.put(key, b"1", if_absent=True):
                raise StoreError(
                    f"{self.uri}: a write-once object was written twice; use a file system with hard links"
                )
            self.replace(key, b"2", expected=self.version(key))
        finally:
            self.delete(key)

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def _walk(self, folder: Path) -> Iterator[str]:
        for where, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            relative = Path(where).relative_to(self._root)
            yield from ((relative / name).as_posix() for name in files if not name.startswith("."))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn what the file system says into one sentence with a remedy."""
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.uri}: {error.filename or key} is not there; list the store to see what is"
            ) from error
        except OSError as error:
            remedy = "check the folder's permissions and free space, or name another store"
            raise StoreError(f"{self.uri}: {key or 'the folder'}: {error.strerror or error}; {remedy}") from error


def _write(path: Path, data: bytes | Path) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("xb") as sink:
        if isinstance(data, Path):
            with data.open("rb") as source:
                shutil.copyfileobj(source, sink)
        else:
            sink.write(data)
        sink.flush()
        os.fsync(sink.fileno())


def _rename(temporary: Path, target: Path) -> bool:
    temporary.replace(target)
    return True


def _link(temporary: Path, target: Path) -> bool:
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        return False
    return True
