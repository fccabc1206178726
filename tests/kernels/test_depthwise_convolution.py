"""Wide depthwise and separable convolutions against Keras and float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.kernels.native_kernels import native_kernels

RNG = np.random.default_rng(0)
IMAGES, LINES = RNG.normal(size=(3, 9, 8, 4)), RNG.normal(size=(3, 11, 4))

DEPTHWISE = {
    "same": (lambda x, w: keras.ops.depthwise_conv(x, w, padding="same"), IMAGES, (5, 5, 4, 1)),
    "valid": (keras.ops.depthwise_conv, IMAGES, (5, 5, 4, 1)),
    "strides, same": (lambda x, w: keras.ops.depthwise_conv(x, w, 2, "same"), IMAGES, (5, 5, 4, 1)),
    "strides, valid, with a border that counts for nothing": (
        lambda x, w: keras.ops.depthwise_conv(x, w, (3, 3), "valid"),
        IMAGES,
        (4, 4, 4, 1),
    ),
    "a kernel larger than the image": (
        lambda x, w: keras.ops.depthwise_conv(x, w, padding="same"),
        IMAGES[:, :3, :3],
        (7, 7, 4, 1),
    ),
    "a wide kernel": (lambda x, w: keras.ops.depthwise_conv(x, w, padding="same"), IMAGES, (2, 5, 4, 1)),
    "lines": (lambda x, w: keras.ops.depthwise_conv(x, w, padding="same"), LINES, (5, 4, 1)),
    "lines, strides": (lambda x, w: keras.ops.depthwise_conv(x, w, 2), LINES, (7, 4, 1)),
    "one image": (lambda x, w: keras.ops.depthwise_conv(x, w, padding="same"), IMAGES[:1], (5, 5, 4, 1)),
}
SEPARABLE = {
    "images": (lambda x, w, v: keras.ops.separable_conv(x, w, v, padding="same"), IMAGES, (3, 3, 4, 1), (1, 1, 4, 6)),
    "wide": (lambda x, w, v: keras.ops.separable_conv(x, w, v, 2, "same"), IMAGES, (5, 5, 4, 1), (1, 1, 4, 6)),
    "several filters a channel": (keras.ops.separable_conv, IMAGES, (5, 5, 4, 2), (1, 1, 8, 3)),
    "lines": (lambda x, w, v: keras.ops.separable_conv(x, w, v, 2), LINES, (3, 4, 1), (1, 4, 6)),
    "wide lines": (lambda x, w, v: keras.ops.separable_conv(x, w, v, padding="same"), LINES, (5, 4, 1), (1, 4, 6)),
}
LEFT = {
    "a narrow kernel": (keras.ops.depthwise_conv, (3, 3, 4, 1)),
    "several filters a channel": (keras.ops.depthwise_conv, (5, 5, 4, 2)),
    "a dilation": (lambda x, w: keras.ops.depthwise_conv(x, w, dilation_rate=2), (4, 4, 4, 1)),
    "channels first": (
        lambda x, w: keras.ops.depthwise_conv(x, w, padding="same", data_format="channels_first"),
        (5, 5, 9, 1),
    ),
}


def kernel(*shape):
    return np.random.default_rng(1).normal(size=shape)


@pytest.mark.parametrize("name", DEPTHWISE)
def test_errors_against_float64_are_at_most_twice_those_of_keras(function_held_to_float64, name):
    function, x, shape = DEPTHWISE[name]
    function_held_to_float64("nn.depthwise_conv", function, x, kernel(*shape))


@pytest.mark.parametrize("name", SEPARABLE)
def test_separable_convolutions_have_at_most_twice_the_errors_of_keras(function_held_to_float64, name):
    function, x, *shapes = SEPARABLE[name]
    function_held_to_float64("nn.separable_conv", function, x, *(kernel(*shape) for shape in shapes))


def test_errors_are_those_of_the_type_in_half_precision(function_held_to_float64):
    function, x, shape = DEPTHWISE["same"]
    function_held_to_float64("nn.depthwise_conv", function, x, kernel(*shape), dtype="bfloat16")


def test_sizes_that_only_the_graph_knows_can_be_computed(function_held_to_float64):
    shapes = [(None, None, None, 4), (5, 5, 4, 1)]
    for name in ("same", "strides, same", "strides, valid, with a border that counts for nothing"):
        function, x, shape = DEPTHWISE[name]
        shapes[1] = shape
        function_held_to_float64("nn.depthwise_conv", function, x, kernel(*shape), shapes=shapes)


@pytest.mark.parametrize("name", LEFT)
def test_what_the_kernel_does_not_compute_has_the_bits_of_keras(function_left_to_keras, name):
    function, shape = LEFT[name]
    function_left_to_keras(function, IMAGES, kernel(*shape))


PADDED = {  # how an image of 8 by 9 is padded for a kernel of which size, and whether `same` does it
    "as `same`, even and odd": (((0, 1), (1, 1)), 3, True),
    "as `same`, wide": (((1, 2), (2, 2)), 5, True),
    "on the other side": (((1, 0), (1, 1)), 3, False),
    "by more": (((1, 1), (1, 1)), 3, False),
    "by nothing": (((0, 0), (0, 0)), 3, False),
}


@pytest.mark.parametrize("name", PADDED)
def test_an_image_that_a_layer_pads_as_same_does_is_not_copied(name):
    around, size, is_same = PADDED[name]
    pad, layer = layers.ZeroPadding2D(around), layers.DepthwiseConv2D(size, 2, bias_initializer="normal")
    layer.build((None, 9, 10, 4))
    trained = [layer.kernel.value, layer.bias.value]
    x = tf.constant(RNG.normal(size=(3, 8, 9, 4)), tf.float32)

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(pad(x))
            loss = tf.reduce_sum(tf.sin(y))
        return [y, *tape.gradient(loss, [x, *trained])]

    expected = tf.function(step, autograph=False)(x)
    with native_kernels():
        ours = tf.function(step, autograph=False)
        outputs, graph = ours(x), ours.get_concrete_function(x).graph
        evaluated = tf.function(lambda x: layer(pad(x)), autograph=False)(x)
    convolutions = [op for op in graph.get_operations() if op.type == "DepthwiseConv2dNative"]
    assert [op.inputs[0].op.type for op in convolutions[:1]] == ["Placeholder" if is_same else "Pad"]
    for value, of_keras in zip([*outputs, evaluated], [*expected, expected[0]], strict=True):
        np.testing.assert_allclose(value, of_keras, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("takes_gradient", [True, False], ids=["trained", "evaluated"])
def test_layers_run_the_kernel_where_a_gradient_is_taken_and_only_there(takes_gradient):
    made = {
        "nn.depthwise_conv": [layers.DepthwiseConv2D(5), layers.DepthwiseConv1D(5)],
        "nn.separable_conv": [layers.SeparableConv2D(6, 3), layers.SeparableConv1D(6, 3)],
    }
    for name, layer in [(name, layer) for name, both in made.items() for layer in both]:
        x = tf.constant(IMAGES if "2D" in type(layer).__name__ else LINES, tf.float32)
        layer.build((None, *x.shape[1:]))

        @tf.function(autograph=False)
        def trained(layer=layer, x=x):
            with tf.GradientTape() as tape:
                y = layer(x)
            return tape.gradient(y, [weight.value for weight in layer.trainable_weights])

        with native_kernels() as native:
            trained() if takes_gradient else tf.function(layer, autograph=False)(x)
        assert native.functions == ({name} if takes_gradient else set())


def test_the_gradient_of_the_gradient_is_that_of_keras():
    x, w = tf.constant(IMAGES, tf.float32), tf.constant(kernel(5, 5, 4, 1), tf.float32)

    @tf.function(autograph=False)
    def penalty(x, w):
        with tf.GradientTape() as outer:
            outer.watch([x, w])
            with tf.GradientTape() as tape:
                tape.watch([x, w])
                y = tf.reduce_sum(keras.ops.depthwise_conv(x, w, padding="same") ** 2)
            size = tf.add_n([tf.reduce_sum(part**2) for part in tape.gradient(y, [x, w])])
        return outer.gradient(size, [x, w])

    exact = penalty(x, w)
    with native_kernels() as native:
        ours = tf.function(penalty.python_function, autograph=False)(x, w)
    assert native.functions == {"nn.depthwise_conv"}
    for a, b in zip(ours, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())


def test_an_empty_batch_has_a_gradient_of_zero():
    w = tf.constant(kernel(5, 5, 4, 1), tf.float32)
    with native_kernels():

        @tf.function(input_signature=[tf.TensorSpec((None, 9, 8, 4))], autograph=False)
        def gradient(x):
            with tf.GradientTape() as tape:
                tape.watch(w)
                y = keras.ops.depthwise_conv(x, w, padding="same")
            return tape.gradient(y, w)

        np.testing.assert_array_equal(gradient(tf.zeros((0, 9, 8, 4))), tf.zeros_like(w))


def test_a_wrong_number_of_channels_gets_the_error_of_keras():
    run = tf.function(lambda x, w: keras.ops.depthwise_conv(x, w), autograph=False)
    with native_kernels(), pytest.raises(ValueError, match="channels"):
        run(tf.zeros((1, 9, 8, 3)), tf.zeros((5, 5, 4, 1)))
