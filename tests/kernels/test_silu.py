"""SiLU with a written gradient against Keras and float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.kernels.native_kernels import native_kernels

X = np.random.default_rng(0).normal(0.0, 3.0, (4, 7, 11))
WAYS = {
    "silu": lambda x: keras.activations.silu(x),
    "swish": lambda x: keras.activations.get("swish")(x),
    "an Activation": keras.layers.Activation("silu"),
    "the operation": lambda x: keras.ops.silu(x),
}


@pytest.mark.parametrize("way", WAYS)
def test_errors_against_float64_are_at_most_twice_those_of_keras(function_held_to_float64, way):
    function_held_to_float64("nn.silu", WAYS[way], X)


@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_small_and_large_inputs_have_at_most_twice_the_errors_of_keras(function_held_to_float64, scale):
    function_held_to_float64("nn.silu", keras.ops.silu, scale * X, shapes=[(None, None, 11)])


def test_an_empty_batch_gives_an_empty_result():
    with native_kernels():
        assert tf.function(lambda x: keras.ops.silu(x), autograph=False)(tf.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_the_bits_of_keras(function_left_to_keras, dtype):
    function_left_to_keras(keras.ops.silu, X, dtype=dtype)


def test_infinities_nan_and_inputs_beyond_the_exponent_give_the_outputs_and_gradients_of_keras():
    x = tf.constant([-np.inf, -1e30, -100.0, -0.0, 0.0, 100.0, 1e30, np.inf, np.nan], tf.float32)

    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = keras.ops.silu(x)
        return y, tape.gradient(y, x)

    exact = tf.function(both, autograph=False)(x)
    with native_kernels() as native:
        ours = tf.function(both, autograph=False)(x)
    assert native.functions == {"nn.silu"}
    for a, b in zip(ours, exact, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_gradient_of_the_gradient_is_that_of_keras():
    def second(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = keras.ops.silu(x)
            first = tape.gradient(y, x)
        return outer.gradient(first, x)

    x = tf.constant(X, tf.float32)
    exact = tf.function(second, autograph=False)(x)
    with native_kernels():
        ours = tf.function(second, autograph=False)(x)
    np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-6)
