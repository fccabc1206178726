"""A convolution with a kernel of size 1 as a matrix product of pixels and filters.

For pixels `x`, shape `(n, inputs)`, and filters `w`, shape `(inputs, outputs)`:

    y = x w + b;  dx = dy w^T;  dw = x^T dy

That is what a convolution of size 1 is, and what the narrow layers of MobileNet and the bottlenecks of ResNet consist
of. Keras calls the operation for convolutions of any size, whose gradients for the inputs and the kernel take a third
more time here than two matrix products. Where no gradient is taken that operation is the faster one for large images,
and TensorFlow joins it with what follows; but oneDNN first puts the filters into another order, which for images of 3
by 3 takes longer than to compute with them. So small images are matrix products there, too.

References:
    Lin et al. (2014), Network in Network, https://arxiv.org/abs/1312.4400
    `keras.layers.Conv2D.call`, which it stands for.
"""

from math import prod
from typing import Any

import tensorflow as tf

from finetune import keras_private
from finetune.kernels.shapes import lengths_of, reshape

_FEW_POSITIONS = 64  # up to which a matrix product is faster without a gradient, in batches of up to 32


def pointwise_convolution(layer: Any, inputs: Any) -> Any:
    """Computes a `Conv1D`, `Conv2D` or `Conv3D`; a kernel of `finetune.kernels.native_kernels`.

    Args:
        layer: The layer.
        inputs: The batch, shape `(..., channels)`.

    Returns:
        The outputs; `None` where the kernel does not apply.
    """
    if not _applies(layer, inputs):
        return None
    weights = tf.convert_to_tensor(layer.kernel)
    is_product = keras_private.is_recorded([inputs, weights]) or _is_small(inputs, layer.strides)
    if weights.dtype != inputs.dtype or not is_product:
        return None
    channels, filters = weights.shape[-2:]
    for axis, stride in enumerate(layer.strides, start=1):  # a kernel of size 1 sees only the pixels that remain
        inputs = _every(inputs, axis, stride)
    pixels = tf.reshape(inputs, (-1, channels))
    outputs = tf.matmul(pixels, tf.reshape(weights, (channels, filters)))
    if layer.use_bias and outputs.dtype == tf.float32:
        outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(layer.bias))
    outputs = reshape(outputs, [*lengths_of(inputs)[:-1], filters])
    if layer.use_bias and outputs.dtype != tf.float32:
        # As Keras, with the axes of the outputs: other gradients of a bias add up more in half precision.
        outputs += tf.reshape(tf.convert_to_tensor(layer.bias), (1,) * (layer.rank + 1) + (filters,))
    return outputs if layer.activation is None else layer.activation(outputs)


def _is_small(inputs: tf.Tensor, strides: tuple[int, ...]) -> bool:
    """Whether outputs have few positions, of which the batch is no part: see `folded_normalization.py`."""
    lengths: list[Any] = inputs.shape.as_list()[1:-1]
    if None in lengths or not keras_private.uses_onednn() or tf.config.list_logical_devices("GPU"):
        return False
    return prod(-(-length // stride) for length, stride in zip(lengths, strides, strict=True)) <= _FEW_POSITIONS


def _every(x: tf.Tensor, axis: int, stride: int) -> tf.Tensor:
    """Returns the first of every `stride` parts of an axis.

    Of a matrix whose rows are `stride` parts, the first part is a block of columns. A slice with strides, and its
    gradient, go through the numbers one by one, which takes three times as long; and so does the gradient of `x[:, :n]`
    alone, of which that of `tf.slice` takes half.
    """
    if stride == 1:
        return x
    lengths = lengths_of(x)
    number = -(-lengths[axis] // stride)
    if not isinstance(number, int) or lengths[axis] % stride:
        ends = [[0, number * stride - length if each == axis else 0] for each, length in enumerate(lengths)]
        x = tf.pad(x, ends)
    part = prod(lengths[axis + 1 :])
    rows = tf.slice(tf.reshape(x, tf.stack([-1, stride * part])), [0, 0], tf.stack([-1, part]))
    return reshape(rows, [*lengths[:axis], number, *lengths[axis + 1 :]])


def _applies(layer: Any, inputs: Any) -> bool:
    return (
        isinstance(inputs, tf.Tensor)
        and inputs.dtype in (tf.float32, tf.bfloat16)  # in float16 the bias' gradient has four times Keras' error
        and inputs.shape.rank == layer.rank + 2
        and layer.data_format == "channels_last"
        and prod(layer.kernel_size) == 1
        and layer.groups == 1
        and layer.padding in ("valid", "same")
        and inputs.shape[-1] is not None
        and 0 not in inputs.shape.as_list()
    )
