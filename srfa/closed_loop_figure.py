"""A closed loop as a picture: predicted against measured TTFT, TPOT and E2E, one dot a job. Drawn without a display."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from srfa.closed_loop_report import ClosedLoopReport, Metric, Replay, nearest
from srfa.files import writing
from srfa.units import US_PER_MS

CLOSED_LOOP_FIGURE = "closed_loop.png"
_PANELS: tuple[tuple[Metric, str], ...] = (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "E2E"))
_MOST_COLOURED = 8
"""Configurations that get a colour of their own; further ones are grey."""
_TICKS = (1.0, 2.0, 5.0)
_ROOM = 1.3
"""What the axes leave beyond the first and the last dot, as a factor."""


def draw_closed_loop(report: ClosedLoopReport, path: Path) -> None:
    """Draw the jobs of the headline; with none of them, those that were seen."""
    shown = nearest(report.replays) or report.replays
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    for axes, (metric, name) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        _panel(axes, [one for one in shown if metric in one.metrics], metric)
        axes.set(xlabel=f"measured {name} (ms)", ylabel=f"predicted {name} (ms)", title=f"{name}, mean of each job")
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _panel(axes: Axes, replays: list[Replay], metric: Metric) -> None:
    for position, name in enumerate(sorted({one.configuration for one in replays})):
        means = [one.metrics[metric].mean for one in replays if one.configuration == name]
        color = f"C{position}" if position < _MOST_COLOURED else "tab:gray"
        measured, predicted = [one.measured / US_PER_MS for one in means], [one.predicted / US_PER_MS for one in means]
        axes.scatter(measured, predicted, s=24, alpha=0.7, color=color, label=name)
    both = [
        figure for one in replays for figure in (one.metrics[metric].mean.measured, one.metrics[metric].mean.predicted)
    ]
    if positive := [figure / US_PER_MS for figure in both if figure > 0]:
        ends = [min(positive) / _ROOM, max(positive) * _ROOM]
        axes.plot(ends, ends, color="black", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=_TICKS))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
