"""Rows that two data sets share, of any type and with several arrays, as a comparison of each with each finds them."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import same_rows as module
from finetune.data.rows import Rows
from finetune.data.same_rows import same_rows

DRAW = np.random.default_rng(0)


@given(st.sampled_from(["uint8", "float32", "float64", "int64", "<U3"]), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_they_are_those_that_a_comparison_of_each_with_each_finds(dtype, count, seed):
    draw = np.random.default_rng(seed)
    rows, others = (draw.integers(0, 3, size=(length, 3)).astype(dtype) for length in (count, 20))
    expected = [place for place, row in enumerate(others) if any((row == each).all() for each in rows)]
    assert same_rows([rows], [others]).tolist() == expected


def test_a_row_of_several_arrays_is_the_same_where_all_of_them_are_over_several_blocks(monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 7)
    a, b = DRAW.normal(size=(50, 2, 2)).astype("float32"), DRAW.integers(0, 9, size=50)
    places = np.array([3, 40, 3, 17])
    other_b = b[places] + [0, 1, 0, 0]
    assert same_rows([a, b], [a[places], other_b]).tolist() == [0, 2, 3]


def test_rows_of_another_type_or_length_are_others_and_rows_by_index_are_read():
    values = np.arange(6, dtype="float32").reshape(3, 2)
    assert same_rows([values], [values.astype("float64")]).tolist() == []
    by_index = Rows(3, lambda indices: tf.gather(values, indices))
    assert same_rows([by_index], [values[::-1]]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("bit", [0, 31, 32, 63])
def test_a_single_bit_makes_another_row(bit):
    values = DRAW.integers(0, 2**63, size=(100, 2), dtype=np.uint64)
    assert same_rows([values], [values ^ np.uint64(1 << bit)]).tolist() == []
