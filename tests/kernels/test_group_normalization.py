"""GroupNormalization with a written gradient against Keras and float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.kernels.native_kernels import native_kernels

Norm = keras.layers.GroupNormalization


def normal(*shape, mean=0.5, spread=2.0):
    return np.random.default_rng(0).normal(mean, spread, shape)


def freeze(layer):
    layer.trainable = False


CASES = {
    "images": (lambda: Norm(4), (3, 5, 4, 8), {}),
    "sequences": (lambda: Norm(2), (3, 5, 8), {}),
    "rows": (lambda: Norm(2), (6, 8), {}),
    "volumes": (lambda: Norm(2, epsilon=1e-6), (2, 3, 2, 3, 4), {}),
    "each channel by itself": (lambda: Norm(-1), (3, 5, 4, 6), {}),
    "all channels": (lambda: Norm(1), (3, 5, 4, 6), {}),
    "the last axis by its number": (lambda: Norm(2, axis=3), (3, 5, 4, 8), {}),
    "without gamma": (lambda: Norm(2, scale=False), (3, 5, 4, 8), {}),
    "without beta": (lambda: Norm(2, center=False), (3, 5, 4, 8), {}),
    "a batch of one": (lambda: Norm(2), (1, 3, 3, 8), {}),
    "an unknown batch": (lambda: Norm(2), (3, 5, 4, 8), {"shape": (None, 5, 4, 8)}),
    "unknown lengths": (lambda: Norm(2), (3, 5, 4, 8), {"shape": (None, None, None, 8)}),
    "a frozen layer": (lambda: Norm(2), (3, 5, 4, 8), {"prepare": freeze}),
    "bfloat16": (lambda: Norm(2), (3, 5, 4, 8), {"policy": "mixed_bfloat16"}),
    "float16": (lambda: Norm(2), (3, 5, 4, 8), {"policy": "mixed_float16"}),
}


@pytest.mark.sample(10)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mean", [0.5, 50.0])
def test_errors_against_float64_are_at_most_twice_those_of_keras(held_to_float64, name, mean):
    make, shape, options = CASES[name]
    held_to_float64(make, normal(*shape, mean=mean), **options)


def test_a_group_without_variance_is_normalized_by_epsilon(held_to_float64):
    x = normal(3, 4, 4, 8)
    x[1, ..., :4] = 2.0
    held_to_float64(lambda: Norm(2), x)


def test_an_empty_batch_gives_an_empty_result():
    layer = Norm(2)
    layer.build((None, 5, 8))
    with native_kernels() as native:
        assert tf.function(layer, autograph=False)(tf.zeros((0, 5, 8))).shape == (0, 5, 8)
    assert native.counts(layer) == {"GroupNormalization": 1}


LEFT = {"another axis": (lambda: Norm(5, axis=1), (3, 5, 8)), "float64": (lambda: Norm(2, dtype="float64"), (3, 5, 8))}


@pytest.mark.parametrize("name", LEFT)
def test_what_the_kernel_does_not_compute_has_the_bits_of_keras(left_to_keras, name):
    make, shape = LEFT[name]
    left_to_keras(make, normal(*shape))
