"""The gradient of a wide depthwise kernel by a forward convolution, padding, and separable convolutions as two steps.

A depthwise convolution of images `x` with a kernel `w` of one filter a channel, with strides `s`, and the gradient of
the kernel for that of the outputs, `g`:

    y[n, p, c] = sum over q of x[n, s p + q, c] w[q, c];  dw[q, c] = sum over n and p of x[n, s p + q, c] g[n, p, c]

where `p` are positions in the outputs and `q` in the kernel. For each example and channel, `dw` is itself a depthwise
convolution of `x` with `g` as its kernel and `s` as its dilation; so all examples become channels of one image, and
their sum is taken last. oneDNN has an operation for `dw`, which is fast only up to a width of 3: for the kernels of 5
of EfficientNet it takes twice as long as this, for those of 7 of ConvNeXt two to ten times.

MobileNet and EfficientNet pad images by a layer of their own before a depthwise convolution with strides. Where that
adds the zeros that the padding `same` adds, the operation reads the images as they were, and nothing is copied.

A separable convolution is a depthwise one and one of size 1, which is a matrix product where a gradient is taken; see
`pointwise_convolution.py`.

References:
    Chollet (2017), Xception, https://arxiv.org/abs/1610.02357
    `keras.ops.depthwise_conv` and `keras.ops.separable_conv`, which it stands for.
"""

from typing import Any

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.kernels.shapes import lengths_of, reshape

_DTYPES = (tf.float32, tf.bfloat16)
_FAST_WIDTH = 3  # up to which oneDNN's own operation is faster


