"""Every engine argument as an option of a verb, by vLLM's own name: made from :class:`srfa.specs.EngineArgs`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Final, get_args

import typer

from srfa.specs import EngineArgs

_KINDS: Final = (bool, int, float, str)


def with_engine(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb that takes ``engine`` one option for every engine argument in its place.

    The verb gets a dictionary of those that were given.
    """
    own = [one for one in inspect.signature(verb, eval_str=True).parameters.values() if one.name != "engine"]
    options = [_option(name) for name in EngineArgs.model_fields if name != "seed"]

    @wraps(verb)
    def called(**arguments: Any) -> None:
        given = {one.name: arguments.pop(one.name) for one in options}
        verb(**arguments, engine={name: value for name, value in given.items() if value is not None})

    parameters = own + options
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _option(name: str) -> inspect.Parameter:
    kind = _kind(EngineArgs.model_fields[name].annotation)
    flag = f"--{name.replace('_', '-')}"
    names = f"{flag}/--no-{flag.removeprefix('--')}" if kind is bool else flag
    annotation: Any = Annotated[kind | None, typer.Option(names, show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kind(annotation: Any) -> Any:
    """Return the plain type of a field, through ``Annotated``, ``None`` and ``Literal``."""
    if annotation in _KINDS:
        return annotation
    inner = [_kind(one) for one in get_args(annotation) if one is not type(None) and not isinstance(one, str)]
    return next((one for one in inner if one in _KINDS), str)
