"""BatchNormalization by `FusedBatchNormV3` against Keras and float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.kernels.native_kernels import native_kernels

Norm = keras.layers.BatchNormalization


def normal(*shape, seed=1, mean=0.5, spread=2.0):
    return np.random.default_rng(seed).normal(mean, spread, shape)


def freeze(layer):
    layer.trainable = False


CASES = {
    "an image": (Norm, (4, 5, 7, 3), {}),
    "another momentum and epsilon": (lambda: Norm(momentum=0.7, epsilon=1e-5), (4, 5, 7, 3), {}),
    "without gamma": (lambda: Norm(scale=False), (4, 5, 7, 3), {}),
    "without beta": (lambda: Norm(center=False), (4, 5, 7, 3), {}),
    "without either": (lambda: Norm(center=False, scale=False), (4, 5, 7, 3), {}),
    "the last axis by its number": (lambda: Norm(axis=3), (4, 5, 7, 3), {}),
    "a batch of one": (Norm, (1, 3, 3, 5), {}),
    "rows": (Norm, (16, 9), {}),
    "sequences": (Norm, (4, 11, 6), {}),
    "volumes": (Norm, (2, 3, 4, 3, 5), {}),
    "an unknown number of rows": (Norm, (6, 3, 3, 4), {"shape": (None, 3, 3, 4)}),
    "an unknown size of images": (Norm, (6, 3, 3, 4), {"shape": (None, None, None, 4)}),
}


@pytest.mark.sample(10)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_errors_against_float64_are_at_most_twice_those_of_keras(held_to_float64, name, training):
    make, shape, options = CASES[name]
    held_to_float64(make, normal(*shape), training=training, **options)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_errors_are_those_of_the_type_where_a_layer_computes_in_less_than_float32(held_to_float64, policy, training):
    held_to_float64(Norm, normal(4, 6, 6, 8), policy=policy, training=training)


def test_a_frozen_layer_differentiates_its_inputs_alone(held_to_float64):
    held_to_float64(Norm, normal(4, 5, 5, 3), prepare=freeze)


def test_a_large_mean_costs_no_more_than_in_keras(held_to_float64):
    held_to_float64(Norm, normal(8, 6, 6, 4, mean=300.0, spread=0.5))


def test_a_channel_without_variance_is_normalized_by_epsilon(held_to_float64):
    x = normal(4, 4, 4, 3)
    x[..., 1] = 2.0
    held_to_float64(Norm, x)


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (1, 7)])
def test_a_single_element_has_variance_0_as_in_keras(held_to_float64, shape):
    held_to_float64(Norm, normal(*shape))


def test_moving_statistics_stay_within_a_millionth_of_keras_over_many_steps():
    layers = [Norm(momentum=0.9), Norm(momentum=0.9)]
    for layer, block in zip(layers, (False, True), strict=True):
        layer.build((None, 8, 8, 6))
        step = tf.function(lambda x, layer=layer: layer(x, training=True), autograph=False)
        for seed in range(20):
            x = tf.constant(normal(3, 8, 8, 6, seed=seed), tf.float32)
            if block:
                with native_kernels() as native:
                    step(x)
                assert bool(native.counts(layer)) == (seed == 0)  # traced once
            else:
                step(x)
    for one, other in zip(layers[0].non_trainable_weights, layers[1].non_trainable_weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6, atol=1e-6)


LEFT = {
    "channels first": (lambda: Norm(axis=1), (4, 3, 5, 5), {}),
    "renormalization": (lambda: Norm(renorm=True), (4, 5, 5, 3), {}),
    "statistics over replicas": (lambda: Norm(synchronized=True), (4, 5, 5, 3), {}),
    "XLA": (Norm, (4, 5, 5, 3), {"jit_compile": True}),
    "a mask": (Norm, (2, 5, 3), {"mask": np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)}),
    "float64": (lambda: Norm(dtype="float64"), (4, 5, 5, 3), {}),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_the_kernel_does_not_compute_has_the_bits_of_keras(left_to_keras, name):
    make, shape, options = LEFT[name]
    left_to_keras(make, normal(*shape), **options)


def test_integers_become_float32_as_in_keras():
    layer = Norm(autocast=False)
    layer.build((None, 2, 2, 3))
    x = tf.constant(np.arange(24).reshape(2, 2, 2, 3))
    outputs = []
    for _ in range(2):
        with native_kernels() as native:
            outputs.append(tf.function(lambda x: layer(x, training=False), autograph=False)(x))
        assert not native.counts(layer)
    assert outputs[0].dtype == tf.float32


def test_an_empty_batch_leaves_what_keras_leaves():
    results = []
    for block in (False, True):
        layer = Norm()
        layer.build((None, 2, 2, 3))
        run = tf.function(lambda x, layer=layer: layer(x, training=True), autograph=False)
        x = tf.zeros((0, 2, 2, 3))
        if block:
            with native_kernels():
                y = run(x)
        else:
            y = run(x)
        results.append([y.shape, *[np.isfinite(w.numpy()).all() for w in layer.weights]])
    assert results[0] == results[1]
