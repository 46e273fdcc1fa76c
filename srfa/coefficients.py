"""``coefficients.json``: everything another program needs to predict with a fit, and where the fit came from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from srfa.errors import CoefficientsError
from srfa.files import write_text
from srfa.grades import Intervals, TrainingDomain
from srfa.simulated import is_simulated
from srfa.specs import Spec

Transfer = Literal["zero-shot", "calibrated", "few-shot"]
_DIGITS_SHOWN = 12
"""How a fit reaches hardware: by datasheets alone, with a microbenchmark of it, or refitted to some steps on it."""


class FitConfig(Spec):
    """Settings of a fit; where a tuple is given, cross-validation grouped by job chooses one entry.

    Parameters
    ----------
    lambda_gamma, lambda_beta
        Ridge on the scaled overhead and compute coefficients (the paper's dual regularisation).
    huber_delta
        Where the loss turns from quadratic to linear, in relative error.
    huber_delta_iqr
        Further such thresholds, in interquartile ranges of the relative residuals that a first robust fit leaves: they
        adapt to the noise of the data. The design's reviewers ask for 1.5; with ``huber_delta`` empty only these count.
    prior_weight
        Weight of the prior of ``srfa``; the loss is the mean Huber loss of relative errors.
    winsorise_quantile
        Labels above this quantile of their job are cut down to it before a fit; 1 switches it off.
    warmup_steps
        Steps dropped at the start of each job, beyond the warm-up that collection already leaves out.
    kv_thresholds
        Where the queue features for KV pressure set in: "getting full" and "critical", as ratios of the KV cache.
    folds
        Folds of the search over settings.
    n_workers
        Folds of that search tried at a time. It changes no result and is not written with the fit.
    """

    lambda_gamma: tuple[float, ...] = (0.001, 0.01, 0.1)
    lambda_beta: tuple[float, ...] = (0.0001, 0.001, 0.01)
    huber_delta: tuple[PositiveFloat, ...] = (0.05, 0.1, 0.3)
    huber_delta_iqr: tuple[PositiveFloat, ...] = ()
    prior_weight: tuple[PositiveFloat, ...] = (0.0003,)
    winsorise_quantile: float = Field(default=0.99, gt=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    kv_thresholds: tuple[float, float] = (0.7, 0.9)
    folds: PositiveInt = 5
    max_iterations: PositiveInt = 2000
    convex_max_rows: PositiveInt = 5000
    seed: int = 0
    n_workers: PositiveInt = Field(default=1, exclude=True)

    @model_validator(mode="after")
    def _has_a_threshold(self) -> FitConfig:
        if not self.huber_delta and not self.huber_delta_iqr:
            raise ValueError("huber_delta and huber_delta_iqr are both empty; give one of them an entry, such as 0.1")
        return self


class CoefficientBlock(Spec):
    """The coefficients of one block of features.

    Parameters
    ----------
    names, units
        The feature's name and unit; coefficient times feature is microseconds.
    values
        The coefficients.
    lower, upper
        Each one's bounds, None where there is none.
    at_bound
        True where the fit ended on the bound: the data ask for less than the physics allows.
    scales
        Divisors the columns had while fitting; a coefficient's ridge acts on ``value * scale``.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    values: tuple[float, ...]
    lower: tuple[float | None, ...]
    upper: tuple[float | None, ...]
    at_bound: tuple[bool, ...]
    scales: tuple[float, ...]

    @model_validator(mode="after")
    def _parallel(self) -> CoefficientBlock:
        parts = (self.names, self.units, self.values, self.lower, self.upper, self.at_bound, self.scales)
        if len({len(part) for part in parts}) != 1:
            raise ValueError("names, units, values, lower, upper, at_bound and scales must have equal lengths")
        return self

    def __getitem__(self, name: str) -> float:
        """Return the value of the coefficient called ``name``."""
        return self.values[self.names.index(name)]


class Provenance(Spec):
    """Where a fit came from: data by hash, jobs by id, software by version.

    Parameters
    ----------
    transfer
        What was known of the hardware beside its datasheet: nothing, a microbenchmark, or a fit of other data.
    transfer_sha256
        The files that knowledge came from: microbenchmarks and the prior coefficients.
    """

    data_sha256: dict[str, str] = Field(default_factory=dict)
    transfer: Transfer = "zero-shot"
    transfer_sha256: dict[str, str] = Field(default_factory=dict)
    job_ids: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    software_versions: tuple[str, ...] = ()
    n_steps: int = 0
    srfa_version: str = ""
    code_version: str = ""
    library_versions: dict[str, str] = Field(default_factory=dict)

    @property
    def data(self) -> frozenset[str]:
        """What tells these data from others: the files' digests, whatever the files are called, else the jobs' ids.

        Measured twice, a matrix has the same jobs and other data; so job ids count only where no file was hashed.
        """
        return frozenset(self.data_sha256.values()) or frozenset(self.job_ids)

    @property
    def data_in_words(self) -> str:
        """The data as an error names them.

        >>> Provenance(data_sha256={"o.parquet": "0123456789abcdef"}, job_ids=("a", "b")).data_in_words
        '2 jobs, sha256 0123456789ab of o.parquet'
        >>> Provenance().data_in_words
        'not recorded'
        """
        if not self.data:
            return "not recorded"
        files = (f"sha256 {digest[:_DIGITS_SHOWN]} of {name}" for name, digest in sorted(self.data_sha256.items()))
        return ", ".join((f"{len(self.job_ids)} jobs", *files))

    @property
    def simulated_versions(self) -> tuple[str, ...]:
        """The engines among ``software_versions`` that were simulated: where there is one, no measurement is meant."""
        return tuple(version for version in self.software_versions if is_simulated(version))


class FoldSummary(Spec):
    """One held-out group of a validation, short enough to travel with the coefficients."""

    split: str
    held_out: str
    n_steps: int
    mape_pct: float


class Coefficients(Spec):
    """A fitted estimator as data. Reading an unknown field is an error.

    Parameters
    ----------
    blocks
        What is learned as named coefficients.
    constants
        Single figures the prediction needs beside them.
    arrays
        Numbers that have no names of their own (the nodes of a forest's trees), flat, by what they are.
    chosen
        What the search over settings chose, and how the solve went.
    domain
        What the fit saw, by which a step to predict is graded; None where it was not recorded.
    intervals
        Prediction intervals by grade; None where no validation measured any.
    """

    schema_version: Literal[1] = 1
    estimator: str
    blocks: dict[str, CoefficientBlock]
    constants: dict[str, float] = Field(default_factory=dict)
    arrays: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    chosen: dict[str, float] = Field(default_factory=dict)
    converged: bool
    message: str
    config: FitConfig
    provenance: Provenance = Field(default_factory=Provenance)
    validation: tuple[FoldSummary, ...] = ()
    domain: TrainingDomain | None = None
    intervals: Intervals | None = None

    @property
    def learned_sha256(self) -> str:
        """Hex sha256 of what predictions depend on: estimator, blocks, constants and arrays as canonical JSON."""
        learned = self.model_dump(mode="json", include={"estimator", "blocks", "constants", "arrays"})
        return hashlib.sha256(json.dumps(learned, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_coefficients(path: Path) -> Coefficients:
    """Read ``coefficients.json``.

    Raises
    ------
    CoefficientsError
        The file is missing, is not JSON, or has an unknown, missing or malformed field.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CoefficientsError(f"{path}: cannot be read ({error.strerror}); fit one with 'srfa fit'") from error
    try:
        return Coefficients.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise CoefficientsError(
            f"{path}: {place}: {first['msg']} ({error.error_count()} problem(s)); name the coefficients that 'srfa fit'"
            " wrote, or fit anew"
        ) from error


def read_prior(path: Path, estimator: str) -> Coefficients:
    """Read the coefficients that a few-shot fit of ``estimator`` starts from.

    Raises
    ------
    CoefficientsError
        The file cannot be used, or another estimator's fit is in it.
    """
    prior = read_coefficients(path)
    if prior.estimator != estimator:
        raise CoefficientsError(
            f"{path}: estimator={prior.estimator!r} cannot be the prior of {estimator!r}; "
            f"fit with --estimator {prior.estimator}, or name coefficients of {estimator}"
        )
    return prior


def write_coefficients(coefficients: Coefficients, path: Path) -> None:
    """Write ``coefficients.json`` under a temporary name and rename it into place.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    write_text(path, coefficients.model_dump_json(indent=1) + "\n")
