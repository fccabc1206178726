"""Convolutions of size 1 as matrix products, against Keras and float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.keras_private import uses_onednn
from finetune.kernels.native_kernels import native_kernels


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


CASES = {
    "an image": (lambda: layers.Conv2D(5, 1), (4, 6, 7, 3), {}),
    "without a bias": (lambda: layers.Conv2D(5, 1, use_bias=False), (4, 6, 7, 3), {}),
    "with an activation": (lambda: layers.Conv2D(5, 1, activation="relu"), (4, 6, 7, 3), {}),
    "strides": (lambda: layers.Conv2D(5, 1, 2), (4, 7, 6, 3), {}),
    "strides, same padding": (lambda: layers.Conv2D(5, 1, (2, 3), padding="same"), (4, 7, 7, 3), {}),
    "strides that leave a border": (lambda: layers.Conv2D(5, 1, 3), (4, 8, 7, 3), {}),
    "strides, an unknown size": (lambda: layers.Conv2D(5, 1, 2), (4, 7, 6, 3), {"shape": (None, None, None, 3)}),
    "strides of a sequence": (lambda: layers.Conv1D(5, 1, 3), (4, 10, 3), {}),
    "a sequence": (lambda: layers.Conv1D(5, 1), (4, 9, 3), {}),
    "a volume": (lambda: layers.Conv3D(5, 1, (1, 2, 1)), (2, 3, 4, 5, 3), {}),
    "an unknown number of rows": (lambda: layers.Conv2D(5, 1), (4, 6, 7, 3), {"shape": (None, 6, 7, 3)}),
    "an unknown size": (lambda: layers.Conv2D(5, 1), (4, 6, 7, 3), {"shape": (None, None, None, 3)}),
    "one pixel": (lambda: layers.Conv2D(5, 1), (1, 1, 1, 3), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_errors_against_float64_are_at_most_twice_those_of_keras(held_to_float64, name):
    make, shape, options = CASES[name]
    held_to_float64(make, normal(*shape), **options)


def test_errors_are_those_of_the_type_in_mixed_precision(held_to_float64):
    held_to_float64(lambda: layers.Conv2D(8, 1), normal(4, 6, 6, 16), policy="mixed_bfloat16")


def test_a_frozen_layer_differentiates_its_inputs_alone(held_to_float64):
    def freeze(layer):
        layer.trainable = False

    held_to_float64(lambda: layers.Conv2D(5, 1), normal(4, 6, 7, 3), prepare=freeze)


def test_weights_of_low_rank_are_added(held_to_float64):
    held_to_float64(lambda: layers.Conv2D(5, 1, lora_rank=2), normal(4, 6, 7, 3))


LEFT = {
    "a larger kernel": (lambda: layers.Conv2D(5, (1, 3)), {}),
    "groups": (lambda: layers.Conv2D(6, 1, groups=3), {}),
    "channels first": (lambda: layers.Conv2D(6, 1, data_format="channels_first"), {}),
    "float16": (lambda: layers.Conv2D(5, 1), {"policy": "mixed_float16"}),
    "XLA": (lambda: layers.Conv2D(5, 1), {"jit_compile": True}),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_the_kernel_does_not_compute_has_the_bits_of_keras(left_to_keras, name):
    make, options = LEFT[name]
    left_to_keras(make, normal(4, 3, 6, 3), **options)


@pytest.mark.parametrize(("strides", "size"), [(1, (8, 8)), (1, (1, 64)), (2, (16, 15))])
def test_without_a_gradient_small_images_are_products_where_tensorflow_has_onednn(inferred, strides, size):
    _, native = inferred(lambda: layers.Conv2D(5, 1, strides), normal(3, *size, 16), (None, *size, 16))
    assert native == ({"Conv2D": 1} if uses_onednn() else {})


@pytest.mark.parametrize(("strides", "size"), [(1, (5, 13)), (2, (17, 16)), (1, (None, None))])
def test_without_a_gradient_the_operation_stays_for_larger_images_and_those_of_unknown_size(inferred, strides, size):
    shape = [length or 4 for length in size]
    graph, native = inferred(lambda: layers.Conv2D(5, 1, strides), normal(3, *shape, 16), (None, *size, 16))
    assert native == {}
    assert "Conv2D" in {op.type for op in graph.get_operations()}


def test_a_weight_that_layers_see_as_a_tensor_is_differentiated():
    layer = layers.Conv2D(2, 1, use_bias=False)
    layer.build((None, 2, 2, 3))
    model = keras.Sequential([keras.Input((2, 2, 3)), layer, layers.Flatten(), layers.Dense(1)])
    x, seen = tf.constant(normal(4, 2, 2, 3), tf.float32), []
    for block in (False, True):

        @tf.function(autograph=False)
        def gradient():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(x) ** 2)
            return tape.gradient(loss, layer.kernel.value)

        if block:
            with native_kernels() as native:
                seen.append(gradient())
            assert native.counts(layer) == {"Conv2D": 1}
        else:
            seen.append(gradient())
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-5)
