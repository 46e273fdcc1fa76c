import numpy as np

from srfa.features import Block
from srfa.fit.learned import FREE, NON_NEGATIVE, learned_block

BLOCK = Block.of({("a", "us"): 1.0, ("b", "tokens"): 2.0}, 3)


def test_values_keep_their_names_units_and_scales():
    block = learned_block(BLOCK, np.array([1.5, -2.0]), np.array([10.0, 20.0]))
    assert (block.names, block.units, block.values, block.scales) == (
        ("a", "b"), ("us", "tokens"), (1.5, -2.0), (10.0, 20.0)
    )  # fmt: skip
    assert (block.lower, block.at_bound) == ((None, None), (False, False))


def test_one_pair_of_bounds_holds_for_all_and_a_list_has_one_each():
    values, scale = np.array([0.0, 4.0]), np.ones(2)
    assert learned_block(BLOCK, values, scale, bounds=NON_NEGATIVE).at_bound == (True, False)
    each = learned_block(BLOCK, values, scale, bounds=[FREE, (1.0, 4.0)])
    assert (each.lower, each.upper, each.at_bound) == ((None, 1.0), (None, 4.0), (False, True))
