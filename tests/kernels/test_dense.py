"""Dense layers as one product of rows against Keras and float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.kernels.native_kernels import native_kernels

RNG = np.random.default_rng(0)
SEQUENCES, VOLUMES = RNG.normal(size=(3, 5, 4)), RNG.normal(size=(2, 3, 2, 4))
Dense, EinsumDense = keras.layers.Dense, keras.layers.EinsumDense


def unknown_function(x):
    """Depends on the axes, so it must see them."""
    return keras.ops.softmax(x, axis=1)


DENSE = {
    "sequences": (lambda: Dense(6), SEQUENCES, {}),
    "volumes": (lambda: Dense(6), VOLUMES, {}),
    "without a bias": (lambda: Dense(6, use_bias=False), SEQUENCES, {}),
    "relu": (lambda: Dense(6, activation="relu"), SEQUENCES, {}),
    "tanh": (lambda: Dense(6, activation="tanh"), SEQUENCES, {}),
    "gelu": (lambda: Dense(6, activation="gelu"), SEQUENCES, {}),
    "softmax": (lambda: Dense(6, activation="softmax"), SEQUENCES, {}),
    "a function of the user's own": (lambda: Dense(6, activation=unknown_function), SEQUENCES, {}),
    "a batch of one": (lambda: Dense(1, activation="relu"), SEQUENCES[:1, :1], {}),
    "unknown lengths": (lambda: Dense(6, activation="gelu"), SEQUENCES, {"shape": (None, None, 4)}),
    "an unknown batch": (lambda: Dense(6), VOLUMES, {"shape": (None, 3, 2, 4)}),
}
EINSUM = {
    "to units": (lambda: EinsumDense("abc,cd->abd", (5, 6), bias_axes="d"), SEQUENCES, {}),
    "to heads": (lambda: EinsumDense("abc,cde->abde", (5, 2, 3), bias_axes="de"), SEQUENCES, {}),
    "from heads": (lambda: EinsumDense("abcd,cde->abe", (3, 6), bias_axes="e"), VOLUMES, {}),
    "with an ellipsis": (lambda: EinsumDense("...x,xy->...y", 6, bias_axes="y", activation="gelu"), SEQUENCES, {}),
    "of rows": (lambda: EinsumDense("ab,bc->ac", 6, bias_axes="c", activation="relu"), SEQUENCES[0], {}),
    "without a bias": (lambda: EinsumDense("abc,cde->abde", (5, 2, 3)), SEQUENCES, {}),
    "unknown lengths": (
        lambda: EinsumDense("abc,cde->abde", (5, 2, 3), bias_axes="de", activation="tanh"),
        SEQUENCES,
        {"shape": (None, None, 4)},
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_errors_of_dense_against_float64_are_at_most_twice_those_of_keras(held_to_float64, name):
    make, x, options = DENSE[name]
    held_to_float64(make, x, **options)


@pytest.mark.parametrize("name", EINSUM)
def test_errors_of_einsum_dense_against_float64_are_at_most_twice_those_of_keras(held_to_float64, name):
    make, x, options = EINSUM[name]
    held_to_float64(make, x, **options)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_errors_in_half_precision_are_those_of_the_type(held_to_float64, policy, training):
    held_to_float64(lambda: Dense(6, activation="gelu"), SEQUENCES, policy=policy, training=training)


LEFT = {
    "rows": (lambda: Dense(6, activation="relu"), SEQUENCES[0]),
    "a bias of one of two axes": (lambda: EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="e"), SEQUENCES),
    "a sum over the first axis": (lambda: EinsumDense("abc,bd->adc", (6, 4), bias_axes="d"), SEQUENCES),
    "a kernel the other way round": (lambda: EinsumDense("abc,dc->abd", (None, 6)), SEQUENCES),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_the_kernel_does_not_compute_is_computed_by_keras(name):
    make, x = LEFT[name]
    layer, x = make(), tf.constant(x, tf.float32)
    layer.build(x.shape)
    expected = layer(x)
    with native_kernels() as native:
        outputs = tf.function(layer, autograph=False)(x)
    assert native.layers == {}
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_lora_and_quantized_kernels_are_those_that_keras_multiplies_with():
    x = tf.constant(SEQUENCES, tf.float32)
    for quantized in (False, True):
        layer = Dense(6)
        layer.build(x.shape)
        if quantized:
            layer.quantize("int8")
        else:
            layer.enable_lora(2)
            layer.lora_kernel_b.assign(np.ones((2, 6)))
        expected = layer(x)
        with native_kernels() as native:
            outputs = tf.function(layer, autograph=False)(x)
        assert bool(native.layers) is not quantized  # quantized layers have another call
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_integers_and_another_type_than_the_kernel_are_left_to_keras():
    layer = Dense(3, dtype="float32", autocast=False)
    layer.build((2, 3, 4))
    for x in (tf.ones((2, 3, 4), tf.int32), tf.ones((2, 3, 4), tf.float64)):
        expected = layer(x)
        with native_kernels() as native:
            outputs = tf.function(layer, autograph=False)(x)
        assert native.layers == {}
        assert outputs.dtype == expected.dtype
        np.testing.assert_allclose(outputs, expected, rtol=1e-5)


def test_the_mask_of_the_inputs_is_that_of_the_outputs_as_in_keras():
    model = keras.Sequential([keras.layers.Embedding(5, 4, mask_zero=True), Dense(3), keras.layers.LSTM(2)])
    x = tf.constant([[1, 2, 0, 0], [3, 0, 0, 0]])
    expected = model(x)
    with native_kernels() as native:
        outputs = tf.function(lambda x: model(x), autograph=False)(x)
    assert native.counts(model) == {"Dense": 1, "LSTM": 1}
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("activation", "loss"), [("softmax", "categorical"), ("sigmoid", "binary")])
def test_a_loss_of_probabilities_finds_the_logits_behind_them_as_in_keras(activation, loss):
    layer, x = Dense(2, activation=activation), tf.constant([[[60.0], [-60.0]]])
    layer.build(x.shape)
    layer.set_weights([np.array([[1.0, -1.0]]), np.zeros(2)])
    y = tf.constant([[[0.0, 1.0], [0.0, 1.0]]])
    value = tf.function(lambda x: getattr(keras.losses, f"{loss}_crossentropy")(y, layer(x)), autograph=False)
    with native_kernels() as native:
        np.testing.assert_allclose(value(x), [[120.0 if loss == "categorical" else 60.0, 0.0]], atol=1e-6)
    assert native.counts(layer) == {"Dense": 1}


def test_an_empty_batch_gives_an_empty_result():
    layer = Dense(6, activation="gelu")
    layer.build((None, 5, 4))
    with native_kernels() as native:
        assert tf.function(layer, autograph=False)(tf.zeros((0, 5, 4))).shape == (0, 5, 6)
    assert native.counts(layer) == {"Dense": 1}
