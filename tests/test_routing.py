import numpy as np
import pytest

from srfa.errors import ObservationsError
from srfa.routing import LARGE_TILE, SMALL_TILE, TOKENS, busiest_rank

ROUTINGS = [None, "balanced", "power_law_1.01", "power_law_1.2"]


def at(load, tokens):
    return int(np.searchsorted(TOKENS, tokens))


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("experts", "top_k", "ranks"), [(8, 2, 1), (8, 2, 4), (128, 8, 8), (256, 8, 16)])
def test_loads_grow_with_tokens_and_stay_within_what_there_is(routing, experts, top_k, ranks):
    load = busiest_rank(routing, experts, top_k, ranks)
    for column in (load.activated, load.pairs, load.small_rows, load.large_rows):
        assert (np.diff(column) >= 0).all()
    assert (load.activated <= experts / ranks + 1e-9).all()
    assert (load.pairs <= TOKENS * min(top_k, experts / ranks) * (1 + 1e-9)).all()
    assert (load.pairs >= TOKENS * top_k / ranks * 0.85).all()
    assert (load.small_rows >= load.pairs).all()
    assert (load.large_rows >= load.small_rows - 1e-9).all()


@pytest.mark.parametrize("routing", ROUTINGS)
def test_on_one_rank_every_pair_is_there(routing):
    load = busiest_rank(routing, 64, 6, 1)
    assert load.pairs == pytest.approx(TOKENS * 6, rel=0.02)


def test_balanced_tokens_are_dealt_in_turn_by_hand():
    load = busiest_rank("balanced", 8, 2, 1)
    assert load.activated[at(load, 2)] == 4
    assert load.activated[at(load, 4)] == 8
    assert load.small_rows[at(load, 4)] == 8 * SMALL_TILE
    assert load.large_rows[at(load, 4)] == 8 * LARGE_TILE
    assert load.pairs[at(load, 128)] == 256


def test_random_routing_activates_what_the_formula_expects():
    load = busiest_rank(None, 64, 4, 1)
    for tokens in (1, 8, 32):
        assert load.activated[at(load, tokens)] == pytest.approx(64 * (1 - (1 - 4 / 64) ** tokens), rel=0.1)


def test_the_busiest_rank_of_a_skewed_routing_has_more_than_its_share_and_a_balanced_one_not():
    many = at(None, 8192)
    share = {routing: busiest_rank(routing, 128, 8, 8).pairs[many] / 8192 for routing in ("balanced", "power_law_1.01")}
    assert share["balanced"] == pytest.approx(1.0)
    assert 1.3 < share["power_law_1.01"] < 4.0


def test_a_steeper_law_is_more_skewed():
    mild, steep = (busiest_rank(f"power_law_{exponent}", 128, 8, 8).pairs[at(None, 4096)] for exponent in (0.5, 1.2))
    assert steep > mild


def test_the_same_question_has_the_same_answer():
    assert busiest_rank("power_law_1.01", 16, 2, 2) is busiest_rank("power_law_1.01", 16, 2, 2)
    busiest_rank.cache_clear()
    first = busiest_rank("power_law_1.01", 16, 2, 2)
    busiest_rank.cache_clear()
    assert busiest_rank("power_law_1.01", 16, 2, 2).pairs.tolist() == first.pairs.tolist()


@pytest.mark.parametrize("routing", ["skewed", "power_law_", "power_law_steep"])
def test_an_unknown_routing_is_refused_by_name(routing):
    with pytest.raises(ObservationsError, match=f"moe_routing='{routing}' is unknown; use 'balanced'"):
        busiest_rank(routing, 8, 2, 1)
