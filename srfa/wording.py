"""Words for what a file got wrong: did-you-mean, and pydantic's findings with key, value and expectation."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]
"""Where a value stands in a document: keys and list positions from the top."""

_SHORTEST_BEGINNING: Final = 2
_EXPECTATIONS: Final = {
    "tuple_type": "should be a list, for example [a, b]",
    "dict_type": "should be a mapping of keys to values",
    "model_type": "should be a mapping of keys to values",
    "model_attributes_type": "should be a mapping of keys to values",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "none_required": "should be null",
    "too_short": "holds too few items; add one",
}


def unknown(kind: str, value: object, known: Iterable[str]) -> str:
    """Say that ``value`` is no known ``kind``, with the nearest that is known and the list of all.

    >>> unknown("GPU", "h10", ["h100", "l4"])
    "unknown GPU 'h10'; did you mean 'h100'? Known: h100, l4"
    """
    names = sorted(known)
    return f"unknown {kind} {value!r}{did_you_mean(value, names) or '.'} Known: {', '.join(names) or 'none'}"


def did_you_mean(value: object, known: Sequence[str]) -> str:
    """Return ``; did you mean 'x'?`` with the nearest of ``known``, or nothing where none is near.

    Names that begin with the value come first (at most three); a name with a slash is compared as a whole and by its
    last part.
    """
    folded = str(value).casefold()
    by_folded = {name.rpartition("/")[2].casefold(): name for name in known}
    by_folded |= {name.casefold(): name for name in known}
    begun = [name for key, name in by_folded.items() if len(folded) >= _SHORTEST_BEGINNING and key.startswith(folded)]
    near = begun[:3] or [by_folded[key] for key in difflib.get_close_matches(folded, by_folded, n=1, cutoff=0.5)]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def path_text(location: Location) -> str:
    """Write a location the way people do.

    >>> path_text(("axes", "knobs", "block_size", 0))
    'axes.knobs.block_size[0]'
    """
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return text.removeprefix(".")


def explain(details: ErrorDetails, spec: type[BaseModel]) -> str:
    """Translate one finding of pydantic about a document of ``spec`` into key, value and expectation."""
    location, kind = details["loc"], details["type"]
    inside = f" in {path_text(location[:-1])}" if len(location) > 1 else ""
    if kind == "missing":
        return f"missing key {location[-1]!r}{inside}; add it"
    if kind == "extra_forbidden":
        return unknown(f"key{inside}", location[-1], _keys_at(spec, location[:-1]))
    return f"{path_text(location)}={details['input']!r} {_expectation(details)}"


def _expectation(details: ErrorDetails) -> str:
    if details["type"] == "string_type" and isinstance(details["input"], int | float):
        return "should be text; put it in quotes"
    if details["type"] in _EXPECTATIONS:
        return _EXPECTATIONS[details["type"]]
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if details["type"] != "literal_error":
        return message
    allowed = details["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
    return message + did_you_mean(details["input"], allowed)


def _keys_at(spec: type[BaseModel], location: Location) -> list[str]:
    annotation: Any = spec
    for step in location:
        annotation = _inner(annotation, step)
    return sorted(annotation.model_fields) if _is_model(annotation) else []


def _inner(annotation: Any, step: str | int) -> Any:
    """Return the annotation one step down: a model's field, or the items of a container."""
    if _is_model(annotation):
        field = annotation.model_fields.get(step)
        return _without_none(field.annotation) if field else None
    inner = [arg for arg in get_args(annotation) if arg is not Ellipsis]
    return inner[-1] if inner else None


def _without_none(annotation: Any) -> Any:
    """See through ``Model | None``."""
    arms = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else ()
    return next((arg for arg in arms if arg is not NoneType), annotation)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
