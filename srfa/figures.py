"""Pictures of held-out predictions: parity, residuals by feature, errors by workload. Drawn without a display."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srfa.metrics import PERCENT, Errors, Scored, errors
from srfa.ragged import FloatArray, IntArray
from srfa.units import US_PER_MS

PARITY, RESIDUALS, WORKLOADS = "parity.png", "residuals.png", "workloads.png"
_MAX_POINTS = 20_000
"""Points a scatter shows; more only make it darker. Drawn at even distances, so that no group is lost."""
_BINS = 12
_COLUMNS = 4


def draw_figures(held_out: pa.Table, folder: Path) -> tuple[str, ...]:
    """Draw all figures of held-out predictions and return their file names; none where there is no row.

    Parameters
    ----------
    held_out
        :attr:`srfa.validate.CrossPrediction.held_out`; where it holds several splits, the first is drawn.
    """
    if held_out.num_rows == 0:
        return ()
    held_out = held_out.filter(pc.equal(held_out["split"], held_out["split"][0]))
    drawings: dict[str, Callable[[pa.Table], Figure]] = {
        PARITY: parity,
        RESIDUALS: residuals,
        WORKLOADS: workloads,
    }
    for name, draw in drawings.items():
        draw(held_out).savefig(folder / name, dpi=110)
    return tuple(drawings)


def parity(held_out: pa.Table) -> Figure:
    """Draw predicted against measured step time in milliseconds, both logarithmic, one colour a GPU."""
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    axes = figure.subplots()
    shown = held_out.take(_evenly(held_out.num_rows))
    for gpu in sorted(set(shown["gpu"].to_pylist())):
        of_gpu = shown.filter(pc.equal(shown["gpu"], gpu))
        measured, predicted = _floats(of_gpu, "step_time_us"), _floats(of_gpu, "predicted_step_time_us")
        axes.scatter(measured / US_PER_MS, predicted / US_PER_MS, s=5, alpha=0.4, linewidths=0, label=gpu)
    low, high = _span(_floats(held_out, "step_time_us") / US_PER_MS)
    axes.plot([low, high], [low, high], color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="measured step time (ms)", ylabel="predicted step time (ms)")
    axes.set_title(f"{held_out['split'][0].as_py()}: held-out predictions")
    axes.legend(markerscale=3)
    return figure


def residuals(held_out: pa.Table) -> Figure:
    """Draw the relative residual against every feature that varies, with the median of each of 12 bins."""
    names = [name for name in held_out.column_names if "." in name and _varies(_floats(held_out, name))]
    n_rows = max(1, -(-len(names) // _COLUMNS))
    figure = Figure(figsize=(3.4 * _COLUMNS, 2.6 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, _COLUMNS, squeeze=False).ravel()
    residual = _residual_pct(held_out)
    for axes, name in zip(panels, names, strict=False):
        _residual_panel(axes, name, _floats(held_out, name), residual)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.suptitle("relative residual, (predicted - measured) / measured in %, against each feature")
    return figure


def workloads(held_out: pa.Table) -> Figure:
    """Draw the MAPE of each workload and GPU with its 95 % interval by bootstrap over jobs."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    gpus, names = sorted(set(held_out["gpu"].to_pylist())), sorted(set(held_out["workload"].to_pylist()))
    width = 0.5 / len(gpus)
    for position, gpu in enumerate(gpus):
        of_gpu = held_out.filter(pc.equal(held_out["gpu"], gpu))
        _workload_bars(axes, of_gpu, names, (position - (len(gpus) - 1) / 2) * width, f"C{position}")
    axes.set_xticks(range(len(names)), [name or "(unnamed)" for name in names], rotation=20, ha="right")
    axes.set_ylim(bottom=0)
    axes.set(ylabel="MAPE (%)", title="held-out error by workload, 95 % interval over jobs")
    axes.legend()
    return figure


def _workload_bars(axes: Axes, of_gpu: pa.Table, names: list[str], shift: float, color: str) -> None:
    for place, name in enumerate(names):
        part = of_gpu.filter(pc.equal(of_gpu["workload"], name))
        if part.num_rows:
            found = errors(_scored(part))
            axes.errorbar(place + shift, found.mape_pct, yerr=_whiskers(found), fmt="o", capsize=4, color=color)
    axes.plot([], [], "o", color=color, label=of_gpu["gpu"][0].as_py())


def _whiskers(found: Errors) -> FloatArray | None:
    """Distances below and above the MAPE, shape ``(2, 1)``; the interval of few jobs need not hold the MAPE itself."""
    interval = found.mape_interval_pct
    if interval is None:
        return None
    return np.maximum([[found.mape_pct - interval.low], [interval.high - found.mape_pct]], 0.0)


def _residual_panel(axes: Axes, name: str, feature: FloatArray, residual_pct: FloatArray) -> None:
    shown = _evenly(len(feature))
    axes.scatter(feature[shown], residual_pct[shown], s=2, alpha=0.2, linewidths=0, color="tab:gray")
    bins = _bins(feature)
    medians = [(np.median(feature[bins == one]), np.median(residual_pct[bins == one])) for one in np.unique(bins)]
    axes.plot(*zip(*medians, strict=True), color="tab:red", marker="o", ms=3)
    axes.axhline(0, color="black", linewidth=0.6)
    positive = feature[feature > 0]
    if positive.size and feature.min() >= 0 and feature.max() > 20 * np.median(positive):
        threshold = float(np.quantile(positive, 0.05))
        axes.set_xscale("symlog", linthresh=threshold)
        axes.set_xlim(left=-0.5 * threshold)
    limit = float(np.quantile(np.abs(residual_pct), 0.98)) or 1.0
    axes.set_ylim(-1.1 * limit, 1.1 * limit)
    axes.set_title(name, fontsize=8)
    axes.tick_params(labelsize=7)


def _bins(feature: FloatArray) -> IntArray:
    """Return each entry's bin: one a value where there are few, else bins of about equal counts."""
    values = np.unique(feature)
    edges = values if len(values) <= _BINS else np.unique(np.quantile(feature, np.linspace(0, 1, _BINS + 1))[:-1])
    return np.asarray(np.searchsorted(edges, feature, side="right") - 1, dtype=np.int64)


def _scored(table: pa.Table) -> Scored:
    job_ids = np.array(table["job_id"].to_pylist(), dtype=np.str_)
    return Scored(_floats(table, "step_time_us"), _floats(table, "predicted_step_time_us"), job_ids)


def _residual_pct(table: pa.Table) -> FloatArray:
    return PERCENT * _scored(table).relative


def _floats(table: pa.Table, column: str) -> FloatArray:
    return np.asarray(table[column].to_numpy(), dtype=np.float64)


def _varies(values: FloatArray) -> bool:
    return bool(values.min() < values.max())


def _span(values: FloatArray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _evenly(n_rows: int) -> IntArray:
    return np.unique(np.linspace(0, n_rows - 1, min(n_rows, _MAX_POINTS)).astype(np.int64))
