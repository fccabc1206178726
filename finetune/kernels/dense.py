"""Dense layers on several axes as one matrix product with its bias and activation.

    y[rows, units] = activation(x[rows, features] kernel[features, units] + bias[units])

where `rows` are all axes in front of the summed ones as one. Keras turns the product back into all axes before it adds
the bias and activates it. TensorFlow has one operation for a product with a bias and an activation, and a fast one for
the bias' gradient, a sum over rows; neither fits between the two reshapes, or a bias of several axes.

References:
    `keras.layers.Dense.call` and `keras.layers.EinsumDense.call`, which it stands for.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import keras
import tensorflow as tf

from finetune.kernels.einsum import product_of
from finetune.kernels.shapes import lengths_of, reshape

# Functions of these modules compute each row by itself, so they may come before the rows are axes again.
_ROW_BY_ROW = (keras.activations.relu.__module__, "keras_hub.src.utils.keras_utils")


def dense(layer: Any, inputs: Any, training: Any = None) -> Any:
    """Computes a `keras.layers.Dense`.

    Args:
        layer: The layer.
        inputs: Shape `(batch, ..., features)`.
        training: Not used; Keras passes it to the call.

    Returns:
        Shape `(batch, ..., units)`; `None` where the kernel does not apply.
    """
    if not isinstance(inputs, tf.Tensor) or inputs.shape.rank is None or inputs.shape.rank < 3:
        return None  # of two axes, Keras' own is the same product
    kernel = tf.convert_to_tensor(layer.kernel)
    return _product_of_rows(layer, inputs, kernel, 1, 1) if kernel.shape.rank == 2 else None


def einsum_dense(layer: Any, inputs: Any, training: Any = None) -> Any:
    """Computes a `keras.layers.EinsumDense` whose equation is a product of rows with the kernel.

    Args:
        layer: The layer.
        inputs: Shape `(batch, ..., features, ...)`.
        training: Not used; Keras passes it to the call.

    Returns:
        Shape `(batch, ..., units, ...)`; `None` where the kernel does not apply.
    """
    if not isinstance(inputs, tf.Tensor) or not inputs.shape.rank:
        return None
    kernel = tf.convert_to_tensor(layer.kernel)
    product = product_of(layer.equation, inputs.shape.rank, kernel.shape.rank)
    if product is None or product.swapped or product.batch:
        return None
    is_in_order = (
        product.left == product.rows + product.summed
        and product.right == product.summed + product.columns
        and product.result == product.rows + product.columns
    )
    has_whole_bias = layer.bias is None or tuple(layer.bias.shape) == tuple(kernel.shape[len(product.summed) :])
    if not (is_in_order and product.columns and has_whole_bias):
        return None
    return _product_of_rows(layer, inputs, kernel, len(product.summed), len(product.columns))


def _product_of_rows(layer: Any, x: tf.Tensor, kernel: tf.Tensor, summed: int, units: int) -> Any:
    """Computes the layer; `None` where Keras converts the inputs, or has to say what is wrong.

    Args:
        layer: The layer.
        x: The inputs.
        kernel: The kernel, of `summed + units` axes.
        summed: How many of the last axes of the inputs are summed.
        units: How many axes the units have.
    """
    lengths: list[Any] = kernel.shape.as_list()
    features, of_units = lengths[:summed], lengths[summed:]
    fits = x.shape.as_list()[-summed:] == features and None not in lengths
    if x.dtype != kernel.dtype or not x.dtype.is_floating or not fits:
        return None
    y = tf.matmul(reshape(x, [None, prod(features)]), reshape(kernel, [prod(features), prod(of_units)]))
    if layer.bias is not None:
        y = tf.nn.bias_add(y, reshape(tf.convert_to_tensor(layer.bias), [prod(of_units)]))
    shape = [*lengths_of(x)[:-summed], *of_units]
    if units == 1 and _is_row_by_row(layer.activation):
        return reshape(layer.activation(y), shape)
    y = reshape(y, shape)
    return y if layer.activation is None else layer.activation(y)


def _is_row_by_row(activation: Callable[..., Any] | None) -> bool:
    # Losses find the logits of these two on the tensor that they return, which must be that of the layer.
    keeps_logits = activation in (keras.activations.softmax, keras.activations.sigmoid)
    return not keeps_logits and getattr(activation, "__module__", None) in _ROW_BY_ROW
