import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from srfa.ragged import Ragged

lists = st.lists(st.lists(st.integers(0, 10_000), max_size=6), min_size=1, max_size=30)


@given(lists)
def test_sums_and_maxima_equal_those_of_plain_python(rows):
    ragged = Ragged.from_lists(rows)
    assert ragged.sum().tolist() == [sum(row) for row in rows]
    assert ragged.max().tolist() == [max(row, default=0) for row in rows]


@given(lists, st.randoms())
def test_taking_rows_keeps_each_list_whole(rows, random):
    order = [random.randrange(len(rows)) for _ in range(len(rows))]
    taken = Ragged.from_lists(rows).take(np.array(order))
    assert taken.sum().tolist() == [sum(rows[place]) for place in order]
    assert taken.lengths.tolist() == [len(rows[place]) for place in order]


@given(lists)
def test_an_arrow_column_reads_like_its_lists_even_when_sliced(rows):
    column = pa.chunked_array([pa.array([[1], *rows], type=pa.list_(pa.int32()))]).slice(1)
    assert Ragged.from_arrow(column).sum().tolist() == [sum(row) for row in rows]


def test_equal_shares_conserve_the_total():
    shares = Ragged.from_equal_shares(np.array([10.0, 0.0, 9.0]), np.array([4, 0, 3]))
    assert shares.sum().tolist() == [10.0, 0.0, 9.0]
    assert shares.lengths.tolist() == [4, 0, 3]
