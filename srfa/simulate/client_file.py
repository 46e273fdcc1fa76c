"""A simulated run as its client saw it: the result file of ``vllm bench serve --save-result --save-detailed``."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np

from srfa.ragged import FloatArray, IntArray
from srfa.simulate.latency import summarise
from srfa.simulate.served import Served, StepLog
from srfa.simulate.traced import TracedRun, monotonic_ns
from srfa.units import NS_PER_S, NS_PER_US, US_PER_MS, US_PER_S

_WIRE_NS: Final = 1
"""What a request and its answer take between client and server: clocks read in order stay in order when rounded."""


def client_document(run: TracedRun) -> dict[str, object]:
    """Return the document, times in seconds, requests in the order in which they were sent.

    Between the first and the last token, whose times the run has, a token reaches the client after its step by a delay
    that grows evenly from the first's to the last's.
    """
    served = run.served
    found = summarise(served)
    gaps_s = inter_token_us(served, run.steps) / US_PER_S
    bounds = np.concatenate([[0], np.cumsum(served.output_tokens - 1)]).tolist()
    itls = gaps_s.tolist()
    there_and_back_us = 2 * _WIRE_NS / NS_PER_US
    ttft_us, e2e_us = served.ttft_us + there_and_back_us, served.e2e_us + there_and_back_us
    return {
        "duration": float(served.t_departed_us.max()) / US_PER_S,
        "completed": found.n_requests,
        "failed": 0,
        "total_input_tokens": int(served.prompt_tokens.sum()),
        "total_output_tokens": int(served.output_tokens.sum()),
        "request_throughput": found.request_throughput,
        "output_throughput": found.output_throughput,
        "mean_ttft_ms": float(ttft_us.mean()) / US_PER_MS,
        "request_ids": list(run.client_ids),
        "input_lens": served.prompt_tokens.tolist(),
        "output_lens": served.output_tokens.tolist(),
        "ttfts": (ttft_us / US_PER_S).tolist(),
        "itls": [itls[low:high] for low, high in pairwise(bounds)],
        "latencies": (e2e_us / US_PER_S).tolist(),
        "start_times": ((monotonic_ns(served.t_arrived_us) - _WIRE_NS) / NS_PER_S).tolist(),
        "errors": [""] * found.n_requests,
    }


def inter_token_us(served: Served, steps: StepLog) -> FloatArray:
    """Return the times between tokens at the client, request after request, ``output_tokens - 1`` each."""
    owner, made_us = token_times_us(served, steps)
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    last = np.maximum(served.output_tokens[owner] - 1, 1)
    first_outside = served.first_outside_us
    last_outside = served.t_departed_us - served.t_finished_us
    at_client = made_us + first_outside[owner] + (last_outside - first_outside)[owner] * rank / last
    return np.asarray(np.diff(at_client)[owner[1:] == owner[:-1]])


def token_times_us(served: Served, steps: StepLog) -> tuple[IntArray, FloatArray]:
    """Return the request and the time of every output token, by request and then by time.

    A step makes a token of a request where it leaves the whole prompt computed, and more than any step before it: after
    a preemption what was computed once is computed again without a new token.
    """
    number = np.repeat(np.arange(steps.n_steps), np.diff(steps.offsets))
    order = np.lexsort((number, steps.request))
    owner, reached = steps.request[order], (steps.computed_tokens + steps.new_tokens)[order]
    # One running maximum over all requests: each has a range of its own above the one before.
    stride = int(reached.max(initial=0)) + 1
    most = np.maximum.accumulate(reached + stride * owner) - stride * owner
    before = np.concatenate([[0], most[:-1]])
    before[np.concatenate([[True], owner[1:] != owner[:-1]])] = 0
    makes = (reached > before) & (reached >= served.prompt_tokens[owner])
    return owner[makes], steps.t_output_us[number[order][makes]]
