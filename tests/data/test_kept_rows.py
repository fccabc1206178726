"""Kept rows have the values of the rows, and each is decoded once."""

import resource
import threading

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.batches import training_batches
from finetune.data.kept_rows import RowForm, form_of, kept_in_memory, kept_on_disk
from finetune.data.rows import Rows, select

KEEPERS = [kept_in_memory, kept_on_disk]


class Decoder:
    """Rows that count how often each is decoded."""

    def __init__(self, values):
        self.values, self.decoded, self.lock = values, [], threading.Lock()

        def row(index):
            return tf.ensure_shape(tf.numpy_function(self.decode, [index], self.values.dtype), self.values.shape[1:])

        self.rows = Rows(len(values), lambda at: tf.map_fn(row, at, values.dtype), "abc", take_row=row)

    def decode(self, index):
        with self.lock:
            self.decoded.append(int(index))
        return self.values[index]


@pytest.mark.parametrize("keep", KEEPERS)
@pytest.mark.parametrize("dtype", ["float32", "uint8", "float16"])
def test_each_row_is_decoded_once_in_many_epochs_and_stays_the_same(keep, dtype):
    values = np.random.default_rng(0).uniform(0, 200, (11, 5, 3)).astype(dtype)
    decoder = Decoder(values)
    form = form_of(decoder.rows)
    assert form == RowForm(tf.as_dtype(dtype), (5, 3))
    rows = keep(decoder.rows, form)
    assert rows.fingerprint == "abc"
    assert decoder.decoded == []
    for x, y in training_batches(rows, np.arange(11), batch_size=4, seed=1).take(9):
        np.testing.assert_array_equal(x, values[y])
    # The pipeline reads some batches of the next epoch in advance, which are decoded already.
    assert sorted(decoder.decoded) == list(range(11))


@pytest.mark.parametrize("keep", KEEPERS)
def test_rows_taken_together_or_chosen_are_those_of_the_source(keep):
    values = np.arange(60, dtype="float32").reshape(10, 6)
    decoder = Decoder(values)
    rows = keep(decoder.rows, form_of(decoder.rows))
    np.testing.assert_array_equal(rows.take(tf.constant([3, 3, 9])), values[[3, 3, 9]])
    np.testing.assert_array_equal(select(rows, np.array([9, 0])).take(tf.constant([0, 1])), values[[9, 0]])
    assert sorted({*decoder.decoded}) == [0, 3, 9]
    assert decoder.decoded.count(9) == 1


@pytest.mark.parametrize("keep", KEEPERS)
def test_a_row_that_could_not_be_decoded_is_tried_again(keep):
    values = np.ones((3, 2), "float32")
    decoder = Decoder(values)
    rows = keep(decoder.rows, form_of(decoder.rows))
    decoder.values = np.ones((0, 2), "float32")
    with pytest.raises(tf.errors.OpError):
        rows.take(tf.constant([1]))
    decoder.values = values
    np.testing.assert_array_equal(rows.take(tf.constant([1])), values[1:2])


def test_rows_of_arrays_of_text_and_of_no_fixed_shape_are_not_kept():
    text = Rows(2, lambda at: tf.constant(["a", "b"]), take_row=lambda at: tf.constant("a"))
    loose = Rows(2, lambda at: tf.zeros((2, 1)), take_row=lambda at: tf.zeros((tf.cast(at, tf.int32) + 1,)))
    assert [form_of(each) for each in (text, loose, Rows(2, lambda at: tf.zeros((2, 1))))] == [None] * 3


def test_a_disk_that_fills_up_costs_time_and_not_the_run():
    values = np.random.default_rng(0).uniform(0, 200, (8, 5, 3)).astype("float32")
    decoder = Decoder(values)
    rows = kept_on_disk(decoder.rows, form_of(decoder.rows))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * values[0].nbytes, before[1]))
        with pytest.warns(UserWarning, match="cannot be kept on the disk any longer: File too large. Those") as warned:
            taken = [rows.take(tf.constant([index], tf.int64))[0] for _ in range(2) for index in range(8)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    np.testing.assert_array_equal(taken, [*values, *values])
    assert len(warned) == 1
    assert decoder.decoded == [*range(8), *range(3, 8)]
