"""What a trace store promises, and which keys it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from srfa.errors import StoreError

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_=@+,-][A-Za-z0-9_.=@+,-]*")
_PREFIX_TAIL: Final = re.compile(r"(?:[A-Za-z0-9_=@+,-][A-Za-z0-9_.=@+,-]*)?")
_LONGEST_KEY: Final = 900
"""S3 allows 1024 bytes with the store's own prefix."""


@runtime_checkable
class TraceStore(Protocol):
    """A flat map of keys to immutable-by-convention objects; every method raises ``StoreError`` with a remedy."""

    @property
    def uri(self) -> str:
        """The address that :func:`tasks.store.open_store` opens again, on any machine that shares the store."""

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> bool:
        """Write ``data`` (bytes, or the file at a path) as a whole.

        Returns
        -------
        bool
            True where it was written; False where ``if_absent`` and the key was already there, which is left as it is.
        """

    def get(self, key: str) -> bytes:
        """Return the object's bytes; a key that is not there is a ``StoreError``."""

    def exists(self, key: str) -> bool:
        """Return whether the key is there."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with ``prefix`` (any string, not only a folder), sorted."""

    def version(self, key: str) -> str | None:
        """Return a token of the object's present content, None where it is not there."""

    def replace(self, key: str, data: bytes, *, expected: str | None) -> bool:
        """Move a pointer: write ``data`` only if :meth:`version` still is ``expected`` (None: only if it is not there).

        Returns
        -------
        bool
            False where another writer was faster; read again and decide anew.
        """

    def delete(self, key: str) -> None:
        """Remove the key; one that is not there is no error."""

    def check(self) -> None:
        """Probe once that the store can be reached, written, read and written conditionally.

        Raises
        ------
        StoreError
            One sentence on what is wrong and one on what to do.
        """


def checked_key(key: str) -> str:
    """Return ``key`` where it is a relative path of plain segments.

    Raises
    ------
    StoreError
        The key is absolute, climbs, is too long, has a hidden or empty segment or a character outside
        ``A-Za-z0-9_.=@+,-``.

    Examples
    --------
    >>> checked_key("tables/steps/run_id=1/part-0.parquet")
    'tables/steps/run_id=1/part-0.parquet'
    """
    if len(key) > _LONGEST_KEY or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise StoreError(_refusal("key", key))
    return key


def checked_prefix(prefix: str) -> str:
    """Return ``prefix`` where a valid key can start with it; the last segment may be cut anywhere.

    Raises
    ------
    StoreError
        No valid key can start with it.
    """
    *folders, tail = prefix.split("/")
    if not (all(_SEGMENT.fullmatch(segment) for segment in folders) and _PREFIX_TAIL.fullmatch(tail)):
        raise StoreError(_refusal("prefix", prefix))
    return prefix


def _refusal(what: str, value: str) -> str:
    return (
        f"{what} {value[:80]!r} is refused; use a relative path of at most {_LONGEST_KEY} characters, "
        "whose segments hold A-Z a-z 0-9 _ . = @ + , - and do not start with a dot"
    )
