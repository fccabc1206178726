"""LSTM and GRU without a gradient against Keras and float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.kernels.native_kernels import native_kernels

RNG = np.random.default_rng(0)
STEPS, FEATURES, UNITS = 11, 3, 5  # a turn of eight steps, and three single ones
X = RNG.normal(size=(4, STEPS, FEATURES)).astype("float32")
MASK = np.arange(STEPS) < np.array([[11], [3], [0], [8]])
MASK[0, 1:4] = False

CASES = {
    "the last output": {},
    "all outputs": {"return_sequences": True},
    "outputs and states": {"return_sequences": True, "return_state": True},
    "states": {"return_state": True},
    "backwards": {"return_sequences": True, "go_backwards": True},
    "without a bias": {"use_bias": False},
    "other activations": {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
}


def outputs_of(make, x, *, native, spec=(None, STEPS, FEATURES), dtype="float32", **calls):
    """Returns what a layer with weights drawn from a seed returns, as arrays, and how many layers ran a kernel."""
    layer = make(dtype=dtype)
    layer.build((None, *spec[1:]))
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(rng.normal(0.0, 0.7, weight.shape))
    calls = {name: tf.constant(value) if isinstance(value, np.ndarray) else value for name, value in calls.items()}
    run = tf.function(lambda x: layer(x, **calls), autograph=False, input_signature=[tf.TensorSpec(spec, dtype)])
    if not native:
        return [np.asarray(y) for y in tf.nest.flatten(run(tf.constant(x, dtype)))], {}
    with native_kernels() as block:
        outputs = run(tf.constant(x, dtype))
    return [np.asarray(y) for y in tf.nest.flatten(outputs)], block.counts(layer)


def check(make, x=X, name=None, **options):
    """Checks that errors against float64 are at most twice those of Keras."""
    exact, _ = outputs_of(make, x, native=False, **options)
    ours, counts = outputs_of(make, x, native=True, **options)
    truth, _ = outputs_of(make, x, native=False, dtype="float64", **options)
    assert counts.get(name) == 1
    for of_keras, y, true in zip(exact, ours, truth, strict=True):
        assert y.shape == of_keras.shape
        errors = [np.sqrt(np.mean((each - true) ** 2)) for each in (of_keras, y)]
        assert errors[1] <= 2 * errors[0] + 1e-7


@pytest.mark.parametrize("case", CASES)
def test_errors_against_float64_are_at_most_twice_those_of_keras(case):
    check(lambda **dtype: layers.LSTM(UNITS, **CASES[case], **dtype), name="LSTM")


@pytest.mark.parametrize("case", ["outputs and states", "without a bias"])
def test_errors_of_a_gru_are_at_most_twice_those_of_keras(case):
    check(lambda **dtype: layers.GRU(UNITS, **CASES[case], **dtype), name="GRU")


@pytest.mark.parametrize(("kind", "backwards"), [(layers.LSTM, True), (layers.GRU, False)])
def test_steps_that_a_mask_takes_out_leave_the_states_as_they_are(kind, backwards):
    make = lambda **dtype: kind(UNITS, return_sequences=True, return_state=True, go_backwards=backwards, **dtype)  # noqa: E731
    check(make, name=kind.__name__, mask=MASK)


@pytest.mark.parametrize(("steps", "known"), [(1, True), (8, True), (17, False), (3, False)])
def test_any_number_of_steps_may_be_known_or_not(steps, known):
    x = RNG.normal(size=(2, steps, FEATURES)).astype("float32")
    make = lambda **dtype: layers.LSTM(UNITS, return_sequences=True, return_state=True, **dtype)  # noqa: E731
    check(make, x, "LSTM", spec=(None, steps if known else None, FEATURES))


def test_states_before_the_first_step_are_taken():
    states = [RNG.normal(size=(4, UNITS)).astype("float32") for _ in range(2)]
    layer = layers.LSTM(UNITS)
    layer.build((None, STEPS, FEATURES))
    run = tf.function(lambda x: layer(x, initial_state=[tf.constant(s) for s in states]), autograph=False)
    expected = run(tf.constant(X))
    with native_kernels() as native:
        outputs = tf.function(run.python_function, autograph=False)(tf.constant(X))
    assert native.counts(layer) == {"LSTM": 1}
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_a_text_that_is_read_both_ways_masks_its_padding():
    model = keras.Sequential(
        [layers.Embedding(20, 4, mask_zero=True), layers.Bidirectional(layers.LSTM(3)), layers.Dense(2)]
    )
    texts = tf.constant(RNG.integers(1, 20, (3, 9)) * (np.arange(9) < [[9], [4], [1]]))
    expected = model(texts)
    with native_kernels() as native:
        outputs = tf.function(lambda x: model(x, training=False), autograph=False)(texts)
    assert native.counts(model)["LSTM"] == 2
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


LEFT = {
    "a GRU that resets before the product": lambda: layers.GRU(UNITS, reset_after=False),
    "dropout": lambda: layers.LSTM(UNITS, dropout=0.2),
    "unrolled": lambda: layers.LSTM(UNITS, unroll=True),
    "half precision": lambda: layers.LSTM(UNITS, dtype="mixed_bfloat16"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_the_kernel_does_not_compute_has_the_bits_of_keras(name):
    layer = LEFT[name]()
    layer.build((None, STEPS, FEATURES))
    expected = tf.function(lambda x: layer(x), autograph=False)(tf.constant(X))
    with native_kernels() as native:
        outputs = tf.function(lambda x: layer(x), autograph=False)(tf.constant(X))
    assert native.counts(layer) == {}
    np.testing.assert_array_equal(outputs, expected)


def test_keras_computes_where_a_gradient_is_taken_and_where_states_are_kept():
    layer, kept = layers.LSTM(UNITS), layers.LSTM(UNITS, stateful=True)
    layer.build((None, STEPS, FEATURES))
    kept.build((4, STEPS, FEATURES))

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            y = layer(x)
        return tape.gradient(y, layer.cell.kernel.value)

    with native_kernels() as native:
        gradient(tf.constant(X))
        tf.function(lambda x: kept(x), autograph=False)(tf.constant(X))
    assert native.counts(layer) == native.counts(kept) == {}
    assert np.any(kept.states[0].numpy())
