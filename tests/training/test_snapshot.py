"""A measurement leaves no trace: everything that training changes is restored bit for bit."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.training.snapshot import no_trace


@pytest.fixture
def model(tiny):
    """The tiny model with dropout, which draws from a seed, trained for a step so that all variables exist."""
    model = keras.Sequential([tiny(), keras.layers.Dropout(0.5, seed=1)])
    model.compile(keras.optimizers.Adam(0.1), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.train_on_batch(np.ones((4, 6), "float32"), np.zeros(4))
    return model


def everything(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [np.array(variable.numpy()) for variable in variables]


def draws():
    """A random number of each kind; it moves the random state on."""
    return [float(number) for number in (random.random(), np.random.rand(), keras.random.normal(()).numpy())]


def train(model, rows):
    model.optimizer.learning_rate = 0.5
    model.fit(*rows, batch_size=30, verbose=0)


def test_weights_statistics_slots_rates_counters_metrics_and_seeds_are_restored(model, rows):
    before = everything(model)
    with no_trace(model):
        train(model, rows)
        assert not all(np.array_equal(a, b) for a, b in zip(before, everything(model), strict=True))
    for a, b in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_random_numbers_go_on_as_if_the_block_had_drawn_none(model):
    keras.utils.set_random_seed(3)
    draws()
    with no_trace(model):
        inside = draws()
    assert draws() == inside


def test_eager_operations_of_tensorflow_get_the_seeds_that_they_would_have_had(model):
    numbers = []
    for measures in (False, True):
        tf.random.set_seed(3)
        tf.random.normal([])
        if measures:
            with no_trace(model):
                tf.random.uniform([])
        numbers.append(float(tf.random.normal([])))
    assert numbers[0] == numbers[1]


def test_all_is_restored_after_an_error_too(model, rows):
    before = everything(model)

    def interrupted():
        with no_trace(model):
            train(model, rows)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for a, b in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_size_of_the_copy_counts_every_variable_once(model):
    with no_trace(model) as size:
        pass
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    assert size == sum(value.numpy().nbytes for value in {id(v): v for v in variables}.values())
