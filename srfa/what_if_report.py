"""What a what-if answers, as data: capacity curves, the rates that keep an objective, and how far the fit reaches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat

from srfa.errors import UsageError
from srfa.files import write_text
from srfa.simulate.latency import METRICS, STATISTICS, Latencies, Metric, ServedSummary, Statistic
from srfa.specs import EngineArgs, Spec, Workload
from srfa.wording import unknown


class Objective(Spec):
    """A limit on a latency: ``p99_ttft_ms <= 500``."""

    statistic: Statistic
    metric: Metric
    limit_ms: PositiveFloat

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return f"{self.statistic}_{self.metric}_ms"

    def met(self, latency: Latencies) -> bool:
        """Return whether a run keeps it."""
        return latency.value_ms(self.metric, self.statistic) <= self.limit_ms


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Read ``p99_ttft_ms=500,p90_tpot_ms=50``.

    Raises
    ------
    UsageError
        A name that is not STATISTIC_METRIC_ms, or a limit that is no number above 0.

    Examples
    --------
    >>> [(one.name, one.limit_ms) for one in parse_objectives("p99_ttft_ms=500,mean_e2e_ms=2000")]
    [('p99_ttft_ms', 500.0), ('mean_e2e_ms', 2000.0)]
    """
    names = {f"{statistic}_{metric}_ms": (statistic, metric) for metric in METRICS for statistic in STATISTICS}
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, limit = part.partition("=")
        if name not in names:
            raise UsageError(f"--slo {part!r}: {unknown('objective', name, names)}")
        statistic, metric = names[name]
        found.append(Objective(statistic=statistic, metric=metric, limit_ms=_limit_ms(part, limit)))
    return tuple(found)


class Deployment(Spec):
    """A model on a GPU with engine arguments: what a what-if varies."""

    model: str
    gpu: str
    engine: EngineArgs

    @property
    def name(self) -> str:
        """Model, GPU, and the engine arguments that are not vLLM's defaults."""
        given = self.engine.model_dump(exclude_defaults=True)
        knobs = "".join(f" {name}={value}" for name, value in given.items())
        return f"{self.model} on {self.gpu}{knobs}"


class Reach(Spec):
    """How far the coefficients have to reach for the steps of a run.

    Parameters
    ----------
    grade, reason
        The grade (:mod:`srfa.grades`) that 99 % of the steps do not exceed, and why. None where the coefficients do not
        say what they were fitted to, or the clock is not theirs.
    in_domain_share
        Share of steps of grade 0.
    faster, slower
        Factors of a step's time at the ends of the grade's 90 % interval; None where the coefficients have none.
    """

    grade: int | None
    reason: str
    in_domain_share: float | None = None
    faster: float | None = None
    slower: float | None = None


class RatePoint(Spec):
    """One simulated run.

    Parameters
    ----------
    request_rate
        Requests a second that were sent; None where their own arrival times were kept.
    grows
        The queue grows, or the rate is so close to saturation that no run was long enough: latencies are those of this
        run's length.
    faster, slower
        Latencies where every step takes the lower, and the upper, end of its interval; None without intervals.
    """

    request_rate: float | None
    grows: bool
    met: bool | None
    served: ServedSummary
    reach: Reach
    faster: Latencies | None = None
    slower: Latencies | None = None


class KeptRate(Spec):
    """The largest request rate that keeps all objectives, and the same at the ends of the steps' interval.

    A rate of 0: not even the lightest load that was tried keeps them.
    """

    rate: float
    slowest: float | None = None
    fastest: float | None = None


class CapacityCurve(Spec):
    """Latency against load for one deployment.

    Parameters
    ----------
    points
        Simulated runs, by rate.
    saturation_rate
        The largest rate at which the queue does not grow, requests a second, or up to 2 % less; None where no rate was
        searched.
    kept
        The largest rate that keeps the objectives; None where there are none.
    gpus_per_rate
        GPUs for one request a second within the objectives; None where no rate keeps them.
    """

    deployment: Deployment
    gpu_count: int
    num_gpu_blocks: int
    points: tuple[RatePoint, ...]
    saturation_rate: float | None = None
    kept: KeptRate | None = None

    @property
    def gpus_per_rate(self) -> float | None:
        """GPUs for one request a second within the objectives."""
        return self.gpu_count / self.kept.rate if self.kept and self.kept.rate > 0 else None


class Refused(Spec):
    """A deployment that cannot be simulated, and why."""

    deployment: Deployment
    reason: str


class WhatIf(Spec):
    """The answer of ``srfa simulate``.

    Parameters
    ----------
    workload
        None where requests came from a file.
    coefficients_sha256
        Of what the clock learned (:attr:`srfa.coefficients.Coefficients.learned_sha256`); empty where
        it learned nothing.
    best
        Place in ``curves`` of the deployment with the fewest GPUs a rate within the objectives.
    """

    schema_version: Literal[1] = 1
    estimator: str
    coefficients_sha256: str = ""
    seed: int
    workload: Workload | None
    objectives: tuple[Objective, ...] = ()
    curves: tuple[CapacityCurve, ...]
    refused: tuple[Refused, ...] = ()
    best: int | None = Field(default=None, ge=0)


def best_of(curves: Sequence[CapacityCurve]) -> int | None:
    """Return the place of the curve with the fewest GPUs a rate; of equals the one with fewer GPUs."""
    costs = [(curve.gpus_per_rate, curve.gpu_count, place) for place, curve in enumerate(curves)]
    known = [(cost, count, place) for cost, count, place in costs if cost is not None]
    return min(known)[2] if known else None


def write_what_if(answer: WhatIf, path: Path) -> None:
    """Write the answer as JSON.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    write_text(path, answer.model_dump_json(indent=1) + "\n")


def _limit_ms(part: str, text: str) -> float:
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise UsageError(f"--slo {part!r}: expected a limit in milliseconds above 0, for example p99_ttft_ms=500")
    return limit
