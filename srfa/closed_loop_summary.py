"""From single replays to the closed loop's headline: pooled over jobs, by split, and the noise of repeats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations

import numpy as np

from srfa.closed_loop_report import (
    METRICS,
    ClosedLoopReport,
    Compared,
    Metric,
    NoiseFloor,
    NotReplayed,
    Pair,
    Pooled,
    Replay,
    Summary,
    nearest,
)
from srfa.metrics import PERCENT

Means = Mapping[Metric, float]
"""Measured means of a job by metric."""


def closed_loop_report(
    estimator: str,
    replays: Sequence[Replay],
    not_replayed: Sequence[NotReplayed] = (),
    *,
    noise: NoiseFloor | None = None,
) -> ClosedLoopReport:
    """Pool replays into a report; splits keep the order of their first replay."""
    splits = dict.fromkeys(one.split for one in replays if one.split)
    unseen = [one for one in replays if not one.seen]
    by_split = ((split, [one for one in unseen if one.split == split]) for split in splits)
    return ClosedLoopReport(
        estimator=estimator,
        headline=_summary("", nearest(replays)) if unseen else None,
        splits=tuple(_summary(split, rows) for split, rows in by_split if rows),
        noise=noise,
        replays=tuple(replays),
        not_replayed=tuple(not_replayed),
    )


def noise_floor(jobs: Iterable[tuple[str, Means]]) -> NoiseFloor | None:
    """Return what repeats say of each other, from each job's cell and measured means; None without a repeat."""
    cells: dict[str, list[Means]] = defaultdict(list)
    for cell, means in jobs:
        cells[cell].append(means)
    repeated = [repeats for repeats in cells.values() if len(repeats) > 1]
    if not repeated:
        return None
    spread = {metric: _spread_pct(metric, repeated) for metric in METRICS}
    return NoiseFloor(
        n_cells=len(repeated),
        n_jobs=sum(len(repeats) for repeats in repeated),
        spread_pct={metric: pct for metric, pct in spread.items() if pct is not None},
    )


def _spread_pct(metric: Metric, repeated: Sequence[Sequence[Means]]) -> float | None:
    offs = [
        PERCENT * abs(one[metric] / other[metric] - 1.0)
        for repeats in repeated
        for one, other in permutations(repeats, 2)
        if metric in one and other.get(metric, 0.0) > 0
    ]
    return float(np.median(offs)) if offs else None


def _summary(split: str, replays: Sequence[Replay]) -> Summary:
    pooled = ((metric, [one.metrics[metric] for one in replays if metric in one.metrics]) for metric in METRICS)
    metrics = {metric: _pooled(found) for metric, found in pooled if found}
    return Summary(split=split, n_jobs=len({one.job_id for one in replays}), metrics=metrics)


def _pooled(found: Sequence[Compared]) -> Pooled:
    signed = [one.mean.error_pct for one in found]
    return Pooled(
        n_jobs=len(found),
        median_pct=float(np.median(np.abs(signed))),
        bias_pct=float(np.mean(signed)),
        p50_pct=_median_pct(one.p50 for one in found),
        p90_pct=_median_pct(one.p90 for one in found),
        p99_pct=_median_pct(one.p99 for one in found),
        request_pct=_median([one.median_ape_pct for one in found if one.median_ape_pct is not None]),
    )


def _median_pct(pairs: Iterable[Pair | None]) -> float | None:
    return _median([abs(pair.error_pct) for pair in pairs if pair])


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
