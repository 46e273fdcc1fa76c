"""The language of ``matrix.yaml``: its keys, and everything that can be wrong with them, by file and line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field, PositiveInt, PrivateAttr, ValidationError, model_validator

from srfa.catalog import Catalog
from srfa.document import Document, read_yaml
from srfa.errors import CatalogError, MatrixError
from srfa.precision import DTYPE_BYTES, KV_CACHE_DTYPES
from srfa.specs import EngineArgs, Spec, Workload
from srfa.wording import Location, explain, path_text, unknown

T = TypeVar("T")
NonEmpty = Annotated[tuple[T, ...], Field(min_length=1)]
Finding = tuple[Location, str]
"""Where in the file, and what is wrong there."""

CELL_FIELDS: Final = ("model", "gpu", "workload")
_NAMED_AXES: Final = ("models", "gpus", "parallelism", "workloads")
_ENGINE_FIELDS: Final = tuple(EngineArgs.model_fields)
_DTYPES: Final = {"dtype": ("auto", *DTYPE_BYTES), "kv_cache_dtype": KV_CACHE_DTYPES}


class Defaults(Spec):
    """What every cell starts from."""

    engine: EngineArgs = EngineArgs()
    seeds: NonEmpty[int] = (0,)
    repeats: PositiveInt = 1
    engine_version: str = "0.32.0"
    image: str | None = None


class Axes(Spec):
    """The values whose product is the experiment.

    Parameters
    ----------
    workloads
        Names of the file's ``workloads``; all of them where the axis is left out.
    knobs
        Values by engine argument.
    """

    models: NonEmpty[str]
    gpus: NonEmpty[str]
    parallelism: NonEmpty[EngineArgs] = (EngineArgs(),)
    workloads: NonEmpty[str] | None = None
    knobs: dict[str, NonEmpty[object]] = Field(default_factory=dict)


class IncludedCell(EngineArgs):
    """One cell beside the product: what ``exclude`` says does not concern it, feasibility does."""

    model: str
    gpu: str
    workload: str
    why: str = ""


class Matrix(Spec):
    """A parsed ``matrix.yaml``.

    Parameters
    ----------
    zip
        Groups of axes (``models``, ``gpus``, ``parallelism``, ``workloads``, names of knobs) that advance together.
    exclude
        Rules: a cell is left out where all fields of one rule match. A field is ``model``, ``gpu``, ``workload`` or an
        engine argument, its value one of those listed; ``why`` is the reason that is reported.
    """

    name: str = Field(min_length=1)
    defaults: Defaults = Defaults()
    workloads: dict[str, Workload] = Field(min_length=1)
    axes: Axes | None = None
    zip: tuple[Annotated[tuple[str, ...], Field(min_length=2)], ...] = ()
    exclude: tuple[dict[str, NonEmpty[object]], ...] = ()
    include: tuple[IncludedCell, ...] = ()

    _document: Document = PrivateAttr(default_factory=lambda: Document("matrix", None))

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, data: Any) -> Any:
        """Give each workload its name and ``inf``, and each field of a rule its list."""
        if not isinstance(data, Mapping):
            return data
        return {
            **data,
            **_if_given(data, "workloads", dict, _named_workloads),
            **_if_given(data, "exclude", (list, tuple), lambda rules: tuple(map(_listed_fields, rules))),
        }

    @property
    def document(self) -> Document:
        """The file it was read from, for naming places in it."""
        return self._document


def load_matrix(path: Path) -> Matrix:
    """Read ``matrix.yaml``.

    Raises
    ------
    MatrixError
        Not YAML, an unknown key, a value of the wrong type or outside its range, axes that cannot be zipped: one line
        ``FILE:LINE: ...`` for each finding, with the value and the nearest known name.
    """
    document = read_yaml(path, MatrixError)
    try:
        matrix = Matrix.model_validate(document.data, strict=True)
    except ValidationError as error:
        raise _refusal(document, [(item["loc"], explain(item, Matrix)) for item in error.errors()]) from error
    matrix._document = document
    check(matrix)
    return matrix


def check(matrix: Matrix, catalog: Catalog | None = None) -> None:
    """Refuse what the types of :class:`Matrix` cannot: names of arguments and axes, and those in the catalogue.

    Raises
    ------
    MatrixError
        With one line for each finding.
    """
    findings = [*_value_findings(matrix), *_zip_findings(matrix)]
    if catalog is not None:
        findings += _name_findings(matrix, catalog)
    if findings:
        raise _refusal(matrix.document, findings)


def given(arguments: EngineArgs) -> dict[str, object]:
    """Return what a file set, without the defaults."""
    return {
        name: getattr(arguments, name) for name in type(arguments).model_fields if name in arguments.model_fields_set
    }


def axis_points(matrix: Matrix, axes: Axes) -> dict[str, list[dict[str, object]]]:
    """Return every axis by name, each as the fields of a cell that it sets at each of its points."""
    workloads = axes.workloads or tuple(matrix.workloads)
    return {
        "models": [{"model": name} for name in axes.models],
        "gpus": [{"gpu": name} for name in axes.gpus],
        "parallelism": [given(entry) for entry in axes.parallelism],
        "workloads": [{"workload": name} for name in workloads],
        **{knob: [{knob: value} for value in values] for knob, values in axes.knobs.items()},
    }


def _value_findings(matrix: Matrix) -> Iterator[Finding]:
    """Check what the types of :class:`Matrix` leave open: engine arguments by name, names of workloads, rules."""
    yield from _dtype_findings(("defaults", "engine"), matrix.defaults.engine)
    for name, workload in matrix.workloads.items():
        if workload.name != name:
            yield ("workloads", name, "name"), f"name={workload.name!r} repeats the key {name!r} differently; remove it"
    for index, cell in enumerate(matrix.include):
        yield from _dtype_findings(("include", index), cell)
    for index, rule in enumerate(matrix.exclude):
        yield from _rule_findings(("exclude", index), rule)
    if matrix.axes:
        yield from _axes_findings(matrix.axes)


def _axes_findings(axes: Axes) -> Iterator[Finding]:
    for index, entry in enumerate(axes.parallelism):
        yield from _dtype_findings(("axes", "parallelism", index), entry)
        for name in entry.model_fields_set & set(axes.knobs):
            yield ("axes", "knobs", name), f"knob {name!r} is also set by axes.parallelism[{index}]; keep one of them"
    for name, values in axes.knobs.items():
        if name not in _ENGINE_FIELDS:
            yield ("axes", "knobs", name), unknown("knob", name, _ENGINE_FIELDS)
        else:
            yield from _argument_findings(("axes", "knobs", name), name, values)


def _rule_findings(location: Location, rule: Mapping[str, tuple[object, ...]]) -> Iterator[Finding]:
    if not set(rule) - {"why"}:
        yield location, "a rule without fields would exclude everything; name the fields to match"
    for name, values in rule.items():
        if name in _ENGINE_FIELDS:
            yield from _argument_findings((*location, name), name, values)
        elif name not in (*CELL_FIELDS, "why"):
            yield (*location, name), unknown("field", name, (*CELL_FIELDS, "why", *_ENGINE_FIELDS))
        else:
            yield from _text_findings((*location, name), values)


def _text_findings(location: Location, values: Sequence[object]) -> Iterator[Finding]:
    for index, value in enumerate(values):
        if not isinstance(value, str):
            yield (*location, index), f"{path_text(location)}={value!r} should be text"


def _argument_findings(location: Location, name: str, values: Sequence[object]) -> Iterator[Finding]:
    """Check each value of one engine argument as vLLM's argument of that name."""
    for index, value in enumerate(values):
        place = (*location, index)
        try:
            arguments = EngineArgs.model_validate({name: value}, strict=True)
        except ValidationError as error:
            yield place, explain(error.errors()[0] | {"loc": place}, EngineArgs)
        else:
            yield from _dtype_findings(place, arguments, key=None)


