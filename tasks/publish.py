"""A release folder into the store, and the pointer to the newest one that passed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from srfa.errors import StoreError
from srfa.specs import Spec
from tasks.store import TraceStore

LATEST_KEY: Final = "releases/latest.json"
_MOVE_ATTEMPTS: Final = 5


class LatestRelease(Spec):
    """``releases/latest.json``: the newest release that passed its gate.

    Parameters
    ----------
    published_at
        UTC, ISO 8601 with seconds; texts of this form sort by time.
    """

    release_id: str
    published_at: str


def release_prefix(release_id: str) -> str:
    """Return where a release lies in the store.

    >>> release_prefix("20261123-abc")
    'releases/20261123-abc'
    """
    return f"releases/{release_id}"


def upload_release(folder: Path, release_id: str, store: TraceStore, *, last: str) -> str:
    """Store every file of a release folder once; the release is whole when the file called ``last`` is there.

    Returns
    -------
    str
        The release's prefix in the store.

    Raises
    ------
    StoreError
        A release of that id is there with other content (releases never change), or the store refuses.
    """
    prefix = release_prefix(release_id)
    for path in _files(folder, last):
        key = f"{prefix}/{path.relative_to(folder).as_posix()}"
        if not store.put(key, path, if_absent=True) and store.get(key) != path.read_bytes():
            raise StoreError(
                f"{store.uri}: {key} is there with other content; a release never changes, publish a new one"
            )
    return prefix


def move_latest(store: TraceStore, release: LatestRelease) -> bool:
    """Point ``releases/latest.json`` at ``release`` unless it points at a newer one.

    Call it for a release that passed its gate, after its upload.

    Returns
    -------
    bool
        False where a newer release was already pointed at; it stays.

    Raises
    ------
    StoreError
        Other writers were faster five times in a row, or the store refuses.
    """
    for _ in range(_MOVE_ATTEMPTS):
        version = store.version(LATEST_KEY)
        present = None if version is None else read_latest(store)
        if present is not None and present.published_at > release.published_at:
            return False
        document = release.model_dump_json(indent=1) + "\n"
        if store.replace(LATEST_KEY, document.encode(), expected=version):
            return True
    raise StoreError(f"{store.uri}: {LATEST_KEY} was moved by others {_MOVE_ATTEMPTS} times meanwhile; publish again")


def read_latest(store: TraceStore) -> LatestRelease:
    """Return what ``releases/latest.json`` points at.

    Raises
    ------
    StoreError
        No release has passed yet, or the pointer cannot be read.
    """
    try:
        return LatestRelease.model_validate(json.loads(store.get(LATEST_KEY)))
    except (ValueError, ValidationError) as error:
        raise StoreError(f"{store.uri}: {LATEST_KEY} is broken ({error}); delete it and publish again") from error


def _files(folder: Path, last: str) -> Iterator[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    yield from (path for path in files if path.name != last)
    yield folder / last
