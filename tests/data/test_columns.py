"""Columns: what becomes of numbers, categories and text, and that nothing is fitted to the test rows."""

import keras
import numpy as np
import pytest

from finetune.data.columns import category_places, feature_vectors
from finetune.data.table_column import Column
from finetune.errors import DataError

TRAIN = np.array([0, 1, 2, 3])


def numbers(*values, name="n"):
    return Column(name, "number", np.array(values, float), all(value == round(value) for value in values))


def texts(*values, name="t"):
    return Column(name, "text", np.array(values))


def vectors_of(columns, kinds, train):
    """Returns the vectors of all rows, and what was fitted to those to train on."""
    vectors, fitted = feature_vectors(columns, kinds, {"train": train, "all": np.arange(len(columns[0].values))})
    np.testing.assert_array_equal(vectors["train"], vectors["all"][train])
    return vectors["all"], fitted


def test_numbers_are_normalized_by_the_training_rows_alone():
    vectors, fitted = vectors_of([numbers(1, 2, 3, 6, 1000)], {}, TRAIN)
    np.testing.assert_allclose(vectors[:4].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(vectors[:4].std(), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[4], (1000 - 3) / np.sqrt(3.5), rtol=1e-5)
    assert fitted["n"] == {"kind": "number", "missing": 0, "mean": 3.0, "variance": 3.5}


def test_a_missing_number_becomes_the_mean_of_the_training_rows():
    vectors, fitted = vectors_of([Column("n", "number", np.array([1, np.nan, 3, np.nan, np.nan]))], {}, TRAIN)
    assert vectors[[1, 3, 4], 0].tolist() == [0, 0, 0]
    assert fitted["n"]["mean"] == 2
    assert fitted["n"]["missing"] == 3


def test_categories_are_those_of_the_training_rows_and_others_share_the_first_place():
    vectors, fitted = vectors_of([texts("b", "a", "", "b", "new")], {}, TRAIN)
    assert vectors.tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert fitted["t"]["categories"] == ["", "a", "b"]


def test_columns_come_in_their_order_and_numbers_can_be_categories():
    vectors, fitted = vectors_of([numbers(5, 7, 5, 7), texts("a", "a", "a", "a")], {"n": "category"}, TRAIN)
    assert vectors.shape == (4, 5)
    assert fitted["n"]["categories"] == ["5", "7"]
    assert vectors[0].tolist() == [0, 1, 0, 0, 1]


def test_a_constant_column_gives_zeros_and_other_values_their_distance():
    assert vectors_of([numbers(4, 4, 4, 4, 6)], {}, TRAIN)[0].tolist() == [[0], [0], [0], [0], [2]]


def test_large_numbers_that_differ_little_stay_different():
    stamps = Column("n", "number", 1.7e9 + np.arange(100.0), whole=True)
    vectors, fitted = vectors_of([stamps], {}, np.arange(100))
    assert len(set(vectors[:, 0].tolist())) == 100
    assert fitted["n"]["mean"] == 1.7e9 + 49.5


def test_text_is_no_number_and_no_category_of_a_thousand_values():
    with pytest.raises(DataError, match=r"`t` also holds `x`\. Correct them, or make it a category: `types: \{t: cat"):
        vectors_of([texts("1", "x", "2", "3")], {"t": "number"}, TRAIN)
    many = texts(*map(str, range(2000)), name="id")
    with pytest.raises(DataError, match=r"`id` has 2,000\. If it is text, name a `tokenizer`"):
        vectors_of([many], {}, np.arange(2000))


def test_places_of_categories_are_those_of_the_layer_of_keras():
    categories = ["", "1", "2.0", "Ulm"]
    texts = ["Ulm", "", "2.0", "1.0", "Rome", "1"]
    layer = keras.layers.StringLookup(vocabulary=[f"={each}" for each in categories], output_mode="one_hot")
    expected = layer(np.array([f"={each}" for each in texts], object)[:, np.newaxis])
    made = category_places(texts, categories)
    np.testing.assert_array_equal(made[[0, 1, 2, 4, 5]], np.asarray(expected)[[0, 1, 2, 4, 5]])
    np.testing.assert_array_equal(made[3], made[5])  # the number that it stands for


def test_categories_of_almost_the_same_name_are_a_warning():
    _, fitted = vectors_of([Column("town", "text", np.array(["Bad Ems", "bad-ems", "Bonn", ""]))], {}, np.arange(4))
    assert fitted["town"]["warnings"] == [
        "Categories of `town` that differ by upper case, spaces, hyphens or underscores alone are different ones: `Bad Ems` "
        "and `bad-ems`. If they are one, write them alike"
    ]


def test_categories_that_hardly_occur_twice_are_a_warning():
    names = np.array([f"id {number}" for number in range(60)])
    _, fitted = vectors_of([Column("id", "text", names)], {}, np.arange(60))
    assert fitted["id"]["warnings"] == [
        "`id` is a category with 60 different values in 60 training rows. A value that no other row has says nothing of "
        "other rows: write numbers or fewer categories in its place, tokenize it, or leave it out"
    ]
    for few in (np.arange(40), np.arange(60) % 30):
        assert "warnings" not in vectors_of([Column("id", "text", names[few])], {}, np.arange(len(few)))[1]["id"]


def test_columns_that_are_made_again_are_taken_in_turn_and_splits_are_read_only():
    taken = []

    class Made(list):
        def __getitem__(self, index):
            taken.append(index)
            return super().__getitem__(index)

    columns = Made([numbers(1, 2, 3, name="a"), texts("x", "y", "x"), numbers(7, 8, 8, name="b")])
    splits = {"train": np.array([2, 0]), "test": np.array([1])}
    vectors, _ = feature_vectors(columns, {}, splits)
    assert vectors["train"].tolist() == [[1, 0, 1, 1], [-1, 0, 1, -1]]
    assert vectors["test"].tolist() == [[0, 1, 0, 1]]
    assert taken == [0, 2]  # those of numbers for the second time, none of them twice
    for made in vectors.values():
        with pytest.raises(ValueError, match="read-only"):
            made[0] = 0


def test_a_column_that_is_named_twice_is_in_the_vector_twice():
    vectors, fitted = vectors_of([numbers(1, 3), numbers(1, 3)], {}, np.array([0, 1]))
    assert vectors.tolist() == [[-1, -1], [1, 1]]
    assert list(fitted) == ["n"]
