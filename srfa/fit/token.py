"""``alpha_token``: what a request costs outside the steps, per output token, per prefill and per KV byte read.

The target is what the client saw beyond the engine's arrival-to-finish, so the features ``[1, is_prefill, decode KV
read]`` of Idea 5 are summed over a request's tokens.
"""

from __future__ import annotations

from srfa.coefficients import CoefficientBlock
from srfa.features import Block, Columns
from srfa.fit.positive import fit_positive
from srfa.requests import RequestObservations


def token_features(requests: RequestObservations) -> Block:
    """Return ``[output tokens, prefills (one a request), decode KV read time]``."""
    columns: Columns = {
        ("output_tokens", "tokens"): requests.output_tokens,
        ("prefills", "requests"): 1.0,
        ("decode_kv_read", "us"): requests.kv_read_us,
    }
    return Block.of(columns, requests.n_requests)


def fit_token(requests: RequestObservations) -> dict[str, CoefficientBlock]:
    """Fit the per-token model; every coefficient is non-negative."""
    return {"alpha_token": fit_positive(token_features(requests), requests.outside_us, what="alpha_token")}
