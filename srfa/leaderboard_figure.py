"""The picture of a leaderboard: one panel a data set and split, one line an estimator. Drawn without a display."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from srfa.errors import UsageError
from srfa.files import writing
from srfa.leaderboard import DatasetBoard, Entry, Leaderboard, Ranked, SplitBoard
from srfa.ragged import FloatArray

LEADERBOARD_FIGURE = "leaderboard.png"
_FORMATS = (".png", ".svg", ".pdf")
_MOST_COLUMNS = 3
_MOST_COLOURED = 6
"""Held-out groups that get a colour and a whisker each; more are drawn as grey dots alone."""
_DISTANCE, _MOST_SPREAD = 0.22, 0.6
"""Between the groups of an estimator, and between the first and the last, as a share of the estimator's line."""
_KEY = (
    "star: best of its held-out group; bar and number: mean over the groups, bold where it is the best or cannot be"
    " told from it; [1/2] in red: predicts one of two groups"
)
_KEY_POINTS, _KEY_CHARACTERS_AN_IN = 8, 16
"""Size of the key, and how many of its characters an inch of the figure holds."""
_LOGARITHMIC_FROM = 6.0
"""Largest over smallest MAPE of a panel from which its axis is logarithmic."""


def check_picture(path: Path) -> None:
    """Do nothing where a picture of that name can be drawn.

    Raises
    ------
    UsageError
        It ends otherwise than in .png, .svg or .pdf.
    """
    if path.suffix not in _FORMATS:
        raise UsageError(f"{path}: a picture ends in {', '.join(_FORMATS)}")


def draw_leaderboard(board: Leaderboard, path: Path) -> None:
    """Draw a leaderboard into a file; its ending says the format.

    A panel's lines are the estimators, the best on top, each with its held-out groups as dots with their 95 % interval,
    the mean over the groups as a black bar, and that mean as a number at the right.
    """
    shown = [dataset for dataset in board.datasets if _splits(dataset)]
    n_columns = min(_MOST_COLUMNS, max((len(_splits(dataset)) for dataset in shown), default=1))
    heights = [_height_in(dataset, n_columns, len(board.estimators)) for dataset in shown] or [1.0]
    figure = Figure(figsize=(max(8.0, 5.2 * n_columns), sum(heights)), layout=ConstrainedLayoutEngine(h_pad=0.12))
    blocks = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    for block, dataset in zip(blocks, shown, strict=False):
        _dataset_block(block, dataset, n_columns)
    key = fill(_KEY, width=int(_KEY_CHARACTERS_AN_IN * figure.get_figwidth()))
    blocks[-1].supxlabel(key if shown else "no split was possible", fontsize=_KEY_POINTS)
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _splits(dataset: DatasetBoard) -> list[SplitBoard]:
    return [split for split in dataset.splits if split.ranking]


def _height_in(dataset: DatasetBoard, n_columns: int, n_estimators: int) -> float:
    """Return inches: lines, title, axis and legend of each row of panels, and the heading of the block."""
    n_rows = -(-len(_splits(dataset)) // n_columns)
    return 0.5 + n_rows * (1.5 + 0.4 * n_estimators)


def _dataset_block(block: SubFigure, dataset: DatasetBoard, n_columns: int) -> None:
    splits = _splits(dataset)
    n_rows = -(-len(splits) // n_columns)
    panels = block.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, split in zip(panels, splits, strict=False):
        _panel(axes, split)
    for axes in panels[len(splits) :]:
        axes.set_axis_off()
    block.suptitle(
        f"{dataset.name}: held-out MAPE (%), {dataset.n_steps} steps of {dataset.n_jobs} jobs", weight="bold"
    )


def _panel(axes: Axes, split: SplitBoard) -> None:
    line = {row.estimator: place for place, row in enumerate(split.ranking)}
    coloured = len(split.groups) <= _MOST_COLOURED
    spread = min(_MOST_SPREAD, _DISTANCE * (len(split.groups) - 1))
    offsets = np.linspace(-spread / 2.0, spread / 2.0, len(split.groups))
    for place, (group, offset) in enumerate(zip(split.groups, offsets, strict=True)):
        for entry in group.entries:
            if entry.errors:
                _dot(axes, entry, line[entry.estimator] + float(offset), f"C{place}" if coloured else "")
        if coloured:
            axes.plot([], [], "o", markersize=4, color=f"C{place}", label=group.held_out)
    for row in split.ranking:
        _mean(axes, row, line[row.estimator])
    _dress(axes, split)


def _dot(axes: Axes, entry: Entry, height: float, color: str) -> None:
    assert entry.errors is not None
    if not color:
        axes.plot(entry.errors.mape_pct, height, "o", markersize=2.5, color="tab:gray", alpha=0.6)
        return
    interval = entry.errors.mape_interval_pct
    if interval:
        axes.plot([interval.low, interval.high], [height, height], color=color, linewidth=1.2)
    is_best = entry.standing == "best"
    axes.plot(entry.errors.mape_pct, height, "*" if is_best else "o", markersize=9 if is_best else 4, color=color)


def _mean(axes: Axes, row: Ranked, height: float) -> None:
    if row.mean_mape_pct is None:
        text, color = "refused", "tab:red"
    else:
        axes.plot([row.mean_mape_pct] * 2, [height - 0.4, height + 0.4], color="0.25", linewidth=1.4, zorder=1)
        partial = row.n_predicted < row.n_folds
        text = f"{row.mean_mape_pct:.1f}" + (f" [{row.n_predicted}/{row.n_folds}]" if partial else "")
        color = "tab:red" if partial else "black"
    weight = "bold" if row.standing in {"best", "tied"} else "normal"
    axes.annotate(
        text,
        (1.0, height),
        xycoords=axes.get_yaxis_transform(),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=color,
        weight=weight,
    )


def _dress(axes: Axes, split: SplitBoard) -> None:
    names = [row.estimator for row in split.ranking]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for between in range(1, len(names)):
        axes.axhline(between - 0.5, color="0.9", linewidth=0.8, zorder=0)
    axes.set_title(split.split, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    _scale(axes, _drawn(split))
    if len(split.groups) <= _MOST_COLOURED:
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    else:
        axes.set_xlabel(f"{len(split.groups)} groups, one dot each", fontsize=7)


def _scale(axes: Axes, drawn: FloatArray) -> None:
    if drawn.size and drawn.min() > 0 and drawn.max() > _LOGARITHMIC_FROM * drawn.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)


def _drawn(split: SplitBoard) -> FloatArray:
    found = [entry.errors.mape_pct for group in split.groups for entry in group.entries if entry.errors]
    return np.array(found, dtype=np.float64)
