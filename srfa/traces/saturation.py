"""Data gates about load: failed requests, and queues that only grow.

A closed loop (an infinite request rate, or a ``max_concurrency`` below the number of requests) fills the engine on
purpose and cannot fill it without bound: only open-loop jobs are held to the queue rules.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from srfa.specs import Workload
from srfa.traces.client import ClientResult
from srfa.traces.findings import GateFinding, JobData

MOST_FAILED_RATIO: Final = 0.01
LITTLE_TOLERANCE: Final = 0.1
MOST_EDGE_RATIO: Final = 0.5
"""How much of all time in the system the rule ``little_law`` lets a short run spend after its last arrival."""
GROWTH_TOLERANCE: Final = 0.1
LEAST_GROWTH: Final = 3.0
"""A queue longer by that many requests is a burst, not a trend."""
_CLOSED_LOOP: Final = "closed loop: the queue is part of the workload"


def check_failures(client: ClientResult, workload: Workload) -> GateFinding:
    """Rule ``failed_requests``: at most 1 % of the requests asked for failed or were never sent."""
    asked = max(requests_asked(workload), client.succeeded.size)
    failed = asked - int(client.succeeded.sum())
    first = next((error for error in client.errors if error), "")
    sentence = f"{failed} of {asked} requests failed" + (f", the first with {first.strip()[-200:]!r}" if first else "")
    return GateFinding.at_most("failed_requests", failed / max(asked, 1), MOST_FAILED_RATIO, sentence)


def requests_asked(workload: Workload) -> int:
    """Return how many requests the load generator makes: it gives each shared prefix the same number, rounded down."""
    if workload.dataset_name != "prefix_repetition":
        return workload.num_prompts
    prefixes = workload.prefix_repetition_num_prefixes
    return workload.num_prompts // prefixes * prefixes


def check_little_law(data: JobData, workload: Workload) -> GateFinding:
    """Rule ``little_law``: arrival rate x mean time in system = mean number in system, within 10 %.

    Over the span of the arrivals both sides count the same requests; they differ by the time spent after the last
    arrival. At a load of ``rho`` times what the engine can serve that is ``1 - 1/rho`` of all time. The end of a
    steady run explains ``E[w^2] / (2 E[w] T)`` of it, with ``w`` the time in system of the first half of the arrivals
    and ``T`` the span: that much is allowed on top of the 10 %, at most one half. Under overload it is
    ``(rho - 1) / 6``, so that a long run is still refused at every ``rho`` above 1.15. How many requests are in the
    system when the last one arrives is itself random; one standard error of that, ``sqrt(L / burstiness) / n`` with
    ``L`` the mean number in the system and ``n`` the arrivals, is allowed too: it matters in short bursty runs only.
    """
    queued_us, finished_us = _stays(data)
    span = float(np.ptp(queued_us)) if queued_us.size else 0.0
    if _closed_loop(workload) or span <= 0:
        reason = _CLOSED_LOOP if _closed_loop(workload) else "fewer than two arrivals"
        return GateFinding("little_law", True, 0.0, LITTLE_TOLERANCE, reason)
    stay = finished_us - queued_us
    within = np.minimum(finished_us, queued_us.max()) - queued_us
    early = np.sort(queued_us)[queued_us.size // 2]
    edge = _edge_ratio(stay[queued_us <= early], span)
    luck = math.sqrt(within.sum() / span / workload.burstiness) / queued_us.size
    missing = 1.0 - float(within.sum() / stay.sum())
    sentence = (
        f"arrival rate x mean time in system is {stay.sum() / span:.3g}, mean in system {within.sum() / span:.3g}; "
        "a lower request_rate lets the engine keep up"
    )
    return GateFinding.at_most("little_law", missing, LITTLE_TOLERANCE + edge + luck, sentence)


def check_queue_growth(data: JobData, workload: Workload) -> GateFinding:
    """Rule ``queue_growth``: while requests arrive, the queue of the last third is not longer than that of the first.

    A queue that takes in a tenth of ``n`` arrivals is longer by ``2/3 x n/10`` in the last third: the limit, or three
    requests where that is more.
    """
    queued_us, _ = _stays(data)
    if _closed_loop(workload) or queued_us.size < 2:
        return GateFinding("queue_growth", True, 0.0, LEAST_GROWTH, _CLOSED_LOOP)
    start = data.steps["t_schedule_start_ns"].to_numpy()
    arriving = (start >= queued_us.min()) & (start <= queued_us.max())
    waiting = data.steps["waiting_depth"].to_numpy()[arriving].astype(np.float64)
    if waiting.size < 3:
        return GateFinding("queue_growth", True, 0.0, LEAST_GROWTH, "fewer than three steps while requests arrived")
    third = waiting.size // 3
    first, last = float(waiting[:third].mean()), float(waiting[-third:].mean())
    limit = max(LEAST_GROWTH, GROWTH_TOLERANCE * queued_us.size * 2 / 3)
    sentence = f"{first:.3g} requests waited in the first third, {last:.3g} in the last; lower request_rate if it grows"
    return GateFinding.at_most("queue_growth", last - first, limit, sentence)


def _closed_loop(workload: Workload) -> bool:
    bounded = workload.max_concurrency is not None and workload.max_concurrency < workload.num_prompts
    return bounded or math.isinf(workload.request_rate)


def _stays(data: JobData) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return when each request that has both was queued and finished, nanoseconds."""
    times = [data.requests[name].to_numpy().astype(np.float64) for name in ("t_queued_ns", "t_finished_ns")]
    known = ~np.isnan(times[0]) & ~np.isnan(times[1])
    return times[0][known], times[1][known]


def _edge_ratio(stay: NDArray[np.float64], span: float) -> float:
    return min(MOST_EDGE_RATIO, float((stay**2).sum() / (2 * stay.sum() * span)))
