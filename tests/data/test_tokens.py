"""Token ids of texts, and the rows and batches that are made of them."""

from itertools import islice

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.batches import batches_in_order, training_batches
from finetune.data.rows import as_rows, select, take_batch
from finetune.data.tokens import RowsOfTexts, buckets_up_to, token_rows, tokenize, width_of_batches

LENGTHS = [3, 0, 20, 40, 1, 17, 2, 16]


def encode(rows):
    """A token for each letter of the first text and then of the second: the number of the letter."""
    ids = [[ord(letter) for text in row for letter in text] for row in rows]
    types = [[number for number, text in enumerate(row) for _ in text] for row in rows]
    return (
        np.concatenate([np.array(each, np.int32) for each in ids]),
        np.concatenate([np.array(each, np.int32) for each in types]),
        np.array([len(each) for each in ids], np.int64),
        np.array([len(each) > 30 for each in ids]),
    )


@pytest.fixture
def tokens():
    return tokenize([(chr(97 + n) * length,) for n, length in enumerate(LENGTHS)], encode, "settings")


def test_rows_are_filled_up_to_the_full_length_when_they_are_taken(tokens):
    rows = token_rows(tokens, "ids", length=40, pad_id=7)
    taken = rows.take(tf.constant([0, 1, 4], tf.int64)).numpy()
    assert taken.shape == (3, 40)
    assert taken[:, :4].tolist() == [[97, 97, 97, 7], [7, 7, 7, 7], [101, 7, 7, 7]]
    mask = token_rows(tokens, "mask", length=40).take(tf.constant([0, 1, 3], tf.int64)).numpy()
    assert mask.sum(axis=1).tolist() == [3, 0, 40]
    assert (tokens.cut, tokens.highest, tokens.types) == (1, 104, None)
    assert token_rows(tokens, "types", length=40).take(tf.constant([2], tf.int64)).numpy().max() == 0


@pytest.mark.parametrize(
    ("padding", "widths"), [("buckets", [16, 40, 24, 16]), ("longest", [3, 40, 17, 16]), ("length", [40] * 4)]
)
def test_a_batch_is_filled_up_as_far_as_its_longest_row_needs(tokens, padding, widths):
    rows = token_rows(tokens, "ids", length=40, width=width_of_batches(tokens, 40, padding))
    full = rows.take(tf.range(8, dtype=tf.int64)).numpy()
    batches = batches_in_order(rows, np.arange(8), batch_size=2)
    assert [x.shape[1] for x, _ in batches] == widths
    for x, y in batches:
        width = x.shape[1]
        np.testing.assert_array_equal(x, full[y.numpy()][:, :width])
        assert full[y.numpy()][:, width:].sum() == 0


def test_a_batch_of_empty_texts_has_a_token_to_be_filled_up(tokens):
    rows = token_rows(tokens, "ids", length=40, width=width_of_batches(tokens, 40, "longest"))
    assert take_batch(rows, tf.constant([1], tf.int64)).numpy().tolist() == [[0]]


def test_the_order_of_an_epoch_is_that_of_rows_of_full_length(tokens):
    options = {"batch_size": 3, "seed": 5}
    width = width_of_batches(tokens, 40, "buckets")
    rows = {name: token_rows(tokens, name, length=40, width=width) for name in ("ids", "mask")}
    full = {name: token_rows(tokens, name, length=40) for name in ("ids", "mask")}
    batches = zip(
        training_batches(rows, np.array(LENGTHS), **options),
        training_batches(full, np.array(LENGTHS), **options),
        strict=True,
    )
    for (x, y), (whole, expected) in islice(batches, 6):  # two epochs
        np.testing.assert_array_equal(y, expected)
        assert x["ids"].shape == x["mask"].shape
        np.testing.assert_array_equal(x["ids"], whole["ids"][:, : x["ids"].shape[1]])
        np.testing.assert_array_equal(x["mask"].numpy().sum(axis=1), y)


