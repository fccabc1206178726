"""GroupNormalization over the last axis with a written gradient, by sums over positions before those over channels.

Of each example and each group of channels, of `n` elements:

    mean = sum(x) / n;  variance = sum((x - mean)^2) / n;  r = 1 / sqrt(variance + epsilon)
    y = gamma c r + beta,  c = x - mean

With `p = c dy`, its gradient is

    dbeta = sum of dy;  dgamma = sum of r p;  dx = r (gamma dy - mean of gamma dy - c r^2 (mean of gamma p))

where those of gamma and beta are sums over examples and positions, and the means are of a group. Keras cuts the
channels into a further axis, and sums over the axes on both sides of it. Here every sum is over positions, which leaves
a small matrix of examples and channels, and only that is summed by group.

References:
    Wu & He (2018), https://arxiv.org/abs/1803.08494
    `keras.layers.GroupNormalization.call`, which it stands for.
"""

from math import prod
from typing import Any

import keras
import tensorflow as tf

from finetune.kernels.shapes import lengths_of, reshape

_DTYPES = (tf.float16, tf.bfloat16, tf.float32)


def group_normalization(layer: Any, inputs: Any) -> Any:
    """Computes a `keras.layers.GroupNormalization`.

    Args:
        layer: The layer.
        inputs: Shape `(batch, ..., channels)`.

    Returns:
        The normalized inputs; `None` where the kernel does not apply.
    """
    if not (isinstance(inputs, tf.Tensor) and inputs.dtype in _DTYPES and (inputs.shape.rank or 0) >= 2):
        return None
    channels = inputs.shape[-1]
    if layer.axis not in (-1, inputs.shape.rank - 1) or channels is None:
        return None
    gamma = tf.ones(channels) if layer.gamma is None else tf.cast(layer.gamma, tf.float32)
    beta = tf.zeros(channels) if layer.beta is None else tf.cast(layer.beta, tf.float32)
    lengths = lengths_of(inputs)
    x = reshape(inputs, [lengths[0], prod(lengths[1:-1]), channels])
    y = tf.cast(_normalized(x, gamma, beta, layer.groups, layer.epsilon), inputs.dtype)
    return keras.ops.cast(reshape(y, lengths), layer.compute_dtype)


def _normalized(x: Any, gamma: Any, beta: Any, groups: int, epsilon: float) -> Any:
    channels = x.shape[-1]

    def of_groups(of_channels: Any) -> Any:
        """Averages by group, shape `(batch, channels)`; returns shape `(batch, 1, channels)`."""
        means = tf.reduce_mean(tf.reshape(of_channels, (-1, groups, channels // groups)), -1)
        return tf.repeat(means, channels // groups, axis=1)[:, None]

    @tf.custom_gradient
    def normalized(x: Any, gamma: Any, beta: Any) -> Any:
        wide = tf.cast(x, tf.float32)
        mean = of_groups(tf.reduce_mean(wide, 1))
        centred = wide - mean
        r = tf.math.rsqrt(of_groups(tf.reduce_mean(tf.square(centred), 1)) + epsilon)

        def gradient(dy: Any) -> tuple[Any, Any, Any]:
            c = tf.cast(x, tf.float32) - mean
            mean_dy, mean_p = tf.reduce_mean(dy, 1), tf.reduce_mean(c * dy, 1)
            dx = r * (gamma * dy - of_groups(gamma * mean_dy) - c * (r**2 * of_groups(gamma * mean_p)))
            positions = tf.cast(tf.shape(x)[1], tf.float32)
            dgamma, dbeta = tf.reduce_sum(r[:, 0] * mean_p, 0) * positions, tf.reduce_sum(mean_dy, 0) * positions
            return tf.cast(dx, x.dtype), dgamma, dbeta

        return centred * (r * gamma) + beta, gradient

    return normalized(x, gamma, beta)
