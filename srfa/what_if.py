"""What would a deployment do that nobody measured? Capacity curves, and the largest rate within objectives.

Everything rests on one simulation of a demand at a rate (:meth:`Rig.point`); searches only choose which. The same seed
gives the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients
from srfa.domain import grade_steps
from srfa.observations import Configuration
from srfa.replay import outside_of
from srfa.simulate.capacity import configuration_for, server_for
from srfa.simulate.clock import Clock, clock_of
from srfa.simulate.engine import simulate
from srfa.simulate.latency import Latencies, latencies, summarise, trend_of
from srfa.simulate.load import BlockHashes, RequestLoad
from srfa.simulate.overload import MOST_REQUESTS, capacity_rate
from srfa.simulate.requests_file import read_requests
from srfa.simulate.served import Served
from srfa.simulate.server import Server
from srfa.simulate.step_table import step_observations
from srfa.simulate.workload import workload_load
from srfa.specs import GpuSpec, ModelSpec, Workload
from srfa.units import US_PER_S
from srfa.what_if_report import CapacityCurve, Deployment, KeptRate, Objective, RatePoint, Reach

CURVE_SHARES: Final = (0.05, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.1)
"""Rates of an automatic curve, as shares of the saturation rate."""
RATE_TOLERANCE: Final = 0.02
"""How close a search brackets a rate (ratio)."""
LIGHTEST_SHARE: Final = 0.001
"""A rate of this share of the throughput of all requests at once is as light a load as is tried."""
_GRADED_STEPS: Final = 2000
_GRADE_QUANTILE: Final = 0.99
_STRIDE: Final = 1.25


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests to simulate: a workload's words, or a file with arrival times.

    Parameters
    ----------
    workload, requests
        One of the two.
    """

    workload: Workload | None = None
    requests: Path | None = None
    seed: int = 0

    def load(self, block_size: int, request_rate: float | None = None, *, repeats: int = 1) -> RequestLoad:
        """Return the requests, at a rate of their own or at another one.

        At a rate, clients wait for nobody (``max_concurrency`` is left out); arrival times of a file are stretched to
        it, and where all are equal they become evenly spaced.

        Parameters
        ----------
        repeats
            How many times as many requests: of a file, the same again and again.

        Raises
        ------
        InputError, UsageError
            As :func:`~srfa.simulate.requests_file.read_requests` and
            :func:`~srfa.simulate.workload.workload_load`.
        """
        if self.workload is None:
            assert self.requests is not None
            load = read_requests(self.requests, block_size=block_size)
            return load if request_rate is None else _repeated(load, request_rate, repeats)
        if request_rate is None:
            return workload_load(self.workload, seed=self.seed, block_size=block_size)
        own = {"request_rate": request_rate, "max_concurrency": None}
        more = {"num_prompts": repeats * self.workload.num_prompts}
        return workload_load(self.workload.model_copy(update=own | more), seed=self.seed, block_size=block_size)


@dataclass(frozen=True, slots=True)
class Question:
    """A deployment, a demand on it, and what tells the time of a step.

    Parameters
    ----------
    coefficients
        None only for an estimator that needs none (``roofline``).
    estimator
        None is the one of the coefficients.
    software_version
        ``vllm 0.32.0`` and the like: the version of the engine that is asked about.
    """

    deployment: Deployment
    demand: Demand
    catalog: Catalog
    coefficients: Coefficients | None = None
    estimator: str | None = None
    software_version: str | None = None

    @property
    def fitted(self) -> Coefficients | None:
        """What the clock learned: the coefficients, where they are those of the estimator that tells the time."""
        own = self.coefficients is not None and self.estimator in (None, self.coefficients.estimator)
        return self.coefficients if own else None

    @property
    def model(self) -> ModelSpec:
        """The model's shape."""
        return self.catalog.resolve_model(self.deployment.model)

    @property
    def gpu(self) -> GpuSpec:
        """The GPU's figures."""
        return self.catalog.resolve_gpu(self.deployment.gpu)


@dataclass(frozen=True, slots=True)
class _Sustained:
    """Latencies of a run that was long enough, and how many times the demand's requests it took."""

    latency: Latencies
    repeats: int


