"""Where traces, tables and releases lie: a folder or an S3 bucket behind one protocol.

Keys are relative paths with ``/`` (``traces/run_id=R/job_id=J/manifest.json``). Readers never see half an object; what
must be written once (a manifest, a release) is written with ``if_absent=True``, and a pointer is moved with
:meth:`TraceStore.replace`.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from srfa.errors import StoreError
from tasks.store.local import LocalStore
from tasks.store.protocol import TraceStore
from tasks.store.s3 import S3Store

__all__ = ["LocalStore", "S3Store", "TraceStore", "open_store"]


def open_store(uri: str) -> TraceStore:
    """Return the store that ``uri`` names; nothing is read or written yet (:meth:`TraceStore.check` does that).

    Parameters
    ----------
    uri
        A path, ``file:///absolute/path``, or ``s3://bucket/prefix``; ``s3://bucket/prefix?conditional_writes=off`` for
        a server that refuses conditional writes; :class:`tasks.store.s3.S3Store` says what is lost then.

    Raises
    ------
    StoreError
        The scheme or an option is unknown, or the bucket is missing from the address.

    Examples
    --------
    >>> open_store("s3://traces/night").uri
    's3://traces/night'
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        return S3Store(
            _bucket(uri, parts.netloc), parts.path.strip("/"), conditional_writes=_conditional(uri, parts.query)
        )
    if parts.scheme == "file":
        return LocalStore(_local_path(uri, parts.netloc, parts.path))
    if "://" in uri:
        raise StoreError(f"{uri}: unknown scheme {parts.scheme!r}; use a path, file:///path or s3://bucket/prefix")
    if not uri:
        raise StoreError("the store's address is empty; use a path, file:///path or s3://bucket/prefix")
    return LocalStore(Path(uri))


def _bucket(uri: str, bucket: str) -> str:
    if not bucket:
        raise StoreError(f"{uri}: the bucket is missing; write s3://bucket/prefix")
    return bucket


def _local_path(uri: str, host: str, path: str) -> Path:
    if host not in {"", "localhost"} or not path:
        raise StoreError(f"{uri}: host {host!r} in a file address; write file:///absolute/path with three slashes")
    return Path(unquote(path))


def _conditional(uri: str, query: str) -> bool:
    options = parse_qs(query, keep_blank_values=True)
    value = options.pop("conditional_writes", ["on"])[-1]
    if options or value not in {"on", "off"}:
        raise StoreError(f"{uri}: options {query!r} are not known; the only one is conditional_writes=on|off")
    return value == "on"
