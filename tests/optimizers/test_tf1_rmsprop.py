"""RMSProp is that of TF1, step by step, against a session that runs TF1's own."""

import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.optimizers import tf1_rmsprop
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.tf1_rmsprop import TF1RMSprop

train = tf.compat.v1.train
# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
saves_a_model = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
KINDS = [{}, {"momentum": 0.9}, {"centered": True}, {"momentum": 0.9, "centered": True, "epsilon": 1e-3}]
four_kinds = pytest.mark.parametrize("settings", KINDS, ids=["plain", "momentum", "centered", "both"])


@pytest.fixture
def tf1_weights(twenty_steps):
    return lambda kind, settings: twenty_steps.of_tf1(lambda rate: train.RMSPropOptimizer(rate, **settings), 0.01, kind)


@pytest.fixture
def decaying(twenty_steps):
    return lambda make, **settings: make(learning_rate=twenty_steps.falling(0.01), **settings)


@four_kinds
def test_twenty_steps_under_a_staircase_are_tf1s_bit_for_bit(settings, tf1_weights, decaying, twenty_steps):
    np.testing.assert_array_equal(
        twenty_steps.of_keras(decaying(TF1RMSprop, **settings), "dense"), tf1_weights("dense", settings)
    )


@four_kinds
def test_the_rows_of_a_sparse_gradient_go_tf1s_way_and_other_rows_stay(settings, tf1_weights, decaying, twenty_steps):
    ours = twenty_steps.of_keras(decaying(TF1RMSprop, **settings), "sparse")
    np.testing.assert_allclose(ours, tf1_weights("sparse", settings), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours[-1, 5], twenty_steps.start[5])


@pytest.mark.sample(3)
@four_kinds
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_twenty_steps_compiled_by_xla_are_tf1s_within_rounding(kind, settings, tf1_weights, decaying, twenty_steps):
    ours = twenty_steps.of_keras(decaying(TF1RMSprop, **settings), kind, jit_compile=True)
    np.testing.assert_allclose(ours, tf1_weights(kind, settings), rtol=0, atol=1e-6)


def test_keras_rmsprop_begins_too_fast_for_settings_of_tf1(tf1_weights, decaying, twenty_steps):
    theirs = twenty_steps.of_keras(decaying(keras.optimizers.RMSprop, epsilon=1e-10), "dense")
    assert np.abs(theirs - tf1_weights("dense", {})).max() > 0.02


def test_a_hand_computed_step_with_the_mean_square_starting_at_one():
    weight = tf.Variable([1.0])
    optimizer = TF1RMSprop(0.5, rho=0.75, momentum=0.5, epsilon=0.0)
    optimizer.apply([tf.constant([3.0])], [weight])  # s = 0.75 + 0.25 * 9 = 3, m = 0.5 * 3 / sqrt(3)
    assert weight.numpy() == pytest.approx(1 - 1.5 / 3**0.5)
    assert optimizer.mean_squares[0].numpy() == 3


@four_kinds
def test_updated_together_the_variables_of_a_group_go_the_same_way(settings, twenty_steps):
    start = twenty_steps.start
    variables = {fused: [keras.Variable(start), keras.Variable(-start)] for fused in ("on", "off")}
    for fused, of_group in variables.items():
        optimizer = GroupedOptimizer({"all": (TF1RMSprop(0.1, **settings), of_group)}, fused=fused)
        for step in range(3):
            gradient = tf.constant(twenty_steps.gradients[step])
            optimizer.apply([gradient, 2 * gradient], of_group)
    for together, alone in zip(variables["on"], variables["off"], strict=True):
        np.testing.assert_allclose(together.numpy(), alone.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_gradients_are_cast_to_the_type_of_the_variable(kind, dtype, tf1_weights, decaying, twenty_steps):
    last = twenty_steps.of_keras(
        decaying(TF1RMSprop, epsilon=1e-3), kind, variable=tf.Variable(tf.cast(twenty_steps.start, dtype))
    )[-1]
    expected = tf1_weights(kind, {"epsilon": 1e-3})[-1]
    np.testing.assert_allclose(last.astype("f8"), expected, atol=0.1)


@saves_a_model
def test_it_survives_a_keras_file_with_its_slots_and_settings(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    optimizer = TF1RMSprop(0.01, rho=0.8, momentum=0.7, epsilon=1e-4, centered=True)
    model.compile(optimizer, "mse")
    x, y = np.ones((8, 4), "f4"), np.zeros((8, 2), "f4")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.optimizer.get_config() == optimizer.get_config()
    for each in (model, loaded):
        each.fit(x, y, verbose=0)
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": 1.5}, "`rho` must be a number from 0 to 1. Received `1.5`. `0.9` is usual."),
        ({"momentum": "a"}, "`momentum` must be a number from 0 to 1. Received `'a'`. `0.9`, or 0 for none, is usual."),
        ({"epsilon": -1}, "`epsilon` must be a number >= 0. Received `-1`. `1e-10` is usual."),
    ],
)
def test_settings_out_of_bounds_are_refused(settings, message):
    with pytest.raises(GroupError) as caught:
        TF1RMSprop(0.1, **settings)
    assert str(caught.value) == message


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(tf1_rmsprop).failed == 0
