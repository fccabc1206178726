"""RMSProp is that of TF1, step by step, against a session that runs TF1's own."""

import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.optimizers import tf1_rmsprop
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.schedules import exponential_decay
from finetune.optimizers.tf1_rmsprop import TF1RMSprop

tf1 = tf.compat.v1
# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
saves_a_model = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
NUM_STEPS = 20
RATE = (0.01, 5, 0.5)  # initial, decay_steps, decay_rate: falls three times within 20 steps
START = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
GRADIENTS = np.random.default_rng(1).standard_normal((NUM_STEPS, 6, 4)).astype(np.float32)
ROWS = np.random.default_rng(2).integers(0, 5, (NUM_STEPS, 3))  # the last row never occurs; some occur twice
ROW_GRADIENTS = np.random.default_rng(3).standard_normal((NUM_STEPS, 3, 4)).astype(np.float32)
KINDS = [{}, {"momentum": 0.9}, {"centered": True}, {"momentum": 0.9, "centered": True, "epsilon": 1e-3}]
four_kinds = pytest.mark.parametrize("settings", KINDS, ids=["plain", "momentum", "centered", "both"])


def dense(step):
    return tf.gather(GRADIENTS, step)


def sparse(step):
    return tf.IndexedSlices(tf.gather(ROW_GRADIENTS, step), tf.gather(ROWS, step), tf.constant([6, 4], tf.int64))


def tf1_weights(gradient_at, settings):
    """The weights after every step of `tf.compat.v1.train.RMSPropOptimizer` in a session of a TF1 program."""
    with tf.Graph().as_default(), tf1.Session() as session:
        weight = tf1.get_variable("weight", initializer=START, use_resource=True)
        global_step = tf1.train.get_or_create_global_step()
        rate = tf1.train.exponential_decay(RATE[0], global_step, *RATE[1:], staircase=True)
        optimizer = tf1.train.RMSPropOptimizer(rate, **settings)
        update = optimizer.apply_gradients([(gradient_at(global_step), weight)], global_step=global_step)
        session.run(tf1.global_variables_initializer())
        return np.array([(session.run(update), session.run(weight))[1] for _ in range(NUM_STEPS)])


def weights(optimizer, gradient_at, jit_compile=False, variable=None):
    """The weights after every step of a Keras optimizer in one compiled step."""
    weight = tf.Variable(START) if variable is None else variable
    optimizer.build([weight])

    @tf.function(jit_compile=jit_compile)
    def update(step):
        optimizer.apply([gradient_at(step)], [weight])

    steps = []
    for step in range(NUM_STEPS):
        update(tf.constant(step))
        steps.append(weight.numpy())
    return np.array(steps)


def decaying(make, **settings):
    return make(learning_rate=exponential_decay(*RATE, staircase=True), **settings)


@four_kinds
def test_twenty_steps_under_a_staircase_are_tf1s_bit_for_bit(settings):
    np.testing.assert_array_equal(weights(decaying(TF1RMSprop, **settings), dense), tf1_weights(dense, settings))


@four_kinds
def test_the_rows_of_a_sparse_gradient_go_tf1s_way_and_other_rows_stay(settings):
    ours = weights(decaying(TF1RMSprop, **settings), sparse)
    np.testing.assert_allclose(ours, tf1_weights(sparse, settings), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours[-1, 5], START[5])


@four_kinds
@pytest.mark.parametrize("gradient_at", [dense, sparse])
def test_twenty_steps_compiled_by_xla_are_tf1s_within_rounding(gradient_at, settings):
    ours = weights(decaying(TF1RMSprop, **settings), gradient_at, jit_compile=True)
    np.testing.assert_allclose(ours, tf1_weights(gradient_at, settings), rtol=0, atol=1e-6)


def test_keras_rmsprop_begins_too_fast_for_settings_of_tf1():
    theirs = weights(decaying(keras.optimizers.RMSprop, epsilon=1e-10), dense)
    assert np.abs(theirs - tf1_weights(dense, {})).max() > 0.02


def test_a_hand_computed_step_with_the_mean_square_starting_at_one():
    weight = tf.Variable([1.0])
    optimizer = TF1RMSprop(0.5, rho=0.75, momentum=0.5, epsilon=0.0)
    optimizer.apply([tf.constant([3.0])], [weight])  # s = 0.75 + 0.25 * 9 = 3, m = 0.5 * 3 / sqrt(3)
    assert weight.numpy() == pytest.approx(1 - 1.5 / 3**0.5)
    assert optimizer.mean_squares[0].numpy() == 3


@four_kinds
def test_updated_together_the_variables_of_a_group_go_the_same_way(settings):
    variables = {fused: [keras.Variable(START), keras.Variable(-START)] for fused in ("on", "off")}
    for fused, of_group in variables.items():
        optimizer = GroupedOptimizer({"all": (TF1RMSprop(0.1, **settings), of_group)}, fused=fused)
        for step in range(3):
            optimizer.apply([dense(step), 2 * dense(step)], of_group)
    for together, alone in zip(variables["on"], variables["off"], strict=True):
        np.testing.assert_allclose(together.numpy(), alone.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("gradient_at", [dense, sparse])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_gradients_are_cast_to_the_type_of_the_variable(gradient_at, dtype):
    last = weights(decaying(TF1RMSprop, epsilon=1e-3), gradient_at, variable=tf.Variable(tf.cast(START, dtype)))[-1]
    expected = tf1_weights(gradient_at, {"epsilon": 1e-3})[-1]
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
