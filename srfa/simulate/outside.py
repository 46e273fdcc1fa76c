"""Time a request spends outside the steps: before the scheduler has it, and after a token is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srfa.ragged import FloatArray
from srfa.simulate.load import RequestLoad


@dataclass(frozen=True, slots=True)
class Outside:
    """Delays of each request, and the engine's own between steps.

    Parameters
    ----------
    alpha_us
        Arrival to queued: HTTP, tokenisation, hand-over; shape ``(n_requests,)``.
    post_us
        From a token's step to the client, as far as it does not grow with the tokens, shape ``(n_requests,)``.
    alpha_token_us
        What each output token adds to that, shape ``(n_requests,)``.
    between_steps_us
        From a step's end to the next one's start while work is waiting (not part of a step's label).
    between_steps_request_us
        What each request that is running then adds to that; of several ranks in lockstep the fullest one counts.
    wall_ratio
        Wall time of a step over its label: above 1 only where the label is CPU time.
    """

    alpha_us: FloatArray
    post_us: FloatArray
    alpha_token_us: FloatArray
    between_steps_us: float = 0.0
    between_steps_request_us: float = 0.0
    wall_ratio: float = 1.0

    @classmethod
    def none(cls, load: RequestLoad) -> Outside:
        """Return no delay at all: what the client sees is what the engine does."""
        zeros = np.zeros(load.n_requests)
        return cls(zeros, zeros, zeros)