def _dtype_findings(location: Location, arguments: EngineArgs, key: str | None = "") -> Iterator[Finding]:
    """Check the two arguments that are free text here and a closed list in vLLM."""
    for name, known in _DTYPES.items():
        value = getattr(arguments, name)
        if value not in known:
            yield location if key is None else (*location, name), unknown(name, value, known)


def _zip_findings(matrix: Matrix) -> Iterator[Finding]:
    axes = axis_points(matrix, matrix.axes) if matrix.axes else {}
    seen: Counter[str] = Counter()
    for index, group in enumerate(matrix.zip):
        for position, name in enumerate(group):
            seen[name] += 1
            if name not in axes:
                yield ("zip", index, position), unknown("axis", name, {*_NAMED_AXES, *axes})
            elif seen[name] > 1:
                yield ("zip", index, position), f"axis {name!r} is zipped twice; name it once"
        lengths = {name: len(axes[name]) for name in group if name in axes}
        if len(set(lengths.values())) > 1:
            written = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            yield ("zip", index), f"zipped axes must be equally long: {written}; make them equal or remove the group"


def _name_findings(matrix: Matrix, catalog: Catalog) -> Iterator[Finding]:
    """Report each unknown name once, where it first stands."""
    seen: set[tuple[str, str]] = set()
    for location, field_name, value in _names(matrix):
        if (field_name, value) in seen:
            continue
        seen.add((field_name, value))
        if field_name == "workload":
            if value not in matrix.workloads:
                yield location, unknown("workload", value, matrix.workloads)
            continue
        try:
            (catalog.resolve_model if field_name == "model" else catalog.resolve_gpu)(value)
        except CatalogError as error:
            yield location, str(error)


def _names(matrix: Matrix) -> Iterator[tuple[Location, str, str]]:
    """Yield every mention of a model, GPU or workload: where, which of the three, and the name."""
    if matrix.axes:
        named = {"models": matrix.axes.models, "gpus": matrix.axes.gpus, "workloads": matrix.axes.workloads or ()}
        for axis, names in named.items():
            yield from ((("axes", axis, index), axis.removesuffix("s"), name) for index, name in enumerate(names))
    for index, cell in enumerate(matrix.include):
        yield from ((("include", index, name), name, getattr(cell, name)) for name in CELL_FIELDS)
    for index, rule in enumerate(matrix.exclude):
        for name in CELL_FIELDS:
            for position, value in enumerate(rule.get(name, ())):
                yield ("exclude", index, name, position), name, str(value)


def _if_given(data: Mapping[str, Any], key: str, kind: Any, change: Any) -> dict[str, Any]:
    return {key: change(data[key])} if isinstance(data.get(key), kind) else {}


def _named_workloads(workloads: dict[str, Any]) -> dict[str, Any]:
    return {name: _named_workload(name, entry) for name, entry in workloads.items()}


def _named_workload(name: str, entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    endless = {"request_rate": math.inf} if entry.get("request_rate") == "inf" else {}
    return {"name": name, **entry, **endless}


def _listed_fields(rule: Any) -> Any:
    if not isinstance(rule, Mapping):
        return rule
    return {key: tuple(value) if isinstance(value, (list, tuple)) else (value,) for key, value in rule.items()}


def _refusal(document: Document, findings: Sequence[Finding]) -> MatrixError:
    return MatrixError("\n".join(f"{document.place(location)}: {text}" for location, text in findings))
