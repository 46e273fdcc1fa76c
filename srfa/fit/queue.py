"""Features of two queueing models: ``alpha`` (arrival to queued) and ``queue_wait`` (queued to first scheduled).

A simulator adds ``alpha`` before its own queue, where waiting emerges by itself; ``queue_wait`` serves users who have
no simulator. Features of the latter: Idea 5 of the research document, with configurable thresholds and preemptions.
"""

from __future__ import annotations

import numpy as np

from srfa.coefficients import FitConfig
from srfa.features import Block, Columns
from srfa.requests import RequestObservations


def alpha_features(requests: RequestObservations) -> Block:
    """Return ``[1, prompt tokens]``: hand-over and tokenisation."""
    columns: Columns = {("intercept", "us"): 1.0, ("prompt_tokens", "tokens"): requests.prompt_tokens}
    return Block.of(columns, requests.n_requests)


def queue_wait_features(requests: RequestObservations, config: FitConfig) -> Block:
    """Return ``[1, prompt/max_model_len, queue/max_num_seqs, kv over t1, kv over t2, preemptions/max_num_seqs]``."""
    low, high = config.kv_thresholds
    columns: Columns = {
        ("intercept", "us"): 1.0,
        ("prompt_share", "1"): requests.prompt_tokens / requests.max_model_len,
        ("queue_share", "1"): requests.waiting_at_queue / requests.max_num_seqs,
        (f"kv_over_{low:g}", "1"): np.maximum(0.0, requests.kv_usage_at_queue - low),
        (f"kv_over_{high:g}", "1"): np.maximum(0.0, requests.kv_usage_at_queue - high),
        ("recent_preemptions", "1"): requests.recent_preemptions / requests.max_num_seqs,
    }
    return Block.of(columns, requests.n_requests)
