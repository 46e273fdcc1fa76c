"""Files are whole or absent: written under a temporary name, renamed, and refused before the work where they cannot be.

The temporary name lies in a folder beside the file, ``.partial-*``, so that the rename stays on one disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from srfa.errors import InputError, UsageError

Document = TypeVar("Document", bound=BaseModel)


def read_document(path: Path, form: type[Document], *, made_by: str) -> Document:
    """Read one JSON document of a given form; ``made_by`` is the command that makes such a file.

    Raises
    ------
    InputError
        The file is missing, is not JSON, or has an unknown, missing or malformed field.
    """
    try:
        return form.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make one with '{made_by}'") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise InputError(f"{path}: {place}: {first['msg']}; make it anew with '{made_by}'") from error


def require_writable(path: Path) -> None:
    """Do nothing where a file can be written as ``path``; nothing is left behind, no folder is made.

    Raises
    ------
    InputError
        It is a folder or no regular file, or the folder it would stand in can neither be written nor made.
    """
    with _refusing(path):
        if path.is_dir():
            raise IsADirectoryError
        if path.exists() and not path.is_file():
            raise OSError("no regular file")
        _try_folder(path.parent)


def require_writable_folder(folder: Path) -> None:
    """Do nothing where files can be written into ``folder``, which need not exist yet.

    Raises
    ------
    InputError
        It is a file, or can neither be written nor made.
    """
    with _refusing(folder):
        _try_folder(folder)


def require_apart(path: Path, inputs: Iterable[Path]) -> None:
    """Do nothing where ``path`` is none of the inputs, by whatever name.

    Raises
    ------
    UsageError
        It is one of them, which writing would replace.
    """
    if path.exists() and any(one.exists() and one.samefile(path) for one in inputs):
        raise UsageError(f"{path} is one of the inputs, which writing to it would replace; name another file")


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield the name to write to, with the ending of ``path``, and rename what was written there when the block ends.

    The folder of ``path`` is made; where the block fails, ``path`` stays as it was.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    with _refusing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
            temporary = Path(folder, path.name)
            yield temporary
            temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), as :func:`writing` does.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what the system says of ``path`` into a sentence with a remedy."""
    try:
        yield
    except IsADirectoryError as error:
        raise InputError(f"{path}: cannot be written (it is a folder); name a file in it") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path}: cannot be written ({reason}); name a file in a folder that you may write to"
        ) from error


def _try_folder(folder: Path) -> None:
    """Make and remove a folder in ``folder``, or in the nearest one above it that exists."""
    nearest = next(one for one in (folder, *folder.parents) if one.exists())
    with tempfile.TemporaryDirectory(dir=nearest, prefix=".partial-"):
        pass
