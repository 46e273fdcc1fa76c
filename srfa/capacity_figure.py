"""The picture of a what-if: latency against request rate, one line a deployment. Drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from srfa.files import writing
from srfa.simulate.latency import Latencies, Metric, Statistic
from srfa.what_if_report import CapacityCurve, RatePoint, WhatIf

_TITLES: Final[dict[Metric, str]] = {
    "ttft": "time to first token (ms)",
    "tpot": "time per output token (ms)",
    "e2e": "end to end (ms)",
}
_MOST_LINES: Final = 10
_USUAL: Final[Statistic] = "p99"


def draw_what_if(answer: WhatIf, path: Path) -> None:
    """Draw an answer into a file; its ending says the format.

    One panel a latency, its statistic the objective's (P99 where there is none), with the limit as a dashed line. Rates
    at which the queue grows are drawn hollow and apart; the band is the 90 % interval of the steps' times, where there
    is one.
    """
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, len(_TITLES), squeeze=False).ravel()
    for axes, metric in zip(panels, _TITLES, strict=True):
        _panel(axes, answer, metric)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", fontsize=7, frameon=False, ncols=2)
    figure.suptitle(_title(answer), fontsize=10)
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _title(answer: WhatIf) -> str:
    demand = answer.workload.name if answer.workload else "requests of a file"
    return f"{demand}, simulated on {answer.estimator}; hollow: the queue grows"


def _panel(axes: Axes, answer: WhatIf, metric: Metric) -> None:
    limits = [one for one in answer.objectives if one.metric == metric]
    statistic = limits[0].statistic if limits else _USUAL
    for number, curve in enumerate(answer.curves[:_MOST_LINES]):
        _line(axes, curve, metric, statistic, color=f"C{number}")
    for limit in limits:
        axes.axhline(limit.limit_ms, color="black", linestyle="--", linewidth=1)
        text = f"{limit.name} <= {limit.limit_ms:g}"
        place = ("axes fraction", "data")
        axes.annotate(text, (0, limit.limit_ms), (3, 3), xycoords=place, textcoords="offset points", fontsize=7)
    axes.set(yscale="log", xlabel="request rate (1/s)", title=f"{statistic.upper()} {_TITLES[metric]}")
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(left=0)
    axes.grid(color="0.92", linewidth=0.6)
    axes.tick_params(labelsize=8, which="both")
    axes.title.set_fontsize(9)


def _line(axes: Axes, curve: CapacityCurve, metric: Metric, statistic: Statistic, *, color: str) -> None:
    points = [point for point in curve.points if point.served.latency.value_ms(metric, statistic) > 0]
    if not points:
        return
    rates = np.array([_rate(point) for point in points])
    values = np.array([point.served.latency.value_ms(metric, statistic) for point in points])
    grows = np.array([point.grows for point in points])
    label = shorten(curve.deployment.name, 90)
    axes.plot(rates[~grows], values[~grows], "o-", color=color, linewidth=1.2, markersize=4, label=label)
    axes.plot(rates[grows], values[grows], "o", color=color, markersize=4, markerfacecolor="white")
    low, high = (_ends([getattr(point, end) for point in points], metric, statistic) for end in ("faster", "slower"))
    if low is not None and high is not None:
        axes.fill_between(rates, low, high, color=color, alpha=0.12, linewidth=0)
    if curve.kept and curve.kept.rate > 0:
        axes.axvline(curve.kept.rate, color=color, linestyle=":", linewidth=1)


def _rate(point: RatePoint) -> float:
    return point.request_rate if point.request_rate is not None else point.served.request_throughput


def _ends(found: Sequence[Latencies | None], metric: Metric, statistic: Statistic) -> list[float] | None:
    known = [one.value_ms(metric, statistic) for one in found if one is not None]
    return known if len(known) == len(found) else None
