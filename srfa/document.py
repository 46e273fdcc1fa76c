"""A YAML file as plain values that remember their lines, so that an error can say ``FILE:LINE``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from srfa.errors import InputError
from srfa.wording import Location

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Document:
    """What a YAML file holds, and where.

    Parameters
    ----------
    name
        The file as the user named it.
    data
        Mappings as dicts, sequences as tuples, scalars by YAML 1.1.
    lines
        Line (from 1) of each key and list item, by its location.
    """

    name: str
    data: Any
    lines: Mapping[Location, int] = field(default_factory=dict)

    def place(self, location: Location = ()) -> str:
        """Return ``FILE:LINE`` of a location, of the nearest enclosing one that stands in the file, or ``FILE``."""
        for end in range(len(location), -1, -1):
            line = self.lines.get(location[:end])
            if line is not None:
                return f"{self.name}:{line}"
        return self.name


def read_yaml(path: Path, refuse: type[InputError]) -> Document:
    """Read one YAML document with the line of everything in it.

    Raises
    ------
    InputError
        (as ``refuse``) The file cannot be read, is not YAML, is not one mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise refuse(f"{path}: cannot be read: {error}") from error
    loader = _LOADER(text)
    try:
        node = loader.get_single_node()
        reader = _Reader(str(path), loader, refuse)
        data = reader.read(node, ()) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise refuse(
            f"{path}{line}: not YAML: {error.problem or error.context}; check quotes, colons, indents"
        ) from error
    except yaml.YAMLError as error:
        raise refuse(f"{path}: not YAML: {error}") from error
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise refuse(f"{path}: should hold a mapping of keys to values, not {type(data).__name__}")
    return Document(str(path), data, {(): 1, **reader.lines})


class _Reader:
    """Walks the node tree of one file; keeps lines as it goes."""

    def __init__(self, name: str, loader: Any, refuse: type[InputError]) -> None:
        self._name = name
        self._loader = loader
        self._refuse = refuse
        self._open: set[int] = set()
        self._checked: set[int] = set()
        self.lines: dict[Location, int] = {}

    def read(self, node: yaml.Node, location: Location) -> Any:
        if id(node) in self._open:
            raise self._refuse(f"{self._place(node)}: an alias refers to what it stands in; write the value out")
        self._open.add(id(node))
        try:
            return self._value(node, location)
        finally:
            self._open.discard(id(node))

    def _value(self, node: yaml.Node, location: Location) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        if isinstance(node, yaml.SequenceNode):
            return tuple(self._item(child, (*location, index)) for index, child in enumerate(node.value))
        return self._loader.construct_object(node)

    def _item(self, node: yaml.Node, location: Location) -> Any:
        self.lines[location] = node.start_mark.line + 1
        return self.read(node, location)

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        self._refuse_duplicates(node)
        self._loader.flatten_mapping(node)
        result = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            self.lines[*location, key] = key_node.start_mark.line + 1
            result[key] = self.read(value_node, (*location, key))
        return result

    def _refuse_duplicates(self, node: yaml.MappingNode) -> None:
        """Merging (``<<``) overrides on purpose, so a mapping is checked once, before its merges are put in."""
        if id(node) in self._checked:
            return
        self._checked.add(id(node))
        first: dict[str, int] = {}
        for key, _ in node.value:
            if str(key.value) in first:
                line = first[str(key.value)]
                raise self._refuse(f"{self._place(key)}: key {key.value!r} stands in line {line} already; remove one")
            first[str(key.value)] = key.start_mark.line + 1

    def _key(self, node: yaml.Node) -> str:
        key = self._loader.construct_object(node) if isinstance(node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            written = repr(node.value) if isinstance(node, yaml.ScalarNode) else "of several parts"
            raise self._refuse(f"{self._place(node)}: key {written} should be text; put it in quotes")
        return key

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"
