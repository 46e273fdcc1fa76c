"""Options that verbs of the command line share, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from srfa import present
from srfa.catalog import Catalog, load_catalog
from srfa.coefficients import FitConfig
from srfa.document import read_yaml
from srfa.errors import InputError, UsageError
from srfa.estimator_names import ESTIMATOR_NAMES
from srfa.microbenchmark import doubtful, read_microbenchmark
from srfa.wording import explain

ObservationFiles = Annotated[list[Path], typer.Argument(metavar="OBS...", help="Observation files (Parquet).")]
Estimator = Annotated[str, typer.Option(help=f"The estimator: {', '.join(ESTIMATOR_NAMES)}.")]
ConfigFile = Annotated[Path | None, typer.Option(help="Settings of the fit (YAML or JSON); defaults where absent.")]
Calibrations = Annotated[
    list[Path] | None, typer.Option(help="microbenchmark.json of a GPU (see 'srfa probe'); repeatable.")
]


@dataclass(frozen=True, slots=True)
class Common:
    """The shared options of one call."""

    gpus: Annotated[Path, typer.Option(help="Folder of GPU files.")] = Path("hardware")
    models: Annotated[Path, typer.Option(help="Folder of model files.")] = Path("models")
    seed: Annotated[
        int | None, typer.Option(help="Seed of everything random; default: that of the file which has one, or 0.")
    ] = None
    jobs: Annotated[int, typer.Option(min=1, help="Processes to use.")] = 1
    as_json: Annotated[bool, typer.Option("--json", help="JSON to stdout instead of tables.")] = False

    def catalog(self, microbenchmarks: Sequence[Path] | None = None) -> Catalog:
        """Read the folders of GPUs and models, and join what was measured of some GPUs.

        Raises
        ------
        CatalogError
            A folder or file cannot be used, or the figures of a microbenchmark are not those of the GPU it names.
        """
        catalog = load_catalog(self.gpus, self.models)
        return catalog.calibrated({str(path): read_microbenchmark(path) for path in microbenchmarks or ()})

    def fit_config(self, path: Path | None) -> FitConfig:
        """Read the settings of a fit; seed and processes of this call go before the file's, where they were given.

        Raises
        ------
        InputError
            The file cannot be read or a setting is unknown or out of range, with its line.
        """
        config = load_fit_config(path) if path else FitConfig()
        given = {} if self.seed is None else {"seed": self.seed}
        return config.model_copy(update=given | ({"n_workers": self.jobs} if self.jobs > 1 else {}))


def calibrated(common: Common, microbenchmarks: list[Path] | None) -> Catalog:
    """Read the catalogue with what was measured, and say what to distrust in it.

    Raises
    ------
    CatalogError
        As :meth:`Common.catalog`.
    """
    catalog = common.catalog(microbenchmarks)
    for gpu in catalog.gpus.values():
        for doubt in doubtful(gpu.microbenchmark, gpu) if gpu.microbenchmark else ():
            present.say(f"microbenchmark of {gpu.name}: {doubt}")
    return catalog


def load_fit_config(path: Path) -> FitConfig:
    """Read the settings of a fit from YAML or JSON.

    Raises
    ------
    InputError
        The file cannot be read or a setting is unknown or out of range, with its line.
    """
    document = read_yaml(path, InputError)
    try:
        return FitConfig.model_validate(document.data)
    except ValidationError as error:
        findings = [f"{document.place(item['loc'])}: {explain(item, FitConfig)}" for item in error.errors()]
        raise InputError("\n".join(findings)) from error


def amounts(option: str, given: list[str]) -> dict[str, float]:
    """Read ``NAME=AMOUNT`` options.

    Raises
    ------
    UsageError
        One of them has another form.

    Examples
    --------
    >>> amounts("--price", ["h100-sxm-80gb=2.5"])
    {'h100-sxm-80gb': 2.5}
    """
    found = {}
    for text in given:
        name, _, amount = text.partition("=")
        try:
            found[name] = float(amount)
        except ValueError as error:
            raise UsageError(f"{option} {text!r}: expected NAME=AMOUNT, for example h100-sxm-80gb=2.5") from error
    return found


def with_common(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb that takes ``common`` the shared options in its place."""
    given = inspect.signature(verb, eval_str=True).parameters.values()
    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in given if one.name != "common"]
    hints = inspect.get_annotations(Common, eval_str=True)
    shared = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(Common)
    ]

    @wraps(verb)
    def called(**arguments: Any) -> None:
        common = Common(**{one.name: arguments.pop(one.name) for one in fields(Common)})
        verb(**arguments, common=common)

    parameters = own + shared
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called
