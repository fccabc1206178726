import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.optimizers.grouped import GroupedOptimizer

SGD = keras.optimizers.SGD


def make_model(*names, units=2):
    """Layers of equal shape, so that only their names and places tell their variables apart."""
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(units, name=name) for name in names)])


def with_only(model, *names):
    for layer in model.layers:
        layer.trainable = layer.name in names
    return model.trainable_variables


@pytest.mark.parametrize("overwrite", [None, 1])
def test_a_moving_average_leaves_a_frozen_part_alone_to_the_last_bit(overwrite):
    frozen = tf.Variable(np.random.default_rng(0).standard_normal(1000).astype("f4"))
    trained = tf.Variable(np.ones(2, "f4"))
    before = frozen.numpy()
    optimizer = GroupedOptimizer(
        [(SGD(0.1), frozen), (SGD(0.1), trained)], use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=overwrite
    )
    for _ in range(5):
        optimizer.apply([tf.ones(2)], [trained])
    average = optimizer._model_variables_moving_average[0]
    np.testing.assert_array_equal(frozen.numpy(), before)
    np.testing.assert_array_equal(average.numpy(), before)


def test_an_average_goes_on_from_where_it_was_when_its_part_is_unfrozen():
    v, other = tf.Variable([0.0]), tf.Variable([0.0])
    optimizer = GroupedOptimizer([(SGD(1.0), v), (SGD(1.0), other)], use_ema=True, ema_momentum=0.5)
    for variables in ([v, other], [other], [v, other]):
        optimizer.apply([tf.ones(1)] * len(variables), variables)
    assert float(optimizer._model_variables_moving_average[0][0]) == -1.5  # of -1 and -2


def test_an_average_does_not_overwrite_what_is_frozen_by_then():
    v, other = tf.Variable([0.0]), tf.Variable([0.0])
    optimizer = GroupedOptimizer([(SGD(1.0), [v, other])], use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    for variables in ([v, other], [v, other], [other]):
        optimizer.apply([tf.ones(1)] * len(variables), variables)
    assert (float(v[0]), float(other[0])) == (-2, -2.25)


def test_an_average_starts_where_a_part_is_that_comes_later():
    optimizer = GroupedOptimizer([(SGD(0.5), make_model(*"ab"))], use_ema=True, ema_momentum=0.5)
    found, model = GroupedOptimizer.from_config(optimizer.get_config()), make_model(*"ab")
    for names in ("b", "ab"):
        variables = with_only(model, *names)
        found.apply([tf.zeros(v.shape) for v in variables], variables)
    before = [v.numpy() for v in model.trainable_variables]
    found.finalize_variable_values(model.trainable_variables)
    for v, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)
