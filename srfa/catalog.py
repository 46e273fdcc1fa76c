"""``hardware/*.json`` and ``models/<org>/<name>/config.json`` as one :class:`Catalog` of GPUs and models by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from pydantic import ValidationError

from srfa.datasheet import implausible
from srfa.errors import CatalogError
from srfa.hf_config import load_model_spec
from srfa.microbenchmark import impossible
from srfa.specs import GpuSpec, Microbenchmark, ModelSpec
from srfa.wording import explain, unknown

__all__ = ["Catalog", "load_catalog", "load_gpu_spec", "load_model_spec"]

HfConfig = Mapping[str, Any]
"""A parsed ``config.json``: whatever Hugging Face put there."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """GPUs and models by name.

    Parameters
    ----------
    gpus
        By stem of the file in ``hardware/``.
    models
        By Hugging Face id.
    model_configs
        The untouched ``config.json`` of each model, by the same ids: what a model written on the spot starts from.
    """

    gpus: Mapping[str, GpuSpec]
    models: Mapping[str, ModelSpec]
    model_configs: Mapping[str, HfConfig] = field(default_factory=dict)

    def resolve_gpu(self, name: str) -> GpuSpec:
        """Return the GPU called ``name``; the case of letters does not matter.

        Raises
        ------
        CatalogError
            No such GPU; the text has the nearest name and all names.
        """
        return self.gpus[_resolve("GPU", name, self.gpus)]

    def resolve_model(self, name: str) -> ModelSpec:
        """Return the model with this id, or the only one whose id, or last part of it, is ``name`` in any case.

        Raises
        ------
        CatalogError
            No such model, or several; the text has the nearest id and all ids.
        """
        return self.models[_resolve("model", name, self.models)]

    def with_gpu(self, spec: GpuSpec) -> Catalog:
        """Return this catalogue with the GPU of that name replaced or added: a profile measured at run time."""
        return replace(self, gpus=MappingProxyType({**self.gpus, spec.name: spec}))

    def calibrated(self, microbenchmarks: Mapping[str, Microbenchmark]) -> Catalog:
        """Return this catalogue with measured figures joined to the GPUs they name; datasheets stay as they are.

        Parameters
        ----------
        microbenchmarks
            By the place each came from, a file as a rule, which errors begin with.

        Raises
        ------
        CatalogError
            A GPU is unknown, has two microbenchmarks, or cannot have these figures.
        """
        places: dict[str, str] = {}
        measured_gpus = {}
        for place, measured in microbenchmarks.items():
            gpu = self._measured_gpu(place, measured)
            if gpu.name in places:
                raise CatalogError(
                    f"{place}: gpu={measured.gpu!r} is measured in {places[gpu.name]} too; leave one out"
                )
            if findings := impossible(measured, gpu):
                _refuse(place, findings)
            places[gpu.name] = place
            measured_gpus[gpu.name] = gpu.model_copy(update={"microbenchmark": measured})
        return replace(self, gpus=MappingProxyType({**self.gpus, **measured_gpus}))

    def _measured_gpu(self, place: str, measured: Microbenchmark) -> GpuSpec:
        """Return the GPU whose name or vendor's name a microbenchmark carries."""
        wanted = measured.gpu.casefold()
        of_vendor = [gpu for gpu in self.gpus.values() if gpu.vendor_name.casefold() == wanted]
        try:
            return of_vendor[0] if len(of_vendor) == 1 else self.resolve_gpu(measured.gpu)
        except CatalogError as error:
            raise CatalogError(f"{place}: gpu={measured.gpu!r}: {error}") from error


def load_catalog(hardware: Path, models: Path) -> Catalog:
    """Read every ``*.json`` of ``hardware`` and every ``<org>/<name>/config.json`` of ``models``.

    Raises
    ------
    CatalogError
        A folder or file is missing, malformed or implausible; each finding names file, key, value and remedy.
    """
    gpus = {path.stem: load_gpu_spec(path) for path in _listed(hardware, "*.json")}
    configs = {
        path.parent.relative_to(models).as_posix(): (path, _read_json(path))
        for path in _listed(models, "*/*/config.json")
    }
    specs = {name: load_model_spec(name, facts, where=str(path)) for name, (path, facts) in configs.items()}
    return Catalog(
        gpus=MappingProxyType(gpus),
        models=MappingProxyType(specs),
        model_configs=MappingProxyType({name: facts for name, (_, facts) in configs.items()}),
    )


def load_gpu_spec(path: Path) -> GpuSpec:
    """Read one file of ``hardware/`` and check that its figures are possible.

    Raises
    ------
    CatalogError
        The file is malformed, its name is not its stem, or a figure is implausible (with sparsity, in another unit).
    """
    document = _read_json(path)
    try:
        spec = GpuSpec.model_validate(document, strict=True)
    except ValidationError as error:
        _refuse(path, [explain(item, GpuSpec) for item in error.errors()])
    if spec.name != path.stem:
        _refuse(path, [f"name={spec.name!r} should be {path.stem!r}, the file's name; rename one of them"])
    findings = implausible(spec)
    if spec.microbenchmark:
        findings += [f"microbenchmark.{finding}" for finding in impossible(spec.microbenchmark, spec)]
    if findings:
        _refuse(path, findings)
    return spec


def _resolve(kind: str, name: str, known: Mapping[str, object]) -> str:
    if name in known:
        return name
    wanted = name.casefold()
    for matches in (
        [full for full in known if full.casefold() == wanted],
        [full for full in known if full.casefold().rpartition("/")[2] == wanted],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise CatalogError(f"{kind} {name!r} is ambiguous; write one of {', '.join(sorted(matches))}")
    raise CatalogError(unknown(kind, name, known))


def _listed(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern)) if folder.is_dir() else []
    if not found:
        state = "holds no" if folder.is_dir() else "is not a folder with"
        raise CatalogError(f"{folder}: {state} {pattern}; name another folder or add a file")
    return found


def _read_json(path: Path) -> HfConfig:
    try:
        document = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as error:
        raise CatalogError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from error
    except (OSError, ValueError) as error:
        raise CatalogError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise CatalogError(f"{path}: should hold one JSON object {{...}}, not {type(document).__name__}")
    return document


def _unique_keys(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} stands there twice; remove one")
    return document


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no figure; give a finite number")


def _refuse(place: Path | str, findings: Iterable[str]) -> NoReturn:
    raise CatalogError("\n".join(f"{place}: {finding}" for finding in findings))
