"""What came of it: the times of every request, and where asked for the composition of every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srfa.ragged import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class StepLog:
    """Every step; lists are flat, step ``i`` has ``[offsets[i]:offsets[i + 1]]`` of them, in scheduling order.

    Parameters
    ----------
    t_start_us, t_output_us
        When it was put together, and when its tokens were there, shape ``(n_steps,)``.
    step_time_us
        Its label, as the clock gave it.
    totals
        Records of :data:`srfa.operator_kernels.TOTALS_DTYPE`: what the clock was asked.
    running_depth, waiting_depth, num_preempted, num_finished, kv_blocks_free
        State as the recorder reports it.
    request, new_tokens, computed_tokens
        The request's row in the load, tokens computed in this step, and before it.
    """

    t_start_us: FloatArray
    t_output_us: FloatArray
    step_time_us: FloatArray
    totals: NDArray[Any]
    running_depth: IntArray
    waiting_depth: IntArray
    num_preempted: IntArray
    num_finished: IntArray
    kv_blocks_free: IntArray
    offsets: IntArray
    request: IntArray
    new_tokens: IntArray
    computed_tokens: IntArray

    @property
    def n_steps(self) -> int:
        """How many steps there were."""
        return len(self.t_start_us)


@dataclass(frozen=True, slots=True)
class Served:
    """Times of every request, microseconds on the clock of ``arrival_us``; every array has one entry a request.

    Parameters
    ----------
    t_arrived_us
        When the server got it: the load's, or later where the client had no seat.
    t_departed_us
        When the client had its last token.
    first_outside_us
        What lies between the first token's step and the client.
    cached_tokens
        Prompt tokens found in the prefix cache when it was first scheduled.
    n_steps
        Steps of the whole run.
    steps
        Every step, where they were asked for.
    """

    t_arrived_us: FloatArray
    t_queued_us: FloatArray
    t_first_scheduled_us: FloatArray
    t_first_token_us: FloatArray
    t_finished_us: FloatArray
    t_departed_us: FloatArray
    first_outside_us: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    cached_tokens: IntArray
    num_preemptions: IntArray
    running_at_queue: IntArray
    waiting_at_queue: IntArray
    kv_usage_at_queue: FloatArray
    n_steps: int
    steps: StepLog | None = None

    @property
    def ttft_us(self) -> FloatArray:
        """Arrival to first token, at the client."""
        return self.t_first_token_us - self.t_arrived_us + self.first_outside_us

    @property
    def e2e_us(self) -> FloatArray:
        """Arrival to last token, at the client."""
        return self.t_departed_us - self.t_arrived_us

    @property
    def tpot_us(self) -> FloatArray:
        """Mean time of a token after the first, at the client; NaN where there is none."""
        rest = (self.output_tokens - 1).astype(np.float64)
        return np.divide(self.e2e_us - self.ttft_us, rest, out=np.full_like(rest, np.nan), where=rest > 0)
