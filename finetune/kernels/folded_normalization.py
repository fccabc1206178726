"""BatchNormalization with fixed statistics as part of the convolution before it.

For an output channel `c` of a convolution with kernel `w` and bias `b`, and `s = gamma / sqrt(variance + epsilon)`:

    y = s (x * w + b - mean) + beta = x * (w s) + (b - mean) s + beta

So a kernel is scaled in place of a whole batch, and in the gradient the kernel's is scaled in place of that of the
batch. Gamma and beta, where they are trained, get their gradients by way of `w s` and the new bias. Without a gradient
TensorFlow joins a convolution, depthwise or not, with its bias and the ReLU, ReLU6, SiLU or sum behind it.

Where the kernel has more numbers than the batch, the batch is normalized. Without a gradient the bias then goes into
the mean, `x * w - (mean - b)`, since TensorFlow joins a convolution with BatchNormalization only where nothing is
between them.

The convolution is found in the graph, as the operation that made the inputs. Nothing else needs its outputs then, as a
rule, and TensorFlow leaves it out.

References:
    Jacob et al. (2018), section 3.2, https://arxiv.org/abs/1712.05877
    `keras.layers.BatchNormalization.call`, which it stands for with the layer before it.
"""

from math import prod
from typing import Any

import tensorflow as tf

# Of what batch a decision is made, whatever the batch is: frozen layers have the same bits in a training step and in
# the pass that computes their features, whose batches differ.
_USUAL_BATCH = 16


def folded(x: tf.Tensor, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    """Normalizes the outputs of a convolution by another convolution.

    Args:
        x: The outputs, shape `(batch, height, width, channels)`, in a graph.
        gamma: Factor of each channel.
        beta: What is added to each channel.
        mean: Mean of each channel.
        variance: Variance of each channel.
        epsilon: What is added to the variance, > 0.

    Returns:
        The normalized outputs; `None` where `x` comes from no convolution, or scaling the kernel would not save time.
    """
    found = _convolution(x)
    if found is None or not _saves_time(found[0].op, x):
        return None
    made, bias, images = found
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    shift = beta - mean * scale if bias is None else beta + (bias - mean) * scale
    y = tf.nn.bias_add(_scaled(made.op, scale), shift)
    return y if images is None else tf.reshape(y, images)


def bias_in_mean(x: tf.Tensor, mean: Any) -> tuple[tf.Tensor, Any]:
    """Returns the outputs of a convolution without its bias, and the mean less the bias.

    Args:
        x: The outputs, shape `(batch, height, width, channels)`, in a graph.
        mean: Mean of each channel.

    Returns:
        What is to be normalized with which mean: as they were, where `x` comes from no convolution with a bias.
    """
    found = _convolution(x)
    if found is None or found[1] is None:
        return x, mean
    made, bias, images = found
    return made if images is None else tf.reshape(made, images), mean - bias


def _convolution(x: tf.Tensor) -> tuple[tf.Tensor, Any, Any] | None:
    """Returns the outputs of a convolution without its bias, the bias, and the shape of images if they are rows yet.

    `None` where `x` does not come from one.
    """
    made, bias = _without_bias(x)
    images = None
    if made.op.type == "Reshape" and bias is None:
        # The outputs of a pointwise convolution are rows of a matrix, until they are turned into images.
        images = made.op.inputs[1]
        made, bias = _without_bias(made.op.inputs[0])
    if x.dtype != tf.float32 or made.op.type not in ("Conv2D", "DepthwiseConv2dNative", "MatMul"):
        return None
    if (made.op.type == "MatMul") != (images is not None) or made.shape[-1] != x.shape[-1]:
        return None
    return made, None if bias is None else tf.reshape(bias, (-1,)), images


def _without_bias(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Returns what a bias of each channel was added to, and the bias; `x` and `None` where none was."""
    if x.op.type == "BiasAdd":
        return x.op.inputs[0], x.op.inputs[1]
    if x.op.type in ("Add", "AddV2"):
        sums, bias = x.op.inputs
        if bias.shape.as_list() == [1] * (x.shape.rank - 1) + [x.shape[-1]] and sums.shape.rank == x.shape.rank:
            return sums, bias
    return x, None


def _saves_time(op: tf.Operation, x: tf.Tensor) -> bool:
    """Whether the kernel has fewer numbers than the outputs, and the operation reads images as they are here."""
    if op.type == "MatMul":
        is_plain = not (op.get_attr("transpose_a") or op.get_attr("transpose_b"))
    else:
        is_plain = op.get_attr("data_format") == b"NHWC"
    kernel: list[Any] = op.inputs[1].shape.as_list()
    lengths: list[Any] = x.shape.as_list()
    _, *positions, channels = lengths
    if not is_plain or None in kernel or None in positions:
        return False
    return prod(kernel) < _USUAL_BATCH * prod(positions) * channels


def _scaled(op: tf.Operation, scale: tf.Tensor) -> tf.Tensor:
    """Computes an operation with its kernel scaled by output channel."""
    inputs, kernel = op.inputs
    if op.type == "MatMul":
        return tf.matmul(inputs, kernel * scale)
    options = {name: op.get_attr(name) for name in ("strides", "padding", "explicit_paddings", "dilations")}
    options["padding"] = options["padding"].decode()
    if op.type == "Conv2D":
        return tf.raw_ops.Conv2D(input=inputs, filter=kernel * scale, **options)
    of_filters = tf.reshape(scale, kernel.shape[2:])  # channels, and the filters of each
    return tf.raw_ops.DepthwiseConv2dNative(input=inputs, filter=kernel * of_filters, **options)
