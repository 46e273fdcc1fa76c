"""Features of ``srfa-seed``'s token model: what a request costs outside the steps, by output token, prefill, KV read.

The target is what the client saw beyond the engine's arrival-to-finish, so the features ``[1, is_prefill, decode KV
read]`` of Idea 5 are summed over a request's tokens.
"""

from __future__ import annotations

from srfa.features import Block, Columns
from srfa.requests import RequestObservations


def token_features(requests: RequestObservations) -> Block:
    """Return ``[output tokens, prefills (one a request), decode KV read time]``."""
    columns: Columns = {
        ("output_tokens", "tokens"): requests.output_tokens,
        ("prefills", "requests"): 1.0,
        ("decode_kv_read", "us"): requests.kv_read_us,
    }
    return Block.of(columns, requests.n_requests)
