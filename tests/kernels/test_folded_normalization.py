"""BatchNormalization with fixed statistics folded into the convolution before it, against Keras and float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.kernels.native_kernels import native_kernels

IMAGES = np.random.default_rng(0).normal(size=(4, 9, 8, 3))


class Normalized(layers.Layer):
    """A layer and the normalization behind it, whose statistics are fixed.

    Args:
        layer: Makes the layer.
        trained: Whether gamma and beta are trained.
        before: What is computed between the two.
        twice: Whether the outputs of the layer are added to those of the normalization.
    """

    def __init__(self, layer, trained=True, before=lambda x: x, twice=False, **options):
        super().__init__()
        self.layer, self.norm = layer(), layers.BatchNormalization(**options)
        self.norm.trainable = trained
        self.before, self.twice = before, twice

    def build(self, shape):
        self.layer.build(shape)
        self.norm.build(self.layer.compute_output_shape(shape))

    def call(self, x):
        x = self.layer(x)
        y = self.norm(self.before(x), training=False)
        return y + x if self.twice else y

    def compute_output_shape(self, shape):
        return self.layer.compute_output_shape(shape)


class Flat(layers.Layer):
    """Makes images of axes that a matrix product did not leave as they were."""

    def call(self, x):
        return keras.ops.reshape(x, (-1, 9, 16, 6))

    def compute_output_shape(self, shape):
        return shape[0], 9, 16, 6


FOLDED = {
    "a convolution": lambda: layers.Conv2D(5, 3),
    "without a bias": lambda: layers.Conv2D(5, 3, use_bias=False),
    "strides, same padding": lambda: layers.Conv2D(5, 3, 2, padding="same"),
    "of size 1": lambda: layers.Conv2D(5, 1),
    "of size 1, without a bias, strides": lambda: layers.Conv2D(5, 1, 2, use_bias=False),
    "depthwise": lambda: layers.DepthwiseConv2D(3),
    "several filters a channel": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False),
    "separable": lambda: layers.SeparableConv2D(5, 3, use_bias=False),
}
LEFT = {
    "dilated": lambda: layers.Conv2D(5, 3, dilation_rate=2),  # TensorFlow cuts the image into several
    "an activation": lambda: layers.Conv2D(5, 3, activation="relu"),
    "a kernel of more numbers than the outputs": lambda: layers.Conv2D(5, (9, 8)),
    "a wide depthwise kernel": lambda: layers.DepthwiseConv2D(5),
    "a bias behind the rows": lambda: layers.SeparableConv2D(5, 3),
    "rows that become channels": lambda: keras.Sequential([layers.Dense(12), layers.Reshape((9, 8, 2, 6)), Flat()]),
    "no convolution": lambda: layers.MaxPooling2D(2),
}


def scales_kernel(make, *, shape=(4, 9, 8, 3), **options):
    """Whether a step normalizes no batch, since the kernel does it."""
    layer = Normalized(make, **options)
    layer.build(shape)

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return tape.gradient(y, [x, *(weight.value for weight in layer.trainable_weights)])

    with native_kernels() as native:
        graph = step.get_concrete_function(tf.TensorSpec(shape)).graph
    assert native.counts(layer)["BatchNormalization"] == 1
    return "FusedBatchNormV3" not in {op.type for op in graph.get_operations()}


@pytest.mark.parametrize("name", FOLDED)
def test_errors_against_float64_are_at_most_twice_those_of_keras(held_to_float64, name):
    trained = name != "without a bias"  # gamma and beta, whose gradients are those of the kernel and the new bias
    assert scales_kernel(FOLDED[name], trained=trained)
    held_to_float64(lambda: Normalized(FOLDED[name], trained), IMAGES)


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_folded_is_normalized_as_a_batch(held_to_float64, name):
    assert not scales_kernel(LEFT[name])
    held_to_float64(lambda: Normalized(LEFT[name]), IMAGES)


NOT_SCALED = {
    "a kernel of more numbers than the outputs": LEFT["a kernel of more numbers than the outputs"],
    "of size 1, with more numbers than the outputs": lambda: keras.Sequential(
        [layers.Conv2D(20, (9, 8)), layers.Conv2D(6, 1)]
    ),
    "an activation": LEFT["an activation"],
}


@pytest.mark.parametrize("name", [*FOLDED, "a wide depthwise kernel"])  # which is one operation without a gradient
def test_without_a_gradient_the_kernel_is_scaled_too(inferred, name):
    graph, native = inferred(lambda: Normalized((FOLDED | LEFT)[name]), IMAGES, (None, 9, 8, 3))
    assert native["BatchNormalization"] == 1
    assert "FusedBatchNormV3" not in {op.type for op in graph.get_operations()}


@pytest.mark.parametrize("name", NOT_SCALED)
def test_without_a_gradient_a_bias_goes_into_the_mean_where_the_kernel_is_not_scaled(inferred, name):
    graph, native = inferred(lambda: Normalized(NOT_SCALED[name]), IMAGES, (None, 9, 8, 3))
    assert native["BatchNormalization"] == 1
    (normalized,) = (op.inputs[0].op for op in graph.get_operations() if op.type == "FusedBatchNormV3")
    # TensorFlow joins the two operations only where nothing is between them.
    before = normalized.inputs[0].op if normalized.type == "Reshape" else normalized
    assert before.type == {"an activation": "Relu"}.get(name, "MatMul" if "size 1" in name else "Conv2D")


def test_options_of_the_normalization_and_a_second_use_of_the_outputs_are_kept(held_to_float64):
    held_to_float64(lambda: Normalized(FOLDED["a convolution"], scale=False, epsilon=0.1), IMAGES)
    held_to_float64(lambda: Normalized(FOLDED["of size 1"], center=False, twice=True), IMAGES)


def test_an_unknown_batch_is_folded_and_an_unknown_size_is_not(held_to_float64):
    make = FOLDED["a convolution"]
    assert scales_kernel(make, shape=(None, 9, 8, 3))
    assert not scales_kernel(make, shape=(None, None, None, 3))
    held_to_float64(lambda: Normalized(make), IMAGES, shape=(None, 9, 8, 3))


def test_what_stands_between_the_two_is_not_lost(held_to_float64):
    for between in (keras.ops.relu, lambda x: keras.ops.reshape(x, (-1, 7, 6, 5)) + x, lambda x: x + 1.0):
        held_to_float64(lambda between=between: Normalized(FOLDED["a convolution"], before=between), IMAGES)


def test_a_gradient_that_was_stopped_stays_stopped():
    layer = Normalized(FOLDED["a convolution"], before=tf.stop_gradient)
    layer.build(IMAGES.shape)

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            y = layer(x)
        return tape.gradient(y, [layer.layer.kernel.value, layer.norm.gamma.value], unconnected_gradients="zero")

    with native_kernels():
        of_kernel, of_gamma = step(tf.constant(IMAGES, tf.float32))
    assert not np.any(of_kernel)
    assert np.any(of_gamma)