def test_chosen_rows_keep_their_lengths_and_know_that_they_are_ready(tokens):
    rows = select(token_rows(tokens, "ids", length=40, width=width_of_batches(tokens, 40, "buckets")), np.array([4, 0]))
    assert rows.is_ready
    assert take_batch(rows, tf.constant([0, 1], tf.int64)).shape == (2, 16)
    assert rows.take(tf.constant([1], tf.int64)).numpy()[0, :4].tolist() == [97, 97, 97, 0]


def test_chosen_rows_of_a_text_share_the_function_of_their_width(tokens):
    width = width_of_batches(tokens, 40, "buckets")
    rows = {part: token_rows(tokens, part, length=40, width=width) for part in ("ids", "mask")}
    rows["other"] = token_rows(tokens, "ids", length=40, width=width_of_batches(tokens, 40, "longest"))
    chosen = select(rows, np.array([4, 0]))
    assert chosen["ids"].batch_width is chosen["mask"].batch_width
    assert chosen["ids"].batch_width is not chosen["other"].batch_width


def test_the_fingerprint_says_what_the_full_rows_depend_on(tokens):
    def print_of(**options):
        return token_rows(tokens, **{"part": "ids", "length": 40, **options}).fingerprint

    assert print_of() == print_of(width=width_of_batches(tokens, 40, "buckets"))
    assert len({print_of(), print_of(length=50), print_of(pad_id=1), print_of(part="mask")}) == 4


def test_pairs_have_types():
    pair = tokenize([("ab", "c"), ("d", "ef")], encode, "settings")
    types = token_rows(pair, "types", length=4)
    assert types.take(tf.constant([0, 1], tf.int64)).numpy().tolist() == [[0, 0, 1, 0], [0, 1, 1, 0]]


def test_texts_that_differ_in_where_they_are_divided_have_other_keys():
    columns = np.array(["ab", "d"]), np.array(["c", "ef"], np.dtypes.StringDType())
    from_arrays = tokenize(RowsOfTexts(columns), encode, "settings")
    assert from_arrays.key == tokenize([("ab", "c"), ("d", "ef")], encode, "settings").key
    keys = {tokenize(rows, encode, "s").key for rows in ([("ab", "c")], [("a", "bc")], [("ab",), ("c",)])}
    assert len(keys) == 3
    assert tokenize([("ab", "c")], encode, "t").key not in keys


def test_texts_without_any_token_are_rows_of_padding():
    rows = token_rows(tokenize([("",), ("",)], encode, "s"), "ids", length=2, pad_id=9)
    assert rows.take(tf.constant([0, 1], tf.int64)).numpy().tolist() == [[9, 9], [9, 9]]


def test_what_is_kept_in_a_folder_is_the_same_and_is_not_encoded_again(tmp_path, tokens):
    texts = [(chr(97 + n) * length,) for n, length in enumerate(LENGTHS)]
    first = tokenize(texts, encode, "settings", cache=tmp_path / "cache")
    second = tokenize(texts, lambda rows: pytest.fail("encoded again"), "settings", cache=tmp_path / "cache")
    assert (first.reused, second.reused) == (False, True)
    numbers = tf.range(8, dtype=tf.int64)
    expected = token_rows(tokens, "ids", length=40).take(numbers).numpy()
    for kept in (first, second):
        np.testing.assert_array_equal(token_rows(kept, "ids", length=40).take(numbers), expected)
        assert (kept.cut, kept.highest, kept.key) == (tokens.cut, tokens.highest, tokens.key)


def test_buckets_are_at_most_half_as_long_again():
    assert buckets_up_to(512) == (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    assert buckets_up_to(8) == (8,)
    assert buckets_up_to(17) == (16, 17)


def test_arrays_have_batches_of_a_single_form():
    assert as_rows(np.zeros((3, 2))).batch_width is None
