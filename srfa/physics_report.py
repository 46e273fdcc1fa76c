"""What a check of physics found, as data: for the gate, a file, and people."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from srfa.coefficients import Coefficients
from srfa.errors import InputError
from srfa.files import read_document, write_text
from srfa.specs import Spec

PhysicsRule = Literal[
    "positive_and_finite",
    "monotone_in_prefill_tokens",
    "monotone_in_context",
    "monotone_in_batch",
    "roofline_floor",
    "tp_speedup",
    "tp_slowdown",
    "monotone_in_model_size",
]


class PhysicsFinding(Spec):
    """One rule over all batches it was asked of.

    Parameters
    ----------
    n_checked, n_broken
        Batches (or pairs of them) the rule was asked of, and those that break it.
    value, limit
        The worst case and what it may be; None where the rule could not be asked.
    worst
        The worst case in words: GPU, model, parallelism, batch.
    sentence
        The finding for people.
    """

    rule: PhysicsRule
    n_checked: int
    n_broken: int
    value: float | None
    limit: float | None
    worst: str
    passed: bool
    sentence: str


class PhysicsReport(Spec):
    """What an estimator's predictions were asked, and what came of it.

    Parameters
    ----------
    coefficients_sha256
        :attr:`srfa.coefficients.Coefficients.learned_sha256` of what was asked; empty in files of older versions.
    configurations
        The GPUs, models and parallel sizes that batches were drawn on, in words.
    """

    schema_version: Literal[1] = 1
    estimator: str
    coefficients_sha256: str = ""
    n_batches: int
    seed: int
    configurations: tuple[str, ...]
    findings: tuple[PhysicsFinding, ...]

    @property
    def passed(self) -> bool:
        """True where every rule holds."""
        return all(finding.passed for finding in self.findings)

    @property
    def broken(self) -> tuple[PhysicsFinding, ...]:
        """The rules that do not hold."""
        return tuple(finding for finding in self.findings if not finding.passed)

    def require_of(self, coefficients: Coefficients) -> None:
        """Do nothing where exactly these coefficients were asked.

        Raises
        ------
        InputError
            Others were, or the file is too old to say.
        """
        asked, given = self.coefficients_sha256, coefficients.learned_sha256
        if asked != given:
            raise InputError(
                f"physics was checked on other coefficients of {self.estimator} (sha256 {asked[:12] or 'not recorded'})"
                f" than these ({given[:12]}); run 'srfa physics --coefficients FILE --out physics.json' on them"
            )


def write_physics(report: PhysicsReport, path: Path) -> None:
    """Write ``physics.json`` under a temporary name and rename it into place.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    write_text(path, report.model_dump_json(indent=1) + "\n")


def read_physics(path: Path) -> PhysicsReport:
    """Read ``physics.json``.

    Raises
    ------
    InputError
        The file is missing, is not JSON, or has an unknown, missing or malformed field.
    """
    return read_document(path, PhysicsReport, made_by="srfa physics --out")
