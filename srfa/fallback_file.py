"""Coefficients of single configurations for where the estimator is not good enough: ``fallbacks.json`` of a release.

They hold on the configuration they name and nowhere else. Nothing takes them by itself: whoever reads them with
:func:`read_fallbacks` decides, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import FiniteFloat

from srfa.coefficients import Coefficients
from srfa.files import read_document, write_text
from srfa.specs import Spec

FALLBACKS_FILE = "fallbacks.json"


class Fallback(Spec):
    """What stands in for the estimator on one configuration.

    Parameters
    ----------
    configuration
        As :func:`srfa.estimators.blackbox.configuration_name` says it.
    sentence
        Why it is here, for people.
    estimator_e2e_pct
        Median closed-loop error of E2E that the estimator had there, on folds that never saw the jobs.
    held_out_e2e_pct
        The same of these coefficients, each job replayed on a fit to the configuration's other workloads, or other jobs
        where it has one workload; None where it has one job only.
    in_sample_e2e_pct
        The same with the coefficients themselves, which saw the jobs.
    coefficients
        Fitted to all jobs of the configuration.
    """

    configuration: str
    sentence: str
    job_ids: tuple[str, ...]
    estimator_e2e_pct: FiniteFloat
    held_out_e2e_pct: FiniteFloat | None
    in_sample_e2e_pct: FiniteFloat
    coefficients: Coefficients


class FallbackFile(Spec):
    """``fallbacks.json``."""

    schema_version: Literal[1] = 1
    estimator: str
    fallbacks: tuple[Fallback, ...]


def write_fallbacks(estimator: str, fallbacks: Sequence[Fallback], path: Path) -> None:
    """Write ``fallbacks.json`` under a temporary name and rename it into place.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    document = FallbackFile(estimator=estimator, fallbacks=tuple(fallbacks))
    write_text(path, document.model_dump_json(indent=1) + "\n")


def read_fallbacks(folder: Path) -> tuple[Fallback, ...]:
    """Return the fallbacks of a release's folder; none where it holds no such file.

    Raises
    ------
    InputError
        The file is not JSON, or has an unknown, missing or malformed field.
    """
    path = folder / FALLBACKS_FILE
    return read_document(path, FallbackFile, made_by="flows.train").fallbacks if path.exists() else ()
