"""A leaderboard as tables of text, for the command line and for reports."""

from __future__ import annotations

from collections.abc import Iterator

from srfa.leaderboard import Entry, Leaderboard, Ranked, SplitBoard
from srfa.page import Grid, Section
from srfa.standings import FEWEST_JOBS

LEGEND = (
    "MAPE in percent, 95 % interval in brackets. * best; = cannot be told from the best (paired bootstrap over jobs);"
    f" ? fewer than {FEWEST_JOBS} jobs, too few to tell; ! the fit did not converge."
)
SUMMARY_LEGEND = (
    "Rank and mean MAPE over the held-out groups, each counted once. [2/4]: predicts two of four groups, and ranks"
    " behind those that predict more; + better than the first on the groups that it predicts."
)
_MARKS = {"best": " *", "tied": " =", "untested": " ?", "better": " +", "worse": "", "refused": ""}
_NAMED = 3
"""Held-out groups that one row of refusals names; of more it says how many there are."""


def columns_of(board: Leaderboard) -> tuple[str, ...]:
    """Return the estimators in the order in which tables show them: the best mean rank first."""
    return tuple(row.estimator for row in board.overall) or board.estimators


def split_grid(board: SplitBoard, estimators: tuple[str, ...]) -> Grid:
    """Return the held-out groups as rows and the estimators as columns."""
    rows = []
    for group in board.groups:
        cells = {entry.estimator: _entry_text(entry) for entry in group.entries}
        rows.append((group.held_out, str(group.n_steps), str(group.n_jobs), *(cells[name] for name in estimators)))
    return Grid(("held out", "steps", "jobs", *estimators), tuple(rows))


def summary_grid(board: Leaderboard) -> Grid:
    """Return one row a data set and split, and last the mean of the ranks; columns are the estimators."""
    estimators = columns_of(board)
    rows = []
    for dataset in board.datasets:
        for split in dataset.splits:
            if split.ranking:
                cells = {row.estimator: _ranked_text(row) for row in split.ranking}
                rows.append((dataset.name, split.split, str(len(split.groups)), *(cells[name] for name in estimators)))
    if rows:
        rows.append(("all", "mean rank", str(board.overall[0].n_folds), *_mean_ranks(board)))
    return Grid(("data set", "split", "groups", *estimators), tuple(rows))


def left_out_grid(board: Leaderboard) -> Grid:
    """Return what is not on the board, with its reason: data sets, splits, and groups that an estimator refused."""
    heads = ("data set", "split", "estimator", "held out", "reason")
    return Grid(heads, tuple(_left_out(board)))


def leaderboard_sections(board: Leaderboard, figure: str = "") -> tuple[Section, ...]:
    """Return the summary with the picture ``figure``, then the groups of each split, as sections of a report."""
    estimators = columns_of(board)
    left_out = tuple(": ".join(part for part in row[1:] if part) for row in left_out_grid(board).rows)
    summary = Section("Leaderboard", (LEGEND, SUMMARY_LEGEND), left_out, summary_grid(board), figure)
    return summary, *(
        Section(f"Leaderboard: {split.split}", grid=split_grid(split, estimators))
        for dataset in board.datasets
        for split in dataset.splits
        if split.groups
    )


def _entry_text(entry: Entry) -> str:
    if entry.errors is None:
        return "refused"
    interval = entry.errors.mape_interval_pct
    around = f" ({interval.low:.1f}-{interval.high:.1f})" if interval else ""
    return f"{entry.errors.mape_pct:.1f}{around}{_MARKS[entry.standing]}{'' if entry.converged else ' !'}"


def _ranked_text(row: Ranked) -> str:
    if row.mean_mape_pct is None:
        return f"{row.rank}. refused"
    unconverged = " !" if row.n_converged < row.n_predicted else ""
    coverage = f" [{row.n_predicted}/{row.n_folds}]" if row.n_predicted < row.n_folds else ""
    return f"{row.rank}. {row.mean_mape_pct:.1f}{_MARKS[row.standing]}{unconverged}{coverage}"


def _mean_ranks(board: Leaderboard) -> Iterator[str]:
    for row in board.overall:
        coverage = f" [{row.n_predicted}/{row.n_folds}]" if row.n_predicted < row.n_folds else ""
        yield f"{row.mean_rank:.1f}{coverage}"


def _left_out(board: Leaderboard) -> Iterator[tuple[str, ...]]:
    for dataset in board.datasets:
        if dataset.refused:
            yield dataset.name, "", "", "", dataset.refused
        for split in dataset.splits:
            if split.impossible:
                yield dataset.name, split.split, "", "", split.impossible
            for (estimator, reason), groups in _refusals(split).items():
                yield dataset.name, split.split, estimator, _named(groups), reason


def _refusals(board: SplitBoard) -> dict[tuple[str, str], list[str]]:
    """Return the held-out groups of each estimator and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for group in board.groups:
        for entry in group.entries:
            if entry.refused:
                found.setdefault((entry.estimator, entry.refused), []).append(group.held_out)
    return found


def _named(groups: list[str]) -> str:
    more = f" and {len(groups) - _NAMED} more" if len(groups) > _NAMED else ""
    return ", ".join(groups[:_NAMED]) + more
