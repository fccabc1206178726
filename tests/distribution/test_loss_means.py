"""Means of a loss over the rows of all replicas; whole trainings are in `test_step_on_replicas.py`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.distribution.loss_means import exact_means, in_share, sum_over_replicas


def loss_of(reduction="sum_over_batch_size", mask=None, weights=None):
    outputs = tf.constant([[1.0], [2.0], [3.0], [4.0]])
    if mask is not None:
        outputs._keras_mask = tf.constant(mask)
    return float(keras.losses.MeanSquaredError(reduction=reduction)(tf.zeros((4, 1)), outputs, sample_weight=weights))


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("mask", [None, [True, False, True, False]])
@pytest.mark.parametrize("weights", [None, np.float32([1, 2, 3, 4])])
def test_with_a_single_replica_each_reduction_is_that_of_keras(reduction, mask, weights):
    expected = loss_of(reduction, mask, weights)
    with exact_means(), in_share(tf.constant(4), tf.constant(1.0)):
        assert loss_of(reduction, mask, weights) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_rows_that_do_not_count_add_nothing(reduction):
    with exact_means(), in_share(tf.constant(0), tf.constant(0.0)):
        assert loss_of(reduction) == 0.0


def test_outside_of_a_replica_and_of_the_block_keras_is_as_it_was():
    functions = keras.src.losses.loss.reduce_values, keras.random.SeedGenerator.next
    with exact_means():
        assert loss_of() == 7.5
    assert (keras.src.losses.loss.reduce_values, keras.random.SeedGenerator.next) == functions


def test_a_function_that_reduces_by_itself_is_taken_as_a_mean():
    class OwnMean(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return tf.reduce_mean(y_pred)

    with exact_means(), in_share(tf.constant(1), tf.constant(0.25)):
        assert float(OwnMean()(tf.zeros((4, 1)), tf.ones((4, 1)))) == 0.25
        assert float(OwnMean(reduction="sum")(tf.zeros((4, 1)), tf.ones((4, 1)))) == 1.0


def test_the_sum_over_a_single_replica_is_the_value():
    assert [float(part) for part in sum_over_replicas([tf.constant(2.0), tf.constant(3.0)])] == [2.0, 3.0]


def test_what_has_no_gradient_stays_nothing_in_a_sum():
    total, nothing = sum_over_replicas([tf.constant(2.0), None])
    assert (float(total), nothing) == (2.0, None)
    assert sum_over_replicas([None]) == [None]
