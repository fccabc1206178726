import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.optimizers import tf1_momentum as momentum
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.schedules import exponential_decay
from finetune.optimizers.tf1_momentum import Momentum

train = tf.compat.v1.train
# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
saves_a_model = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture
def tf1_weights(twenty_steps):
    return lambda kind="dense", nesterov=False: twenty_steps.of_tf1(
        lambda rate: train.MomentumOptimizer(rate, 0.9, use_nesterov=nesterov), 0.1, kind
    )


@pytest.fixture
def decaying(twenty_steps):
    return lambda make, **settings: make(learning_rate=twenty_steps.falling(0.1), momentum=0.9, **settings)


four_ways = pytest.mark.parametrize(
    ("kind", "nesterov"),
    [("dense", False), ("dense", True), ("sparse", False), ("sparse", True)],
    ids=["dense", "dense nesterov", "sparse", "sparse nesterov"],
)


@four_ways
def test_twenty_steps_under_a_staircase_are_tf1s_bit_for_bit(kind, nesterov, tf1_weights, decaying, twenty_steps):
    ours = twenty_steps.of_keras(decaying(Momentum, nesterov=nesterov), kind)
    np.testing.assert_array_equal(ours, tf1_weights(kind, nesterov))


@four_ways
def test_twenty_steps_compiled_by_xla_are_tf1s_within_rounding(kind, nesterov, tf1_weights, decaying, twenty_steps):
    ours = twenty_steps.of_keras(decaying(Momentum, nesterov=nesterov), kind, jit_compile=True)
    np.testing.assert_allclose(ours, tf1_weights(kind, nesterov), rtol=0, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_keras_sgd_goes_another_way_when_the_rate_decays(nesterov, tf1_weights, decaying, twenty_steps):
    theirs = twenty_steps.of_keras(decaying(keras.optimizers.SGD, nesterov=nesterov), "dense")
    expected = tf1_weights("dense", nesterov)
    np.testing.assert_allclose(theirs[:5], expected[:5], rtol=0, atol=1e-6)  # until the first stair
    assert np.abs(theirs[-1] - expected[-1]).max() > 0.05


def test_keras_sgd_goes_the_same_way_when_the_rate_is_constant(twenty_steps):
    ours, theirs = (
        twenty_steps.of_keras(make(0.1, momentum=0.9), "dense") for make in (Momentum, keras.optimizers.SGD)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_hand_computed_step_with_and_without_nesterov():
    plain, ahead = tf.Variable([1.0]), tf.Variable([1.0])
    for weight, optimizer in ((plain, Momentum(0.5, 0.5)), (ahead, Momentum(0.5, 0.5, nesterov=True))):
        optimizer.apply([tf.constant([1.0])], [weight])
        optimizer.apply([tf.constant([2.0])], [weight])
    assert plain.numpy() == 1 - 0.5 * 1 - 0.5 * 2.5
    assert ahead.numpy() == 1 - 0.5 * (1 + 0.5) - 0.5 * (2 + 0.5 * 2.5)


def test_a_row_that_does_not_occur_keeps_its_weight_and_its_velocity(twenty_steps):
    optimizer = Momentum(0.1)
    weight = tf.Variable(twenty_steps.start)
    optimizer.build([weight])
    optimizer.apply([tf.ones((6, 4))], [weight])
    before = weight.numpy()
    optimizer.apply([tf.IndexedSlices(tf.ones((2, 4)), tf.constant([1, 1]), tf.constant([6, 4]))], [weight])
    moved = (weight.numpy() != before).any(axis=1)
    assert moved.tolist() == [False, True, False, False, False, False]
    np.testing.assert_allclose(optimizer.momentums[0].numpy()[:, 0], [1, 0.9 + 2, 1, 1, 1, 1])


def test_a_keras_variable_and_a_bare_one_go_the_same_way(twenty_steps):
    np.testing.assert_array_equal(
        twenty_steps.of_keras(Momentum(0.1), "dense", variable=keras.Variable(twenty_steps.start)),
        twenty_steps.of_keras(Momentum(0.1), "dense"),
    )


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_gradients_are_cast_to_the_type_of_the_variable(kind, dtype, tf1_weights, decaying, twenty_steps):
    found = twenty_steps.of_keras(decaying(Momentum), kind, variable=tf.Variable(tf.cast(twenty_steps.start, dtype)))
    assert found.dtype == tf.as_dtype(dtype).as_numpy_dtype
    np.testing.assert_allclose(found.astype("float64"), tf1_weights(kind), rtol=0, atol=0.2)


def test_weight_decay_clipping_and_accumulation_are_keras_own(twenty_steps):
    settings = {"weight_decay": 0.1, "global_clipnorm": 0.5, "gradient_accumulation_steps": 2}
    ours, theirs = (
        twenty_steps.of_keras(make(0.1, momentum=0.9, **settings), "dense", variable=keras.Variable(twenty_steps.start))
        for make in (Momentum, keras.optimizers.SGD)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_the_moving_average_is_over_the_weights_of_every_step(twenty_steps):
    optimizer = Momentum(0.1, use_ema=True, ema_momentum=0.5)
    path = twenty_steps.of_keras(optimizer, "dense", variable=(variable := keras.Variable(twenty_steps.start)))
    average = path[0]  # keras takes the first weights as they are
    for step in path[1:]:
        average = 0.5 * average + 0.5 * step
    optimizer.finalize_variable_values([variable])
    np.testing.assert_allclose(variable.numpy(), average, rtol=0, atol=1e-5)


def text_model():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input((3,), dtype="int32"), keras.layers.Embedding(9, 4), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(1)])


def fitted(jit_compile, epochs=1, **settings):
    model = text_model()
    rate = exponential_decay(0.1, 5, 0.5, staircase=True)
    model.compile(Momentum(rate, 0.9, **settings), "mse", jit_compile=jit_compile)
    rows = np.random.default_rng(0).integers(0, 8, (32, 3))
    model.fit(rows, rows.sum(axis=1) / 10, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return model


@pytest.mark.slow
@saves_a_model
def test_fit_gives_the_same_weights_with_and_without_xla():
    for plain, compiled in zip(fitted(False).get_weights(), fitted(True).get_weights(), strict=True):
        np.testing.assert_allclose(plain, compiled, rtol=0, atol=1e-6)


@saves_a_model
def test_a_keras_file_brings_back_settings_and_velocities(tmp_path):
    model = fitted(False, nesterov=True, weight_decay=0.01, name="of_the_body")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is Momentum
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert loaded.optimizer.get_config()["nesterov"] is True
    for ours, theirs in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert any(variable.numpy().any() for variable in loaded.optimizer.momentums)


def test_a_tensorflow_checkpoint_brings_back_the_velocities(tmp_path, decaying):
    model, fresh = fitted(False), text_model()
    path = tf.train.Checkpoint(optimizer=model.optimizer).save(str(tmp_path / "state"))
    optimizer = decaying(Momentum)
    optimizer.build(fresh.trainable_variables)
    tf.train.Checkpoint(optimizer=optimizer).restore(path).assert_consumed()
    for ours, theirs in zip(model.optimizer.variables, optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_the_defaults_are_those_of_the_docstring():
    config = Momentum().get_config()
    assert (config["momentum"], config["nesterov"], config["name"].startswith("momentum")) == (0.9, False, True)
    assert config["learning_rate"] == pytest.approx(0.01)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "0.9", None, True])
def test_a_momentum_outside_its_bounds_is_refused(share):
    with pytest.raises(GroupError) as caught:
        Momentum(momentum=share)
    assert str(caught.value) == (
        f"`momentum` must be a number from 0 to 1. Received `{share!r}`. 0 is plain gradient descent, `0.9` is usual."
    )


def test_the_examples_in_the_docstring_hold():
    results = doctest.testmod(momentum)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("nesterov", [False, True])
def test_variables_that_are_updated_together_get_the_bits_of_the_kernel(nesterov):
    rng = np.random.default_rng(0)
    values, steps = rng.standard_normal((2, 6)).astype("f4"), rng.standard_normal((4, 2, 6)).astype("f4")
    together, alone = ([tf.Variable(value) for value in values] for _ in range(2))
    grouped = GroupedOptimizer(
        [(Momentum(rate, 0.9, nesterov), v) for rate, v in zip((0.1, 0.3), together, strict=True)], fused="on"
    )
    plain = [Momentum(rate, 0.9, nesterov) for rate in (0.1, 0.3)]
    for gradients in steps:
        grouped.apply([tf.constant(g) for g in gradients], together)
        for optimizer, gradient, variable in zip(plain, gradients, alone, strict=True):
            optimizer.apply([tf.constant(gradient)], [variable])
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize("nesterov", [False, True])
def test_variables_of_several_rates_that_are_updated_as_one_go_the_way_of_each_alone(nesterov, twenty_steps):
    def trained(fused):
        variables = [tf.Variable(twenty_steps.start + i) for i in range(4)]
        groups = [(Momentum(rate, 0.8, nesterov=nesterov), variables[i::2]) for i, rate in enumerate((0.1, 0.03))]
        optimizer = GroupedOptimizer(groups, fused=fused)
        for step in range(5):
            optimizer.apply([tf.constant(twenty_steps.gradients[step] * (i + 1)) for i in range(4)], variables)
        return [v.numpy() for v in variables]

    for together, alone in zip(trained("on"), trained("off"), strict=True):
        np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("share", [0, 1, 0.5])
def test_a_momentum_at_its_bounds_is_taken(share):
    assert Momentum(momentum=share).get_config()["momentum"] == share
