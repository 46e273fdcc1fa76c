"""Kinds of jobs that could be measured next, as the steps they would bring: for ranking them by what they tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from srfa.batches import MAX_NEW_TOKENS, Batches, batches_on, log_uniform, ragged, whole
from srfa.catalog import Catalog
from srfa.coefficients import Coefficients
from srfa.observations import Configuration, Observations
from srfa.physics_places import configurations_of

_MAX_CONCURRENCY: Final = 128


@dataclass(frozen=True, slots=True)
class LoadShape:
    """Prompt and output lengths of a load run, in tokens."""

    name: str
    input_tokens: int
    output_tokens: int


LOADS: Final = (
    LoadShape("prefill-heavy 3000/8", 3000, 8),
    LoadShape("decode-heavy 32/1500", 32, 1500),
    LoadShape("short bursts 64/32", 64, 32),
    LoadShape("balanced 512/2048", 512, 2048),
)


def candidate_steps(
    coefficients: Coefficients, catalog: Catalog, *, n_steps: int = 200, seed: int = 0
) -> dict[str, Observations]:
    """Return what each kind of job would bring, by its name: four loads, each on up to four kinds of place.

    The places are on the fit's GPUs: a dense model on one GPU, a mixture of experts, TP > 1 and EP > 1. Every kind
    brings the same number of steps, so that kinds compare by what a step of theirs tells.

    Raises
    ------
    CatalogError
        A GPU or model of the fit is not in the catalogue.
    """
    rng = np.random.default_rng(seed)
    places = dict(_places(configurations_of(coefficients, catalog), catalog))
    return {
        f"{load.name}, {place}": batches_on(_of_load(load, n_steps, rng), where, rng.integers(0, len(where), n_steps))
        for load in LOADS
        for place, where in places.items()
    }


def _places(where: tuple[Configuration, ...], catalog: Catalog) -> Iterator[tuple[str, tuple[Configuration, ...]]]:
    moe = {one.model: catalog.resolve_model(one.model).is_moe for one in where}
    kinds = {
        "dense": [one for one in where if not moe[one.model] and one.tensor_parallel_size == 1],
        "MoE": [one for one in where if moe[one.model] and one.expert_parallel_size == 1],
        "TP > 1": [one for one in where if not moe[one.model] and one.tensor_parallel_size > 1],
        "EP > 1": [one for one in where if one.expert_parallel_size > 1],
    }
    return ((kind, tuple(found)) for kind, found in kinds.items() if found)


def _of_load(load: LoadShape, n_steps: int, rng: np.random.Generator) -> Batches:
    """Draw steps of a server in steady state.

    Each running request is anywhere in its output, new ones arrive as old ones end, and no step has more new tokens
    than a server batches.
    """
    running = whole(log_uniform(rng, 1, _MAX_CONCURRENCY, n_steps))
    arriving = np.minimum(rng.poisson(running / load.output_tokens), max(1, MAX_NEW_TOKENS // load.input_tokens))
    decode = load.input_tokens + rng.integers(1, load.output_tokens + 1, int(running.sum()))
    new = np.full(int(arriving.sum()), float(load.input_tokens))
    return Batches(
        ragged(new, arriving), ragged(np.zeros(len(new)), arriving), ragged(decode.astype(np.float64), running)
    )
