"""Which estimator predicts best what it has not seen, as a file: ``leaderboard.json``.

:func:`srfa.standings.leaderboard_of` makes one of validation reports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from srfa.coefficients import FitConfig, Provenance
from srfa.files import read_document, write_text
from srfa.folds import Split
from srfa.metrics import Errors, Interval
from srfa.specs import Spec

Standing = Literal["best", "tied", "worse", "better", "untested", "refused"]
"""Against the best: ``tied`` where the interval of the difference holds 0, ``untested`` where there are too few jobs to
call a difference sure. ``better`` is possible on a split only: on the groups that it predicts, where they are fewer."""


class Gap(Spec):
    """How much larger a MAPE is than the best one's on the same steps.

    Parameters
    ----------
    mape_pct_points
        The difference, in percentage points.
    interval_pct_points
        Its 95 % interval by paired bootstrap over jobs; None where there are fewer than two jobs.
    n_jobs
        Jobs that were compared; an imported one that spans several groups counts once.
    """

    n_jobs: int
    mape_pct_points: float
    interval_pct_points: Interval | None


class Entry(Spec):
    """One estimator on one held-out group.

    Parameters
    ----------
    errors
        None where it was refused.
    refused
        Why there is no prediction; empty where there is one.
    converged, message
        How the fit on the other groups ended.
    gap
        Against the best of the group; None where there is nothing to compare.
    """

    estimator: str
    errors: Errors | None
    refused: str = ""
    converged: bool
    message: str
    standing: Standing
    gap: Gap | None


class HeldOutGroup(Spec):
    """All estimators on one held-out group; ``best`` is empty where none predicts it."""

    held_out: str
    n_steps: int
    n_jobs: int
    best: str
    entries: tuple[Entry, ...]


class Ranked(Spec):
    """One estimator on one split.

    Parameters
    ----------
    rank
        1 is best: by held-out groups predicted (more is better), then by ``mean_mape_pct``; equal ones share a rank.
    n_folds, n_predicted, n_converged
        Held-out groups of the split, those it predicts, and those whose fit converged.
    mean_mape_pct
        Mean of the MAPEs of the groups it predicts, each group counted once; None where it predicts none.
    standing, gap
        Against the first of the ranking, on the groups that both predict, each group counted once.
    """

    estimator: str
    rank: int
    n_folds: int
    n_predicted: int
    n_converged: int
    mean_mape_pct: float | None
    standing: Standing
    gap: Gap | None


class SplitBoard(Spec):
    """One split of one data set; ``impossible`` says why it has no groups. ``ranking`` starts with the best."""

    split: Split
    impossible: str = ""
    groups: tuple[HeldOutGroup, ...]
    ranking: tuple[Ranked, ...]


class DatasetBoard(Spec):
    """One data set, never pooled with another; ``refused`` says why it has no splits."""

    name: str
    refused: str = ""
    n_steps: int = 0
    n_jobs: int = 0
    n_impossible_labels: int = 0
    config: FitConfig | None = None
    provenance: Provenance = Provenance()
    splits: tuple[SplitBoard, ...] = ()


class Overall(Spec):
    """One estimator on all splits of all data sets: the mean of its ranks, and how many groups it predicts."""

    estimator: str
    mean_rank: float
    n_splits: int
    n_folds: int
    n_predicted: int


class Leaderboard(Spec):
    """``leaderboard.json``. ``overall`` starts with the best mean rank; it is empty where no split was possible."""

    schema_version: Literal[1] = 1
    estimators: tuple[str, ...]
    datasets: tuple[DatasetBoard, ...]
    overall: tuple[Overall, ...]


def write_leaderboard(board: Leaderboard, path: Path) -> None:
    """Write ``leaderboard.json`` under a temporary name and rename it into place.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    write_text(path, board.model_dump_json(indent=1) + "\n")


def read_leaderboard(path: Path) -> Leaderboard:
    """Read ``leaderboard.json``.

    Raises
    ------
    InputError
        The file is missing, is not JSON, or has an unknown, missing or malformed field.
    """
    return read_document(path, Leaderboard, made_by="srfa compare")
