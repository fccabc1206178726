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
    for variables in ([v, other], [v, other], [other], [v, other]):
        optimizer.apply([tf.ones(1)] * len(variables), variables)
    # -1, then the mean of -1 and -2, then nothing while it is frozen, then the mean of -1.5 and -3.
    assert float(optimizer._model_variables_moving_average[0][0]) == -2.25


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


def test_an_average_that_lags_behind_its_variable_stays_where_it_is_while_the_variable_is_frozen():
    v, other = tf.Variable([0.0]), tf.Variable([0.0])
    optimizer = GroupedOptimizer([(SGD(1.0), v), (SGD(1.0), other)], use_ema=True, ema_momentum=0.5)
    for variables in ([v, other], [v, other], [other]):
        optimizer.apply([tf.ones(1)] * len(variables), variables)
    assert float(optimizer._model_variables_moving_average[0][0]) == -1.5  # of -1 and -2


def test_the_average_of_trained_variables_has_the_bits_of_keras():
    rng = np.random.default_rng(0)
    values, steps = rng.standard_normal(50).astype("f4"), rng.standard_normal((4, 50)).astype("f4")
    averages = []
    for make in (lambda v, **ema: SGD(0.1, **ema), lambda v, **ema: GroupedOptimizer([(SGD(0.1), v)], **ema)):
        variable = tf.Variable(values)
        optimizer = make(variable, use_ema=True, ema_momentum=0.9)
        for gradient in steps:
            optimizer.apply([tf.constant(gradient)], [variable])
        averages.append(optimizer._model_variables_moving_average[0].numpy())
    np.testing.assert_array_equal(*averages)


def test_a_part_of_the_variables_gets_its_own_averages_at_the_end():
    variables = [tf.Variable([0.0]), tf.Variable([10.0])]
    optimizer = GroupedOptimizer([(SGD(1.0), variables)], use_ema=True, ema_momentum=0.5)
    for _ in range(2):
        optimizer.apply([tf.ones(1)] * 2, variables)
    optimizer.finalize_variable_values(variables[1:])
    assert [float(v[0]) for v in variables] == [-2, 8.5]  # the mean of 9 and 8


def test_without_an_average_nothing_is_written_at_the_end():
    variable = tf.Variable([0.0])
    optimizer = GroupedOptimizer([(SGD(1.0), variable)])
    optimizer.apply([tf.ones(1)], [variable])
    optimizer.finalize_variable_values([variable])
    assert float(variable[0]) == -1


def test_an_average_that_came_from_a_file_is_not_started_again():
    model = make_model("a")
    optimizer = GroupedOptimizer([(SGD(0.5), model)], use_ema=True, ema_momentum=0.5)
    again = GroupedOptimizer.from_config(optimizer.get_config())
    assert len(again.not_fused) == 2, "which makes the slots"
    again.set_weights([np.full(v.shape, 3, v.dtype) for v in again.variables])
    again.build(make_model("a").trainable_variables)
    assert all((average.numpy() == 3).all() for average in again._model_variables_moving_average)
