"""How many experts and tokens the busiest expert-parallel rank of a MoE layer gets, expected under a declared routing.

The busiest rank sets the pace of a layer, and a kernel works on tiles, so neither mean loads nor exact counts will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from srfa.errors import ObservationsError
from srfa.ragged import FloatArray

_OCTAVES: Final = 17
_STEPS_AN_OCTAVE: Final = 3
TOKENS: Final = np.unique(
    np.concatenate(
        [
            np.round(2.0 ** (np.arange(_OCTAVES * _STEPS_AN_OCTAVE + 1) / _STEPS_AN_OCTAVE)),
            2.0 ** np.arange(1, 10) + 1.0,  # where a kernel changes its tile: one token more than experts
        ]
    )
)
"""Tokens of a step for which loads are tabulated; between them figures are interpolated in logarithms."""
SMALL_TILE: Final = 16
LARGE_TILE: Final = 64
"""Rows of a tile of vLLM's fused-MoE kernel without a tuned configuration: small up to one token an expert."""
_DRAWS: Final = 48
_SEED: Final = 7
_LARGEST_SHARE: Final = 0.8
_ROUNDS: Final = 12
"""Each hands out most of what is missing; experts that are full drop out of the next."""
_POWER_LAW: Final = "power_law_"
_AT_RANDOM: Final = (None, "random", "uniform")

Draw = Callable[[np.random.Generator, int, int, int], FloatArray]
"""``(generator, tokens, experts, top_k)`` to token counts of each expert, shape ``(n_draws, experts)``."""


@dataclass(frozen=True, slots=True)
class RankLoad:
    """The busiest rank's load in one MoE layer, for each entry of :data:`TOKENS`.

    Parameters
    ----------
    activated
        Experts with at least one token: their weights are read.
    pairs
        Pairs of a token and an expert.
    small_rows, large_rows
        The same after padding every expert's tokens to tiles of 16 or 64 rows: what is multiplied.
    """

    activated: FloatArray
    pairs: FloatArray
    small_rows: FloatArray
    large_rows: FloatArray


@lru_cache(maxsize=256)
def busiest_rank(routing: str | None, experts: int, top_k: int, ranks: int) -> RankLoad:
    """Return the expected load of the rank that gets most tokens.

    Parameters
    ----------
    routing
        ``balanced``: tokens are dealt to the experts in turn. ``power_law_<exponent>``: an expert's popularity follows
        a bounded power law (the skew that ai-dynamo/aiconfigurator measures with). None, ``random`` or ``uniform``:
        every token chooses ``top_k`` experts at random.
    experts, top_k, ranks
        Routed experts of the layer, those a token goes to, and the ranks they are spread over in equal blocks.

    Raises
    ------
    ObservationsError
        The routing is none of these.
    """
    draw = _drawing(routing)
    generator = np.random.default_rng(_SEED)
    loads = [_of_rank(draw(generator, int(tokens), experts, top_k), ranks) for tokens in TOKENS]
    return RankLoad(*np.maximum.accumulate(np.array(loads), axis=0).T)


def require_routing(routing: str | None) -> None:
    """Do nothing where :func:`busiest_rank` knows the routing.

    Raises
    ------
    ObservationsError
        It does not.
    """
    _drawing(routing)


def _drawing(routing: str | None) -> Draw:
    if routing in _AT_RANDOM:
        return _random
    if routing == "balanced":
        return _balanced
    try:
        exponent = float(str(routing).removeprefix(_POWER_LAW)) if str(routing).startswith(_POWER_LAW) else np.nan
    except ValueError:
        exponent = np.nan
    if not np.isfinite(exponent):
        raise ObservationsError(
            f"moe_routing={routing!r} is unknown; use 'balanced', 'power_law_<exponent>', 'random' or null"
        )
    return lambda generator, tokens, experts, top_k: _power_law(generator, tokens, experts, top_k, exponent=exponent)


def _balanced(_: np.random.Generator, tokens: int, experts: int, top_k: int) -> FloatArray:
    dealt, left = divmod(tokens * top_k, experts)
    loads = np.full(experts, float(dealt))
    loads[(np.arange(left) * experts) // max(left, 1)] += 1.0
    return loads[None, :]


def _random(generator: np.random.Generator, tokens: int, experts: int, top_k: int) -> FloatArray:
    """Loads of independent choices: binomial for each expert, brought to the exact number of pairs."""
    loads = generator.binomial(tokens, top_k / experts, size=(_DRAWS, experts)).astype(np.float64)
    return _brought_to(loads, tokens * top_k, tokens)


def _power_law(generator: np.random.Generator, tokens: int, experts: int, top_k: int, *, exponent: float) -> FloatArray:
    """Popularities by inversion of the bounded law, scaled to the number of pairs; no expert gets a token twice."""
    many = tokens * top_k > experts
    low, high = (1.0, max(_LARGEST_SHARE * tokens, 1.0)) if many else (0.01, 2.0)
    power = 1.0 - exponent
    uniform = generator.random((_DRAWS, experts))
    popularity = (low**power + uniform * (high**power - low**power)) ** (1.0 / power)
    exact = popularity / popularity.sum(axis=1, keepdims=True) * (tokens * top_k)
    return _brought_to(np.round(exact), tokens * top_k, tokens)


def _brought_to(loads: FloatArray, pairs: int, tokens: int) -> FloatArray:
    """Bring every draw to exactly ``pairs`` pairs, no expert above ``tokens``: shares first, then one each."""
    loads = np.minimum(loads, tokens)
    for _ in range(_ROUNDS):
        missing = pairs - loads.sum(axis=1, keepdims=True)
        room = np.where(missing > 0, np.where(loads < tokens, loads, 0.0), loads)
        share = room / np.maximum(room.sum(axis=1, keepdims=True), 1.0)
        loads = np.clip(loads + np.trunc(missing * share), 0.0, tokens)
    return _one_each(loads, pairs, tokens)


def _one_each(loads: FloatArray, pairs: int, tokens: int) -> FloatArray:
    """Hand what rounding lost to the busiest experts with room, one each, round by round; take what is too much."""
    order = np.argsort(-loads, axis=1)
    ranked = np.take_along_axis(loads, order, axis=1)
    while (missing := pairs - ranked.sum(axis=1)).any():
        room = np.where(missing[:, None] > 0, ranked < tokens, ranked > 0)
        ranked += np.where(room & (np.cumsum(room, axis=1) <= np.abs(missing)[:, None]), np.sign(missing)[:, None], 0.0)
    np.put_along_axis(loads, order, ranked, axis=1)
    return loads


def _of_rank(loads: FloatArray, ranks: int) -> tuple[float, float, float, float]:
    """Return activated experts, pairs and padded rows of each draw's busiest rank, averaged over the draws."""
    draws, experts = loads.shape
    size = -(-experts // ranks)
    padded = np.zeros((draws, size * ranks))
    padded[:, :experts] = loads
    by_rank = padded.reshape(draws, ranks, size)
    mine = by_rank[np.arange(draws), np.argmax(by_rank.sum(axis=2), axis=1)]
    small, large = (float((np.ceil(mine / tile) * tile).sum(axis=1).mean()) for tile in (SMALL_TILE, LARGE_TILE))
    return float((mine > 0).sum(axis=1).mean()), float(mine.sum(axis=1).mean()), small, large
