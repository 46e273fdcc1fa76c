"""A clock that is not exact: noise on the time of every step, before anything is simulated with it.

The noise moves the whole run: queues, batches and latencies are those of a server whose steps really took that long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from srfa.simulate.clock import AskedStep, Clock
from srfa.simulate.times import OUTSIDE, time_of

_DRAWN_AT_A_TIME: Final = 4096


@dataclass(frozen=True, slots=True)
class Noise:
    """How far steps lie from what the clock says.

    Parameters
    ----------
    log_sd
        Standard deviation of the logarithm of a step's factor, whose median is one.
    slow_share, slow_factor
        Share of steps that take that many times as long: a garbage collection, another process.
    seed
        Equal seeds give equal factors, step for step.
    """

    log_sd: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 3.0
    seed: int = 0

    def factors(self) -> Iterator[float]:
        """Yield the factor of one step after the other, without end."""
        draw = np.random.default_rng(self.seed)
        log_slow = math.log(self.slow_factor)
        while True:
            normal = draw.standard_normal(_DRAWN_AT_A_TIME)
            slow = draw.random(_DRAWN_AT_A_TIME) < self.slow_share
            yield from np.exp(self.log_sd * normal + log_slow * slow).tolist()


def noisy_clock(clock: Clock, noise: Noise | None) -> Clock:
    """Return a clock with noise on it, good for one run: the next run needs another for the same factors."""
    if noise is None:
        return clock
    factors = noise.factors()

    def ask(step: AskedStep) -> float:
        return exact_us(clock, step) * next(factors)

    return replace(clock, kernel=clock.kernel._replace(kind=OUTSIDE), ask=ask)


def exact_us(clock: Clock, step: AskedStep) -> float:
    """Return what a clock says of a step, microseconds."""
    if clock.ask is not None:
        return clock.ask(step)
    # The compiled form can only be called by compiled code; this is the same text, run by Python.
    return float(time_of.py_func(step.totals, clock.kernel))  # type: ignore[attr-defined]
