"""GELU with a written gradient against Keras and float64."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from finetune.keras_private import uses_onednn
from finetune.kernels.gelu import gelu
from finetune.kernels.native_kernels import native_kernels

X = np.random.default_rng(0).normal(0.0, 2.0, (4, 7, 11))
WAYS = {
    "exact": lambda x: keras.activations.gelu(x),
    "approximate": lambda x: keras.activations.gelu(x, approximate=True),
    "an Activation": keras.layers.Activation("gelu"),
    "the operation": lambda x: keras.ops.gelu(x),
}


@pytest.mark.parametrize("way", WAYS)
def test_errors_against_float64_are_at_most_twice_those_of_keras(function_held_to_float64, way):
    function_held_to_float64("nn.gelu", WAYS[way], X)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4, 5)])
@pytest.mark.parametrize("approximate", [True, False], ids=["approximate", "exact"])
def test_any_shape_can_be_computed(function_held_to_float64, shape, approximate):
    x = np.random.default_rng(1).normal(size=shape)
    function_held_to_float64("nn.gelu", lambda x: keras.ops.gelu(x, approximate=approximate), x)


def test_an_empty_batch_gives_an_empty_result():
    with native_kernels():
        assert tf.function(lambda x: keras.ops.gelu(x), autograph=False)(tf.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_the_bits_of_keras(function_left_to_keras, dtype):
    function_left_to_keras(keras.ops.gelu, X.astype(np.dtype(getattr(ml_dtypes, dtype, dtype))), dtype=dtype)


@pytest.mark.parametrize("approximate", [True, False], ids=["approximate", "exact"])
def test_large_inputs_infinities_and_nan_give_the_outputs_of_keras(approximate):
    x = tf.constant([-np.inf, -1e30, -40.0, -0.0, 0.0, 40.0, 1e12, np.inf, np.nan], tf.float32)
    run = tf.function(lambda x: keras.ops.gelu(x, approximate=approximate), autograph=False)
    with native_kernels() as native:
        outputs = run(x)
    assert native.functions == {"nn.gelu"}
    np.testing.assert_array_equal(outputs, keras.ops.gelu(x, approximate=approximate))


@pytest.mark.parametrize("approximate", [True, False], ids=["approximate", "exact"])
def test_the_gradient_of_the_gradient_is_that_of_keras(approximate):
    def second(function, x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = function(x, approximate=approximate)
            first = tape.gradient(y, x)
        return outer.gradient(first, x)

    x = tf.constant(X, tf.float64)
    np.testing.assert_allclose(second(gelu, x), second(keras.ops.gelu, x), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("approximate", [True, False], ids=["approximate", "exact"])
def test_without_a_gradient_tensorflow_joins_the_product_the_bias_and_the_unit_where_it_has_onednn(approximate):
    with tf.Graph().as_default():
        x, w, b = (tf.compat.v1.placeholder(tf.float32, shape) for shape in ((80, 4), (4, 60), (60,)))
        units = tf.nn.bias_add(tf.matmul(x, w), b)
        y = tf.reshape(gelu(units, approximate=approximate), (2, 40, 60))
        run, options = tf.compat.v1.RunMetadata(), tf.compat.v1.RunOptions(output_partition_graphs=True)
        with tf.compat.v1.Session() as session:
            fed = {tensor: np.random.default_rng(0).normal(size=tensor.shape) for tensor in (x, w, b)}
            joined, units = session.run(y, fed, options, run), session.run(units, fed)
    kinds = {node.op for graph in run.partition_graphs for node in graph.node}
    assert any("FusedMatMul" in kind for kind in kinds) or not uses_onednn()
    assert (not kinds & {"Tanh", "Erf", "BiasAdd"}) is uses_onednn()
    of_keras, truth = (keras.ops.gelu(units.astype(kind), approximate).numpy() for kind in ("float32", "float64"))
    errors = [np.sqrt(np.mean((value - truth) ** 2)) for value in (of_keras, joined.reshape(units.shape))]
    assert errors[1] <= 2 * errors[0] + 1e-7
