"""What came of a simulated run in the words of ``vllm bench serve``: latencies as the client saw them, throughput."""

from __future__ import annotations

import math
from typing import Final, Literal, get_args

import numpy as np

from srfa.ragged import FloatArray
from srfa.simulate.served import Served
from srfa.specs import Spec
from srfa.units import US_PER_MS, US_PER_S

Metric = Literal["ttft", "tpot", "e2e"]
Statistic = Literal["mean", "p50", "p90", "p99"]
Trend = Literal["steady", "grows", "short"]
"""Requests leave as fast as they come; or slower; or the run was too short to tell."""
METRICS: Final[tuple[Metric, ...]] = get_args(Metric)
STATISTICS: Final[tuple[Statistic, ...]] = get_args(Statistic)
_GROWTH_RATIO: Final = 0.03
"""A system that takes in this share of its arrivals without letting them out is not keeping up."""
_STAYS: Final = 6.0
"""How many stays of a request the arrivals must last for growth to be a trend, not the filling of an empty system."""


class Quantiles(Spec):
    """Mean and quantiles of a latency over the requests of a run, milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float


class Latencies(Spec):
    """Time to first token, time per output token after it, and end to end, milliseconds at the client.

    ``tpot_ms`` is None where no request has a second token.
    """

    ttft_ms: Quantiles
    tpot_ms: Quantiles | None
    e2e_ms: Quantiles

    def value_ms(self, metric: Metric, statistic: Statistic) -> float:
        """Return one figure; 0 for a TPOT that does not exist."""
        quantiles = {"ttft": self.ttft_ms, "tpot": self.tpot_ms, "e2e": self.e2e_ms}[metric]
        return 0.0 if quantiles is None else float(getattr(quantiles, statistic))


class ServedSummary(Spec):
    """A simulated run in short.

    Parameters
    ----------
    duration_s
        First arrival to last token.
    request_throughput, output_throughput
        Requests and output tokens a second over that time.
    mean_in_flight
        Requests in the system, averaged over that time.
    cached_share
        Prompt tokens that the prefix cache had, of all.
    """

    n_requests: int
    n_steps: int
    duration_s: float
    request_throughput: float
    output_throughput: float
    mean_in_flight: float
    cached_share: float
    num_preemptions: int
    latency: Latencies


def summarise(served: Served) -> ServedSummary:
    """Return throughput and latencies of a run."""
    duration_us = float(served.t_departed_us.max() - served.t_arrived_us.min())
    per_s = US_PER_S / max(duration_us, 1.0)
    return ServedSummary(
        n_requests=len(served.t_arrived_us),
        n_steps=served.n_steps,
        duration_s=duration_us / US_PER_S,
        request_throughput=len(served.t_arrived_us) * per_s,
        output_throughput=float(served.output_tokens.sum()) * per_s,
        mean_in_flight=float(served.e2e_us.sum()) / max(duration_us, 1.0),
        cached_share=float(served.cached_tokens.sum() / served.prompt_tokens.sum()),
        num_preemptions=int(served.num_preemptions.sum()),
        latency=latencies(served),
    )


def latencies(served: Served) -> Latencies:
    """Return mean and quantiles of the three latencies."""
    several = served.output_tokens > 1
    return Latencies(
        ttft_ms=_quantiles(served.ttft_us),
        tpot_ms=_quantiles(served.tpot_us[several]) if several.any() else None,
        e2e_ms=_quantiles(served.e2e_us),
    )


def trend_of(served: Served) -> Trend:
    """Return whether requests leave as fast as they come.

    The number of requests in the system, seen by those that arrive, is averaged over the second and the last third of
    the arrivals. At ``rho`` times what the server can do it grows by ``(1 - 1/rho) n / 3``. By luck it differs by about
    ``sqrt(2 L min(1, stay / third))`` with ``L`` requests in the system: what Poisson arrivals do. Twice that on either
    side of what was seen is below 3 % of ``n / 3`` when ``steady``, and above it when the number ``grows``. What lies
    between is too ``short`` to tell, and so are arrivals that last less than six stays of a request (an empty system
    that fills looks the same as a queue that grows), that come all at once, or are fewer than three.

    Notes
    -----
    Just below what the server can do luck is larger than that of the arrivals alone, and a queue that grows by less
    than 3 % is steady: whether a rate can be kept for good is for :func:`srfa.simulate.overload.capacity_rate` to say,
    and this only whether a run at such a rate was long enough.
    """
    arrived, departed = served.t_arrived_us, served.t_departed_us
    third = len(arrived) // 3
    span = float(np.ptp(arrived)) if third else 0.0
    if span <= 0:
        return "short"
    order = np.argsort(arrived, kind="stable")
    arrived, departed = arrived[order], departed[order]
    stay = float(np.median((departed - arrived)[:third]))
    if span < _STAYS * stay:
        return "short"
    seen = np.arange(1, len(arrived) + 1) - np.searchsorted(np.sort(departed), arrived, side="right")
    middle, last = float(seen[third : 2 * third].mean()), float(seen[-third:].mean())
    growth, luck = last - middle, 2.0 * math.sqrt(2.0 * middle * min(1.0, 3.0 * stay / span))
    if abs(growth) + luck <= _GROWTH_RATIO * third:
        return "steady"
    return "grows" if growth - luck > _GROWTH_RATIO * third else "short"


def _quantiles(values_us: FloatArray) -> Quantiles:
    p50, p90, p99 = np.percentile(values_us, [50, 90, 99]) / US_PER_MS
    return Quantiles(mean=float(values_us.mean()) / US_PER_MS, p50=float(p50), p90=float(p90), p99=float(p99))
