"""Dot-product attention as batched matrix products against Keras and float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.kernels.attention import dot_product_attention
from finetune.kernels.native_kernels import native_kernels

BATCH, TARGETS, SOURCES, HEADS, SIZE = 3, 5, 7, 2, 4
RNG = np.random.default_rng(0)
QUERY = RNG.normal(size=(BATCH, TARGETS, HEADS, SIZE))
KEY = RNG.normal(size=(BATCH, SOURCES, HEADS, SIZE))
VALUE = RNG.normal(size=(BATCH, SOURCES, HEADS, 6))
OF_KEYS = RNG.random((BATCH, 1, 1, SOURCES)) < 0.6
OF_PAIRS = RNG.random((BATCH, 1, TARGETS, SOURCES)) < 0.6
WITHOUT_A_ROW = OF_PAIRS.copy()
WITHOUT_A_ROW[1, 0, 2] = False

CASES = {
    "no mask": {},
    "a scale": {"scale": 0.3},
    "a mask of keys": {"mask": OF_KEYS},
    "a mask of pairs": {"mask": OF_PAIRS},
    "a mask of every head": {"mask": RNG.random((BATCH, HEADS, TARGETS, SOURCES)) < 0.6},
    "a target that may attend to nothing": {"mask": WITHOUT_A_ROW},
    "causal": {"is_causal": True},
    "causal with a mask": {"is_causal": True, "mask": OF_KEYS},
}


@pytest.mark.parametrize("name", CASES)
def test_errors_against_float64_are_at_most_twice_those_of_keras(function_held_to_float64, name):
    attend = lambda q, k, v: keras.ops.dot_product_attention(q, k, v, **CASES[name])  # noqa: E731
    function_held_to_float64("nn.dot_product_attention", attend, QUERY, KEY, VALUE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["no mask", "a mask of pairs"])
def test_errors_in_half_precision_are_those_of_the_type(function_held_to_float64, name, dtype):
    attend = lambda q, k, v: keras.ops.dot_product_attention(q, k, v, **CASES[name])  # noqa: E731
    function_held_to_float64("nn.dot_product_attention", attend, QUERY, KEY, VALUE, dtype=dtype)


def test_the_batch_and_the_lengths_may_be_unknown(function_held_to_float64):
    attend = lambda q, k, v: keras.ops.dot_product_attention(q, k, v, mask=OF_PAIRS)  # noqa: E731
    shapes = [(None, None, HEADS, SIZE), (None, None, HEADS, SIZE), (None, None, HEADS, 6)]
    function_held_to_float64("nn.dot_product_attention", attend, QUERY, KEY, VALUE, shapes=shapes)


def test_what_the_kernel_does_not_compute_has_the_bits_of_keras(function_left_to_keras):
    bias = RNG.normal(size=(BATCH, HEADS, TARGETS, SOURCES)).astype("float32")
    function_left_to_keras(lambda q, k, v: keras.ops.dot_product_attention(q, k, v, bias=bias), QUERY, KEY, VALUE)
    # Several heads of the queries share a key.
    shared = RNG.normal(size=(BATCH, TARGETS, 4, SIZE))
    function_left_to_keras(lambda q, k, v: keras.ops.dot_product_attention(q, k, v), shared, KEY, VALUE)


def self_attended(layer, **options):
    return lambda x: layer(x, x, **options)


LAYERS = {
    "plain": ({}, {}),
    "another size of values": ({"value_dim": 3}, {}),
    "another output": ({"output_shape": 5}, {}),
    "without biases": ({"use_bias": False}, {}),
    "a gate": ({"use_gate": True}, {}),
    "a sliding window": ({"sliding_window": 2}, {}),
    "causal": ({}, {"use_causal_mask": True}),
    "a mask": ({}, {"attention_mask": np.tril(np.ones((1, 6, 6), bool))}),
    "dropout, in inference": ({"dropout": 0.3}, {"training": False}),
    "dropout and a mask, in inference": (
        {"dropout": 0.3},
        {"training": False, "attention_mask": np.tril(np.ones((1, 6, 6), bool), -1)},
    ),
    "dropout, in training": ({"dropout": 0.3, "seed": 1}, {"training": True}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_of_keras_gives_the_same_outputs_and_gradients(name):
    settings, options = LAYERS[name]
    layer = keras.layers.MultiHeadAttention(2, 4, **settings)
    x = tf.constant(RNG.normal(size=(3, 6, 8)), tf.float32)
    layer(x, x)
    for weight in layer.trainable_weights:
        weight.assign(np.random.default_rng(len(weight.path)).normal(size=weight.shape))
    seeds = [v.numpy() for v in layer.non_trainable_variables]

    def run():
        for variable, value in zip(layer.non_trainable_variables, seeds, strict=True):
            variable.assign(value)

        @tf.function(autograph=False)
        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, x, **options)
                loss = tf.reduce_sum(tf.sin(y))
            return y, tape.gradient(loss, [x, *(weight.value for weight in layer.trainable_weights)])

        return tf.nest.flatten(step(x))

    expected = run()
    with native_kernels() as native:
        outputs = run()
    assert native.counts(layer)["EinsumDense"] >= 4
    assert native.functions == ({"numpy.einsum"} if "dropout" in name else {"nn.dot_product_attention"})
    for ours, keras_own in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=2e-4, atol=2e-5)


def test_returned_scores_attention_over_other_axes_and_lora_are_as_in_keras():
    images = tf.constant(RNG.normal(size=(2, 3, 4, 8)), tf.float32)
    over_axes = keras.layers.MultiHeadAttention(2, 4, attention_axes=(2,))
    scored, lora = keras.layers.MultiHeadAttention(2, 4), keras.layers.MultiHeadAttention(2, 4)
    x = tf.constant(RNG.normal(size=(3, 6, 8)), tf.float32)
    lora(x, x)
    lora.query_dense.enable_lora(2)
    calls = [
        lambda: over_axes(images, images),
        lambda: scored(x, x, return_attention_scores=True),
        lambda: lora(x, x[:, :4]),
    ]
    for call in calls:
        expected = tf.nest.flatten(call())
        with native_kernels():
            outputs = tf.nest.flatten(tf.function(call, autograph=False)())
        for ours, keras_own in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(ours, keras_own, rtol=1e-4, atol=1e-5)


def test_a_mask_that_is_not_boolean_is_left_to_keras():
    q, k, v = (tf.constant(x, tf.float32) for x in (QUERY, KEY, VALUE))
    assert dot_product_attention(q, k, v, mask=tf.ones((1, 1, 1, SOURCES))) is None
