"""What a server delivers for as long as more is asked of it than it can serve: the rate that no longer load exceeds.

A queue that grows is only seen in a run long enough for the growth to stand out from luck, and the closer a rate is to
what the server can do the longer that is. An overload shows the same limit in one run: its queue is never empty, so
that what leaves is what the server can do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from srfa.ragged import FloatArray
from srfa.simulate.served import Served
from srfa.units import US_PER_S

MOST_REQUESTS: Final = 65_536
"""Requests that are simulated at most in one run, unless a demand has more of its own."""
_FEWEST_REQUESTS: Final = 256
_OVERLOAD: Final = 2.0
"""Arrivals for one departure: with as many, half the requests still wait or come when half have left."""
_LEAST_OVERLOAD: Final = 1.5
_SLICES: Final = 8
"""Parts of a run whose rates are compared."""
_LUCK_RATIO: Final = 0.01
"""How well the rate has to be known: two standard errors, as a share of it."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a run let out between its first and its last quarter.

    Parameters
    ----------
    rate
        Requests a second.
    luck_ratio
        Two standard errors of it, as a share of it.
    is_settled
        Requests waited at both ends, the slices are longer than a request's service, and ``luck_ratio`` is small.
    """

    rate: float
    luck_ratio: float
    is_settled: bool


def capacity_rate(serve: Callable[[float, int], Served], start: float, n_requests: int) -> float:
    """Return requests a second that a server lets out for as long as at least 1.5 times as many come.

    The rate is that of :func:`delivered` less two standard errors, from as many requests as it takes to know it within
    1 %, or from :data:`MOST_REQUESTS`: it is a little too low rather than too high.

    Parameters
    ----------
    serve
        Simulates a demand at a rate (requests a second), with that many times its own requests.
    start
        A rate near the answer, or below it.
    n_requests
        How many requests the demand has.
    """
    offered, repeats = _OVERLOAD * start, -(-_FEWEST_REQUESTS // n_requests)
    while True:
        found = delivered(serve(offered, repeats))
        if _LEAST_OVERLOAD * found.rate > offered:
            offered *= 2.0
        elif found.is_settled or 2 * repeats * n_requests > MOST_REQUESTS:
            return found.rate * (1.0 - found.luck_ratio)
        else:
            repeats *= 2


def delivered(served: Served) -> Delivered:
    """Return the rate of a run between the times at which a quarter and three quarters of its requests had left.

    A request in service counts by the share of its service that is over, so that requests which end together do not
    look like luck. The luck is that of the mean of eight slices of equal length.
    """
    done = np.sort(served.t_finished_us)
    start_us, end_us = float(done[len(done) // 4]), float(done[3 * len(done) // 4])
    if end_us <= start_us:
        whole_us = float(done[-1] - served.t_arrived_us.min())
        return Delivered(len(done) / max(whole_us, 1.0) * US_PER_S, 0.0, is_settled=False)
    slice_us = (end_us - start_us) / _SLICES
    rates = np.diff(_progress(served, np.linspace(start_us, end_us, _SLICES + 1))) / slice_us * US_PER_S
    luck_ratio = min(1.0, 2.0 * float(rates.std(ddof=1)) / math.sqrt(_SLICES) / float(rates.mean()))
    is_long = slice_us >= float(np.median(served.t_finished_us - served.t_first_scheduled_us))
    is_full = _has_waiting(served, start_us) and _has_waiting(served, end_us)
    return Delivered(float(rates.mean()), luck_ratio, is_settled=is_long and is_full and luck_ratio <= _LUCK_RATIO)


def _progress(served: Served, at_us: FloatArray) -> FloatArray:
    """Return how many requests were served by some times, those in service in part."""
    begun_us = served.t_first_scheduled_us
    service_us = np.maximum(served.t_finished_us - begun_us, 1.0)
    return np.array([np.clip((time_us - begun_us) / service_us, 0.0, 1.0).sum() for time_us in at_us])


def _has_waiting(served: Served, at_us: float) -> bool:
    return bool(np.any((served.t_arrived_us <= at_us) & (served.t_first_scheduled_us > at_us)))
