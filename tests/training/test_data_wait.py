"""The share of time that training waits for its data, and what is said about it."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.data.batches import training_batches
from finetune.data.examples import Examples
from finetune.data.rows import Rows
from finetune.training.data_wait import DataWait, advice_on_wait, reads_from_disk

X = np.ones((12, 3), "float32")


def slow_rows(seconds):
    def wait(index):
        time.sleep(seconds)
        return X[index]

    row = lambda index: tf.ensure_shape(tf.numpy_function(wait, [index], tf.float32), (3,))  # noqa: E731
    return Rows(12, lambda at: tf.map_fn(row, at, tf.float32), take_row=row)


def fitted(rows, step_seconds):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])

    def slow_loss(y, y_pred):
        def sleep(value):
            time.sleep(step_seconds)
            return value

        return tf.reduce_mean(y_pred) + 0.0 * tf.ensure_shape(tf.numpy_function(sleep, [tf.zeros(())], tf.float32), ())

    model.compile("sgd", slow_loss, jit_compile=False)
    wait = DataWait()
    batches = wait.timed(training_batches(rows, np.zeros(12), batch_size=4))
    model.fit(batches, steps_per_epoch=3, epochs=4, verbose=0, shuffle=False, callbacks=[wait])
    return wait


def test_slow_rows_are_waited_for_and_fast_ones_are_not():
    # The time of the steps includes that of compiling them.
    slow, fast = fitted(slow_rows(0.2), 0.0), fitted(slow_rows(0.0), 0.05)
    assert slow.share > 0.4
    assert fast.share < 0.3
    assert fast.share < slow.share


def test_the_batches_stay_the_same():
    plain, timed = training_batches(X, np.arange(12), batch_size=5), training_batches(X, np.arange(12), batch_size=5)
    timed = DataWait().timed(timed)
    assert timed.element_spec == plain.element_spec
    for (_, y), (_, other) in zip(plain.take(6), timed.take(6), strict=True):
        np.testing.assert_array_equal(y, other)


def test_before_training_there_is_no_share():
    assert DataWait().share is None


@pytest.mark.parametrize(("share", "begin"), [(None, ""), (0.04, ""), (0.38, "data: 38% of the time of the training")])
def test_waiting_is_told_where_it_costs_a_twentieth(share, begin):
    examples = Examples(slow_rows(0), np.zeros(12), X, np.zeros(12))
    said = advice_on_wait(share, examples, keeps=False)
    assert ("`data.keep: memory`" in said) == bool(begin)
    assert "data.keep" not in advice_on_wait(share, examples, keeps=True)
    assert said.startswith(begin)
    assert bool(said) == bool(begin)
    assert reads_from_disk(examples)
    assert not reads_from_disk(Examples(X, np.zeros(12), X, np.zeros(12)))