@dataclass(slots=True)
class Rig:
    """A question made ready to be simulated at any rate; runs are kept, for searches come back to them."""

    question: Question
    server: Server
    clock: Clock
    configuration: Configuration
    _kept: dict[tuple[float, float], _Sustained | None] = field(default_factory=dict)
    _capacities: dict[float, float] = field(default_factory=dict)

    @classmethod
    def of(cls, question: Question) -> Rig:
        """Make ready.

        Raises
        ------
        UsageError, CatalogError
            The server would not start, or a name is unknown.
        UnknownConfigurationError
            The estimator does not know the configuration.
        """
        model, gpu, engine = question.model, question.gpu, question.deployment.engine
        server = server_for(model, gpu, engine)
        configuration = configuration_for(model, gpu, engine, software_version=question.software_version)
        clock = clock_of(question.coefficients, configuration, question.catalog, estimator=question.estimator)
        return cls(question, server, clock, configuration)

    def served(
        self, request_rate: float | None, *, slowed: float = 1.0, repeats: int = 1, record_steps: bool = False
    ) -> Served:
        """Simulate the demand at a rate, every step ``slowed`` times as long as the clock says."""
        load = self.question.demand.load(self.server.block_size, request_rate, repeats=repeats)
        coefficients = self.question.coefficients
        blocks = coefficients.blocks if coefficients else {}
        outside = outside_of(blocks, load, self.server, gpu=self.question.gpu.name, catalog=self.question.catalog)
        outside = replace(outside, wall_ratio=outside.wall_ratio * slowed)
        return simulate(load, self.server, self.clock, outside, record_steps=record_steps)

    def capacity(self, *, slowed: float = 1.0) -> float:
        """Return the rate of an overload's departures, requests a second: below it no queue grows for good."""
        if slowed not in self._capacities:
            n_requests = self.question.demand.load(self.server.block_size).n_requests
            self._capacities[slowed] = capacity_rate(
                lambda rate, repeats: self.served(rate, slowed=slowed, repeats=repeats),
                throughput(self, slowed=slowed),
                n_requests,
            )
        return self._capacities[slowed]

    def sustained(self, request_rate: float, *, slowed: float = 1.0) -> Latencies | None:
        """Return the latencies at a rate, None where the queue grows."""
        found = self._sustained(request_rate, slowed)
        return None if found is None else found.latency

    def point(self, request_rate: float | None, objectives: Sequence[Objective] = ()) -> RatePoint:
        """Simulate one rate, with what the coefficients' domain says of its steps and the ends of their interval."""
        kept = None if request_rate is None else self._sustained(request_rate, 1.0)
        repeats = kept.repeats if kept else 1
        served = self.served(request_rate, repeats=repeats, record_steps=True)
        grows = trend_of(served) == "grows" if request_rate is None else kept is None
        summary, reach = summarise(served), self.reach(served, request_rate, repeats=repeats)
        ends = [
            None if end is None else latencies(self.served(request_rate, slowed=end, repeats=repeats))
            for end in (reach.faster, reach.slower)
        ]
        met = all(one.met(summary.latency) for one in objectives) and (request_rate is None or not grows)
        return RatePoint(
            request_rate=request_rate,
            grows=grows,
            met=met if objectives else None,
            served=summary,
            reach=reach,
            faster=ends[0],
            slower=ends[1],
        )

    def reach(self, served: Served, request_rate: float | None, *, repeats: int = 1) -> Reach:
        """Grade the steps of a run by what the coefficients were fitted to."""
        coefficients = self.question.fitted
        if coefficients is None:
            return Reach(grade=None, reason=f"{self.clock.estimator} was not fitted to anything")
        if coefficients.domain is None:
            return Reach(grade=None, reason="the coefficients do not say what they were fitted to")
        assert served.steps is not None
        load = self.question.demand.load(self.server.block_size, request_rate, repeats=repeats)
        observed = step_observations(
            served.steps, load, configuration=self.configuration, server=self.server, at_most=_GRADED_STEPS
        )
        graded = grade_steps(observed, self.question.catalog, coefficients.domain)
        grade = int(np.quantile(graded.grade, _GRADE_QUANTILE, method="inverted_cdf"))
        reasons = graded.reason_index[graded.grade == grade]
        intervals = coefficients.intervals
        ends = (None, None) if intervals is None else (intervals.grades[grade].p05, intervals.grades[grade].p95)
        return Reach(
            grade=grade,
            reason=graded.reasons[int(np.bincount(reasons).argmax())],
            in_domain_share=float(np.mean(graded.grade == 0)),
            faster=None if ends[0] is None else math.exp(ends[0]),
            slower=None if ends[1] is None else math.exp(ends[1]),
        )

    def _sustained(self, request_rate: float, slowed: float) -> _Sustained | None:
        """Simulate more and more requests until their number in the system holds; too many count as growth."""
        key = (request_rate, slowed)
        if key not in self._kept:
            lasts = request_rate < self.capacity(slowed=slowed)
            self._kept[key] = self._long_enough(request_rate, slowed) if lasts else None
        return self._kept[key]

    def _long_enough(self, request_rate: float, slowed: float) -> _Sustained | None:
        repeats = 1
        while True:
            served = self.served(request_rate, slowed=slowed, repeats=repeats)
            if trend_of(served) == "steady":
                return _Sustained(latencies(served), repeats)
            if 2 * len(served.t_arrived_us) > MOST_REQUESTS:
                return None
            repeats *= 2


def capacity_curve(
    question: Question, *, rates: Sequence[float] = (), objectives: Sequence[Objective] = ()
) -> CapacityCurve:
    """Return latency against load: at the given rates, or from a light load to beyond saturation.

    Parameters
    ----------
    rates
        Requests a second; none: shares :data:`CURVE_SHARES` of the saturation rate, which is searched.
    objectives
        Limits on latencies; the largest rate that keeps them all is searched too.

    Raises
    ------
    SrfaError
        As :meth:`Rig.of`.
    """
    rig = Rig.of(question)
    saturation = saturation_rate(rig) if not rates or objectives else None
    shown = set(rates) or {_three_digits(share * (saturation or 0.0)) for share in CURVE_SHARES}
    points = tuple(rig.point(rate, objectives) for rate in sorted(shown) if rate > 0)
    kept = _kept(rig, objectives, saturation, points) if objectives and saturation else None
    return _curve(rig, points, saturation, kept)


