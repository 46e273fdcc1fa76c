"""What a cross-validation found, as a file: ``report.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from srfa.coefficients import FitConfig, FoldSummary, Provenance, Transfer
from srfa.files import read_document, write_text
from srfa.folds import Split
from srfa.metrics import Errors, JobError
from srfa.specs import Spec


class Partition(Spec):
    """The errors of a part of a fold, so that errors of opposite sign cannot cancel unseen."""

    kind: Literal["workload", "model", "gpu", "phase"]
    name: str
    errors: Errors


class FoldReport(Spec):
    """One held-out group.

    Parameters
    ----------
    n_shared_jobs
        Job ids with steps on both sides: imported jobs that span several of the groups.
    errors
        None where the fold failed.
    failure
        Why there is no prediction; empty where there is one.
    converged, message
        How the fit on the other groups ended.
    at_bound
        Coefficients of that fit which ended on a bound, as ``block.name``.
    """

    held_out: str
    n_train_steps: int
    n_train_jobs: int
    n_shared_jobs: int = 0
    errors: Errors | None
    failure: str = ""
    converged: bool
    message: str
    at_bound: tuple[str, ...] = ()
    partitions: tuple[Partition, ...] = ()
    jobs: tuple[JobError, ...] = ()


class GroupCoverage(Spec):
    """How many steps of a held-out group lay inside the interval that the other groups gave.

    Parameters
    ----------
    n_groups
        Groups the interval was measured on, by holding each of them out of the rest.
    p05, p95
        The interval, as offsets of ``log(measured / predicted)``.
    share_inside
        Share of the group's steps inside it; the nominal level is 0.9.
    """

    held_out: str
    n_steps: int
    n_groups: int
    p05: float
    p95: float
    share_inside: float


class ValidationReport(Spec):
    """One estimator on one split.

    Parameters
    ----------
    impossible
        Why the split has no folds; empty where it has.
    pooled
        The errors over all held-out steps together; None where no fold succeeded.
    n_impossible_labels
        Steps left out because their label undercuts the speed of light.
    coverage
        Of prediction intervals, by held-out group; empty where it was not asked for.
    transfer
        What the fits knew of the hardware beside its datasheet; reports that differ in it are never compared.
    """

    schema_version: Literal[1] = 1
    estimator: str
    split: Split
    transfer: Transfer = "zero-shot"
    config: FitConfig
    n_steps: int
    n_jobs: int
    n_impossible_labels: int = 0
    impossible: str = ""
    pooled: Errors | None
    folds: tuple[FoldReport, ...]
    coverage: tuple[GroupCoverage, ...] = ()
    provenance: Provenance = Provenance()


class ReportFile(Spec):
    """``report.json``: the reports of one or more splits."""

    schema_version: Literal[1] = 1
    reports: tuple[ValidationReport, ...]


def fold_summaries(report: ValidationReport) -> tuple[FoldSummary, ...]:
    """Return the report in the short form that travels with coefficients; failed folds are not in it."""
    return tuple(
        FoldSummary(
            split=report.split, held_out=fold.held_out, n_steps=fold.errors.n_steps, mape_pct=fold.errors.mape_pct
        )
        for fold in report.folds
        if fold.errors
    )


def write_reports(reports: tuple[ValidationReport, ...], path: Path) -> None:
    """Write ``report.json`` under a temporary name and rename it into place.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    write_text(path, ReportFile(reports=reports).model_dump_json(indent=1) + "\n")


def read_reports(path: Path) -> tuple[ValidationReport, ...]:
    """Read ``report.json``.

    Raises
    ------
    InputError
        The file is missing, is not JSON, or has an unknown, missing or malformed field.
    """
    return read_document(path, ReportFile, made_by="srfa validate").reports
