"""LayerNormalization with a written gradient against Keras and float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.kernels.native_kernels import native_kernels

Norm = keras.layers.LayerNormalization


def normal(*shape, mean=0.5, spread=2.0):
    return np.random.default_rng(0).normal(mean, spread, shape)


CASES = {
    "sequences": (Norm, (3, 5, 8), {}),
    "rows": (Norm, (6, 8), {}),
    "images": (Norm, (2, 3, 4, 8), {}),
    "the epsilon of BERT": (lambda: Norm(epsilon=1e-12), (3, 5, 8), {}),
    "the last axis by its number": (lambda: Norm(axis=2), (3, 5, 8), {}),
    "the last axis in a list": (lambda: Norm(axis=[-1]), (3, 5, 8), {}),
    "without gamma": (lambda: Norm(scale=False), (3, 5, 8), {}),
    "without beta": (lambda: Norm(center=False), (3, 5, 8), {}),
    "without either": (lambda: Norm(center=False, scale=False), (3, 5, 8), {}),
    "one feature": (Norm, (3, 5, 1), {}),
    "a batch of one": (Norm, (1, 1, 8), {}),
    "many features": (Norm, (4, 3, 700), {}),
    "an unknown batch": (Norm, (3, 5, 8), {"shape": (None, 5, 8)}),
    "unknown lengths": (Norm, (3, 5, 8), {"shape": (None, None, 8)}),
    "images of unknown size": (Norm, (2, 3, 4, 8), {"shape": (None, None, None, 8)}),
}


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", CASES)
def test_errors_against_float64_are_at_most_twice_those_of_keras(held_to_float64, name):
    make, shape, options = CASES[name]
    held_to_float64(make, normal(*shape), **options)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_errors_in_half_precision_are_those_of_the_type(held_to_float64, policy):
    held_to_float64(Norm, normal(3, 5, 16), policy=policy)


def test_a_large_mean_costs_no_more_than_in_keras(held_to_float64):
    held_to_float64(Norm, normal(4, 6, 32, mean=300.0, spread=0.5))


def test_a_row_without_variance_is_normalized_by_epsilon(held_to_float64):
    x = normal(3, 4, 8)
    x[1, 2] = 2.0
    held_to_float64(Norm, x)


def freeze(layer):
    layer.trainable = False


def test_a_frozen_layer_differentiates_its_inputs_alone(held_to_float64):
    held_to_float64(Norm, normal(3, 5, 8), prepare=freeze)


@pytest.mark.parametrize("spec", [(None, 50, 8), (3, 50, 8), (None, None, 8), (150, 8), (None, 8), (None, 20, 3, 8)])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_without_a_gradient_outputs_are_as_exact(spec, policy):
    layer, reference = Norm(dtype=policy), Norm(dtype="float64")
    for norm in (layer, reference):
        norm.build(spec)
        norm.set_weights([normal(8), normal(8)])
    x = tf.cast(normal(*[3 if n is None else n for n in spec]), layer.compute_dtype)
    run = tf.function(lambda x: layer(x), autograph=False, input_signature=[tf.TensorSpec(spec, x.dtype)])
    with native_kernels() as native:
        outputs = run(x)
    assert native.counts(layer) == {"LayerNormalization": 1}
    assert outputs.dtype == x.dtype
    truth = np.asarray(reference(tf.cast(x, tf.float64)))
    of_keras, of_ours = (np.asarray(tf.cast(y, tf.float64)) - truth for y in (layer(x), outputs))
    assert np.sqrt(np.mean(of_ours**2)) <= 2 * np.sqrt(np.mean(of_keras**2))


def test_without_a_gradient_and_in_training_an_empty_batch_gives_an_empty_result():
    layer = Norm()
    layer.build((None, 5, 8))

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            y = layer(x)
        return y, tape.gradient(y, layer.gamma.value)

    with native_kernels():
        assert tf.function(layer, autograph=False)(tf.zeros((0, 5, 8))).shape == (0, 5, 8)
        y, of_gamma = gradient(tf.zeros((0, 5, 8)))
    assert y.shape == (0, 5, 8)
    np.testing.assert_array_equal(of_gamma, np.zeros(8))


LEFT = {
    "another axis": (lambda: Norm(axis=1), (3, 5, 8)),
    "several axes": (lambda: Norm(axis=[1, 2]), (3, 5, 8)),
    "float64": (lambda: Norm(dtype="float64"), (3, 5, 8)),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_the_kernel_does_not_compute_has_the_bits_of_keras(left_to_keras, name):
    make, shape = LEFT[name]
    left_to_keras(make, normal(*shape))


def test_the_gradient_of_the_gradient_is_that_of_the_formula():
    layer = Norm(epsilon=1e-2)
    layer.build((None, 6))
    layer.gamma.assign(normal(6))
    x = tf.constant(normal(4, 6), tf.float32)

    def formula(x):
        centred = x - tf.reduce_mean(x, -1, keepdims=True)
        variance = tf.reduce_mean(centred**2, -1, keepdims=True)
        return centred / tf.sqrt(variance + 1e-2) * layer.gamma.value + layer.beta.value

    def second(normalize):
        @tf.function(autograph=False)
        def run(x):
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = tf.sin(normalize(x))
                penalty = tf.reduce_sum(tape.gradient(y, x) ** 2)
            return outer.gradient(penalty, [x, layer.gamma.value])

        return run(x)

    expected = second(formula)
    with native_kernels() as native:
        outputs = second(layer)
    assert native.counts(layer)
    for ours, of_formula in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(ours, of_formula, rtol=1e-3, atol=1e-4)
