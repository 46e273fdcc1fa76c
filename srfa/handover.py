"""When an engine looks for new requests: what of the time from arrival to queue is hand-over, and what its steps.

vLLM takes new requests in between two steps. ``t_queued - t_arrived`` is therefore the hand-over (HTTP, tokenisation,
the way to the engine) and then the rest of the step that runs. A simulator makes that rest itself, so what it adds must
be the hand-over alone. A record bounds it: it ended after the engine last looked and before the request was queued.
Source: ``run_busy_loop`` of ``vllm/v1/engine/core.py`` (0.32), with either kind of scheduling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from srfa.ragged import FloatArray
from srfa.units import NS_PER_US, US_PER_MS

IDLE_US = US_PER_MS
"""A request queued later than this after a step's output was not waiting for it: the engine was idle."""


@dataclass(frozen=True, slots=True)
class EngineClock:
    """The steps of one job: nanoseconds of its requests' clock, ascending, shape ``(n_steps,)``."""

    start_ns: NDArray[np.int64]
    output_ns: NDArray[np.int64]

    @classmethod
    def of(cls, steps: pa.Table) -> EngineClock:
        """Read them off the rows of a job in a table of steps, in any order."""
        start, output = (steps[name].to_numpy().astype(np.int64) for name in ("t_schedule_start_ns", "t_output_ns"))
        order = np.argsort(start, kind="stable")
        return cls(start[order], np.maximum.accumulate(output[order]))

    def least_handover_us(self, arrived_ns: NDArray[np.int64], queued_ns: NDArray[np.int64]) -> FloatArray:
        """Return the least that the hand-over took, microseconds; all of arrival to queued where the engine was idle.

        The engine looked before it started its last step, and the request was not there.
        """
        whole_us = (queued_ns - arrived_ns) / NS_PER_US
        last = np.searchsorted(self.start_ns, queued_ns) - 1
        if not len(self.start_ns):
            return whole_us
        row = np.maximum(last, 0)
        waited = (last >= 0) & (self.output_ns[row] > arrived_ns)
        waited &= (queued_ns - self.output_ns[row]) / NS_PER_US < IDLE_US
        return np.where(waited, np.maximum(0.0, (self.start_ns[row] - arrived_ns) / NS_PER_US), whole_us)

    def queued_after_us(self, arrived_ns: NDArray[np.int64], handover_us: FloatArray) -> FloatArray:
        """Return arrival to queued of requests with a given hand-over, microseconds: at once, or after the step.

        The inverse of :meth:`least_handover_us`: what a simulation of exactly these steps would say.
        """
        if not len(self.start_ns):
            return handover_us
        ready_ns = arrived_ns + np.round(handover_us * NS_PER_US).astype(np.int64)
        last = np.searchsorted(self.start_ns, ready_ns, side="right") - 1
        busy = (last >= 0) & (self.output_ns[np.maximum(last, 0)] > ready_ns)
        looks = np.sort(np.concatenate([self.start_ns, self.output_ns]))
        next_look = looks[np.minimum(np.searchsorted(looks, ready_ns), len(looks) - 1)]
        return np.where(busy, (next_look - arrived_ns) / NS_PER_US, handover_us)
