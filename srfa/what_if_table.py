"""A what-if as rows of tables, and what a reader should know of its figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from srfa.what_if_report import CapacityCurve, RatePoint, WhatIf

POINT_HEADS: Final = (
    "rate 1/s", "done 1/s", "tokens/s", "in flight", "TTFT ms P50", "P90", "P99", "TPOT ms P50", "P90", "P99",
    "E2E ms P50", "P99", "SLO", "grade",
)  # fmt: skip
CURVE_HEADS: Final = ("deployment", "GPUs", "saturation 1/s", "within SLO 1/s", "interval", "GPUs for 1/s", "")
FEWEST_REQUESTS: Final = 300
"""With fewer requests P99 is nearly the slowest one, and a queue has no time to grow."""


def point_rows(curve: CapacityCurve) -> list[tuple[str, ...]]:
    """Return a row for each simulated run, under :data:`POINT_HEADS`."""
    return [_point_row(point) for point in curve.points]


def curve_rows(answer: WhatIf) -> list[tuple[str, ...]]:
    """Return a row for each deployment, under :data:`CURVE_HEADS`; none where no rate was searched."""
    if all(curve.saturation_rate is None for curve in answer.curves):
        return []
    return [_curve_row(curve, best=place == answer.best) for place, curve in enumerate(answer.curves)]


def remarks(answer: WhatIf) -> Iterator[str]:
    """Yield what a reader might not expect: few requests, a closed loop opened, an extrapolation, what was refused."""
    points = [point for curve in answer.curves for point in curve.points]
    n_requests = max((point.served.n_requests for point in points), default=FEWEST_REQUESTS)
    if n_requests < FEWEST_REQUESTS:
        yield (
            f"P99 of {n_requests} requests is nearly their slowest, and a queue has no time to grow; for a steady "
            f"state take --num-prompts {FEWEST_REQUESTS} or more"
        )
    bound = answer.workload.max_concurrency if answer.workload else None
    if bound and any(point.request_rate is not None for point in points):
        yield f"rates are of an open loop: max_concurrency={bound} was left out"
    worst = max((point.reach for point in points), key=lambda reach: reach.grade or 0, default=None)
    if worst and worst.grade:
        yield f"extrapolated: grade {worst.grade} of 4 ({worst.reason})"
    for one in answer.refused:
        yield f"not simulated: {one.deployment.name}: {one.reason}"


def _point_row(point: RatePoint) -> tuple[str, ...]:
    served, latency = point.served, point.served.latency
    ttft, tpot, e2e = latency.ttft_ms, latency.tpot_ms, latency.e2e_ms
    return (
        "as given" if point.request_rate is None else f"{point.request_rate:.4g}",
        *map(_figure, (served.request_throughput, served.output_throughput, served.mean_in_flight)),
        *map(_figure, (ttft.p50, ttft.p90, ttft.p99)),
        *(("", "", "") if tpot is None else map(_figure, (tpot.p50, tpot.p90, tpot.p99))),
        *map(_figure, (e2e.p50, e2e.p99)),
        "queue grows" if point.grows else {True: "kept", False: "BROKEN", None: ""}[point.met],
        "?" if point.reach.grade is None else str(point.reach.grade),
    )


def _curve_row(curve: CapacityCurve, *, best: bool) -> tuple[str, ...]:
    kept, cost = curve.kept, curve.gpus_per_rate
    has_ends = kept is not None and kept.slowest is not None and kept.fastest is not None
    return (
        curve.deployment.name,
        str(curve.gpu_count),
        "" if curve.saturation_rate is None else f"{curve.saturation_rate:.3g}",
        "" if kept is None else f"{kept.rate:.3g}" if kept.rate > 0 else "none",
        f"{kept.slowest:.3g} to {kept.fastest:.3g}" if kept is not None and has_ends else "",
        "" if cost is None else f"{cost:.3g}",
        "fewest GPUs" if best else "",
    )


def _figure(value: float) -> str:
    return f"{value:.4g}"