def depthwise_conv(
    inputs: Any,
    kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Any:
    """Computes a `keras.ops.depthwise_conv`.

    Args:
        inputs: The batch, shape `(batch, steps, channels)` or `(batch, height, width, channels)`.
        kernel: One filter a channel, shape `(steps or height and width, channels, 1)`.
        strides: One for all axes, or of each; the kernel takes equal ones.
        padding: `valid` or `same`.
        data_format: `channels_last`.
        dilation_rate: The kernel takes 1.

    Returns:
        The outputs; `None` where the kernel does not apply.
    """
    kernel = tf.convert_to_tensor(kernel)
    if not _applies(inputs, kernel, strides, data_format, dilation_rate):
        return None
    stride = _stride(strides)
    images = (
        _before_padding(inputs, kernel.shape[:2], stride) if padding == "valid" and inputs.shape.rank == 4 else None
    )
    if images is not None:
        inputs, padding = images, "same"
    # Without a gradient, as in evaluation, nothing else is to be saved.
    if kernel.shape[-3] <= _FAST_WIDTH or kernel.shape[-1] != 1 or not keras_private.is_recorded([kernel]):
        return None if images is None else tf.nn.depthwise_conv2d(images, kernel, (1, stride, stride, 1), "SAME")
    if inputs.shape.rank == 3:
        return tf.squeeze(_convolved(inputs[:, None], kernel[None], stride, padding.upper()), 1)
    return _convolved(inputs, kernel, stride, padding.upper())


def separable_conv(
    inputs: Any,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Any:
    """Computes a `keras.ops.separable_conv`.

    Args:
        inputs: The batch, shape `(batch, steps, channels)` or `(batch, height, width, channels)`.
        depthwise_kernel: Filters of each channel, shape `(steps or height and width, channels, filters)`.
        pointwise_kernel: Shape `(1, ..., channels * filters, outputs)`.
        strides: One for all axes, or of each; the kernel takes equal ones.
        padding: `valid` or `same`.
        data_format: `channels_last`.
        dilation_rate: The kernel takes 1.

    Returns:
        The outputs; `None` where the kernel does not apply.
    """
    depthwise_kernel, pointwise_kernel = map(tf.convert_to_tensor, (depthwise_kernel, pointwise_kernel))
    kernels = [depthwise_kernel, pointwise_kernel]
    if not _applies(inputs, depthwise_kernel, strides, data_format, dilation_rate):
        return None
    if pointwise_kernel.dtype != inputs.dtype or not keras_private.is_recorded([inputs, *kernels]):
        return None
    x = depthwise_conv(inputs, depthwise_kernel, strides, padding)
    if x is None:
        is_line, stride = inputs.shape.rank == 3, _stride(strides)
        images, filters = (inputs[:, None], depthwise_kernel[None]) if is_line else (inputs, depthwise_kernel)
        x = tf.nn.depthwise_conv2d(images, filters, (1, stride, stride, 1), padding.upper())
        x = tf.squeeze(x, 1) if is_line else x
    channels, outputs = pointwise_kernel.shape[-2:]
    y = tf.matmul(tf.reshape(x, (-1, channels)), tf.reshape(pointwise_kernel, (channels, outputs)))
    return reshape(y, [*lengths_of(x)[:-1], outputs])


def _applies(inputs: Any, kernel: tf.Tensor, strides: Any, data_format: str | None, dilation_rate: Any) -> bool:
    return (
        isinstance(inputs, tf.Tensor)
        and inputs.dtype in _DTYPES
        and kernel.dtype == inputs.dtype
        and inputs.shape.rank in (3, 4)
        and kernel.shape.rank == inputs.shape.rank
        and (data_format or keras.config.image_data_format()) == "channels_last"
        and inputs.shape[-1] == kernel.shape[-2]  # else Keras says what is wrong
        and 0 not in inputs.shape.as_list()
        and len(set(_of_each_axis(strides))) == 1
        and set(_of_each_axis(dilation_rate)) == {1}
        and keras_private.uses_onednn()
        and not tf.config.list_logical_devices("GPU")  # cuDNN has kernels of its own
    )


def _of_each_axis(numbers: Any) -> tuple[int, ...]:
    return (numbers,) if isinstance(numbers, int) else tuple(numbers)


def _stride(strides: Any) -> int:
    return _of_each_axis(strides)[0]


def _before_padding(x: tf.Tensor, size: Any, stride: int) -> tf.Tensor | None:
    """Returns images before they were padded; `None` if they were not, or not as `same` does it.

    Args:
        x: The images, in a graph.
        size: Height and width of the kernel.
        stride: That of the convolution.
    """
    if x.op.type != "Pad":
        return None
    images, paddings = x.op.inputs[0], tf.get_static_value(x.op.inputs[1])
    lengths: list[Any] = images.shape.as_list()[1:3]
    if paddings is None or None in lengths:
        return None
    missing = [_missing(-(-n // stride), q, n, stride) for n, q in zip(lengths, size, strict=True)]
    around = [[0, 0], *([each // 2, each - each // 2] for each in missing), [0, 0]]
    return images if paddings.tolist() == around else None


def _missing(positions: Any, size: int, length: Any, stride: int) -> Any:
    """Returns by how much an axis is too short for as many positions of the kernel."""
    missing = (positions - 1) * stride + size - length
    return max(missing, 0) if isinstance(missing, int) else tf.maximum(missing, 0)


def _convolved(x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
    strides = [1, stride, stride, 1]

    @tf.custom_gradient
    def convolved(x: Any, kernel: Any) -> Any:
        def gradient(dy: Any) -> tuple[Any, Any]:
            dx = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(x), filter=kernel, out_backprop=dy, strides=strides, padding=padding
            )
            return dx, _gradient_of_kernel(x, dy, kernel.shape[:2], stride)

        return tf.nn.depthwise_conv2d(x, kernel, strides, padding), gradient

    return convolved(x, kernel)


def _gradient_of_kernel(x: tf.Tensor, dy: tf.Tensor, size: Any, stride: int) -> tf.Tensor:
    """Returns the gradient of a kernel of this height and width, shape `(height, width, channels, 1)`."""
    examples, *lengths, channels = lengths_of(x)
    positions = lengths_of(dy)[1:3]
    # Padded as `same` pads; `valid` needs no padding, and may leave a border that no position reaches.
    missing = [_missing(n, q, length, stride) for n, q, length in zip(positions, size, lengths, strict=True)]
    around = [[each // 2, each - each // 2] for each in missing]
    no_example = [0, channels * tf.cast(tf.equal(examples, 0), tf.int32)]  # the operation takes no empty kernel
    image = tf.pad(_examples_as_channels(x)[None], [[0, 0], *around, no_example])
    filters = tf.pad(tf.expand_dims(_examples_as_channels(dy), 3), [[0, 0], [0, 0], no_example, [0, 0]])
    each = tf.raw_ops.DepthwiseConv2dNative(
        input=image, filter=filters, strides=[1, 1, 1, 1], dilations=[1, stride, stride, 1], padding="VALID"
    )[:, : size[0], : size[1]]
    return tf.expand_dims(tf.reduce_sum(tf.reshape(each, (*size, -1, channels)), 2), 3)


def _examples_as_channels(x: tf.Tensor) -> tf.Tensor:
    examples, height, width, channels = lengths_of(x)
    return reshape(tf.transpose(x, (1, 2, 0, 3)), [height, width, examples * channels])