def as_given(question: Question, *, objectives: Sequence[Objective] = ()) -> CapacityCurve:
    """Return the one run of a demand at its own arrival times.

    Raises
    ------
    SrfaError
        As :meth:`Rig.of`.
    """
    rig = Rig.of(question)
    return _curve(rig, (rig.point(None, objectives),), None, None)


def saturation_rate(rig: Rig, *, slowed: float = 1.0) -> float:
    """Return the largest rate at which the queue does not grow, requests a second.

    It is the rate at which an overload is served (:func:`srfa.simulate.overload.capacity_rate`): as a rule that of an
    endless run or up to 2 % below, and further where :data:`srfa.simulate.overload.MOST_REQUESTS` do not settle it.
    """
    return rig.capacity(slowed=slowed)


def kept_rate(rig: Rig, objectives: Sequence[Objective], start: float, *, slowed: float = 1.0) -> float:
    """Return the largest rate that keeps all objectives and does not let the queue grow; 0 where none does."""

    def keeps(rate: float) -> bool:
        found = rig.sustained(rate, slowed=slowed)
        return found is not None and all(one.met(found) for one in objectives)

    return largest_rate(keeps, start, most=rig.capacity(slowed=slowed))


def throughput(rig: Rig, *, slowed: float = 1.0) -> float:
    """Return requests a second when all are sent at once."""
    served = rig.served(math.inf, slowed=slowed)
    return len(served.t_departed_us) * US_PER_S / float(served.t_departed_us.max() - served.t_arrived_us.min())


def largest_rate(holds: Callable[[float], bool], start: float, *, most: float) -> float:
    """Return the largest rate that holds: down from one that does not, by a factor of 1.25 a time, then by bisection.

    At light loads a quantile wavers with the rate by less than a step's time, so that a limit close to it holds and
    breaks in turns: going down finds the upper end. 0 where nothing holds down to a thousandth of ``start``.

    Parameters
    ----------
    most
        No rate above it is tried.

    Examples
    --------
    >>> round(largest_rate(lambda rate: rate <= 7.0, 2.0, most=100.0), 1)
    7.0
    """
    high = start = min(start, most)
    while holds(high):
        if high >= most:
            return most
        high = min(2.0 * high, most)
    low = high / _STRIDE
    while not holds(low):
        high, low = low, low / _STRIDE
        if low < LIGHTEST_SHARE * start:
            return 0.0
    while high > (1.0 + RATE_TOLERANCE) * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _curve(rig: Rig, points: tuple[RatePoint, ...], saturation: float | None, kept: KeptRate | None) -> CapacityCurve:
    return CapacityCurve(
        deployment=rig.question.deployment,
        gpu_count=rig.question.deployment.engine.gpu_count,
        num_gpu_blocks=rig.server.num_gpu_blocks,
        points=points,
        saturation_rate=saturation,
        kept=kept,
    )


def _kept(rig: Rig, objectives: Sequence[Objective], start: float, points: Sequence[RatePoint]) -> KeptRate:
    """Search the rate that keeps the objectives, and the same where every step is at an end of its interval."""
    rate = kept_rate(rig, objectives, start)
    widest = max((point.reach for point in points), key=lambda reach: reach.slower or 0.0, default=None)
    if rate <= 0 or widest is None or widest.slower is None or widest.faster is None:
        return KeptRate(rate=rate)
    slowest, fastest = (kept_rate(rig, objectives, rate, slowed=end) for end in (widest.slower, widest.faster))
    return KeptRate(rate=rate, slowest=slowest, fastest=fastest)


def _repeated(load: RequestLoad, request_rate: float, repeats: int) -> RequestLoad:
    """Return the requests of a file, the same again and again, at another mean rate.

    The last of ``n`` requests arrives ``n / request_rate`` after the start, as the bench has it. Requests that all came
    at once come evenly.
    """
    count, span_us = load.n_requests, load.n_requests / request_rate * US_PER_S
    last_us = float(load.arrival_us[-1])
    shares = load.arrival_us / last_us if last_us > 0 else np.arange(1, count + 1) / count
    again = np.repeat(np.arange(repeats), count)
    lengths = np.tile(np.diff(load.block_hashes.offsets), repeats)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    return RequestLoad(
        arrival_us=(again + np.tile(shares, repeats)) * span_us,
        prompt_tokens=np.tile(load.prompt_tokens, repeats),
        output_tokens=np.tile(load.output_tokens, repeats),
        priority=np.tile(load.priority, repeats),
        block_hashes=BlockHashes(np.tile(load.block_hashes.values, repeats), offsets),
    )


def _three_digits(rate: float) -> float:
    return float(f"{rate:.3g}")
