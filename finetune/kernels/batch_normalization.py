"""BatchNormalization by `FusedBatchNormV3`: one pass over the batch for what Keras computes in a dozen operations.

In training, over all axes but the last, of `n` elements a channel:

    mean = sum(x) / n;  variance = sum((x - mean)^2) / n;  y = gamma (x - mean) / sqrt(variance + epsilon) + beta
    moving <- momentum moving + (1 - momentum) (mean, variance)

The kernel returns the variance of a sample, `sum((x - mean)^2) / (n - 1)`, and Keras averages that of the batch; so it
is scaled by `(n - 1) / n`. In inference the moving mean and variance take the place of those of the batch, and the
layer becomes part of the convolution before it (`folded_normalization.py`). Elsewhere TensorFlow joins the kernel with
that convolution and the ReLU behind it, or where a gradient passes through, it is written here: `FusedBatchNormGradV3`
would compute the gradients of gamma and beta, though a frozen layer needs none of them.

References:
    Ioffe & Szegedy (2015), https://arxiv.org/abs/1502.03167
    `keras.layers.BatchNormalization.call`, which it stands for.
    `tensorflow/core/kernels/fused_batch_norm_op.cc`, which corrects the variance.
"""

from typing import Any

import tensorflow as tf

from finetune import keras_private
from finetune.kernels.folded_normalization import bias_in_mean, folded

_CUDNN_EPSILON = 1.001e-5  # cuDNN takes no smaller one
_DTYPES = (tf.float32, tf.float16, tf.bfloat16)


def batch_normalization(layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
    """Computes a `keras.layers.BatchNormalization`; a kernel of `finetune.kernels.native_kernels`.

    Args:
        layer: The layer.
        inputs: The batch, shape `(..., channels)`.
        training: Whether the statistics are those of the batch.
        mask: Which parts of the batch count; the kernel counts all.

    Returns:
        The normalized batch; `None` where the kernel does not apply.
    """
    if not _applies(layer, inputs, training, mask):
        return None
    channels = inputs.shape[-1]
    # The kernel takes images; any number of axes in front of the channels is one long image to it.
    x = inputs if inputs.shape.rank == 4 else tf.reshape(inputs, (-1, 1, 1, channels))
    gamma = tf.cast(layer.gamma, tf.float32) if layer.scale else tf.ones(channels)
    beta = tf.cast(layer.beta, tf.float32) if layer.center else tf.zeros(channels)
    if training and layer.trainable:
        y = _trained(layer, x, gamma, beta)
    else:
        mean, variance = tf.cast(layer.moving_mean, tf.float32), tf.cast(layer.moving_variance, tf.float32)
        arguments = x, gamma, beta, mean, variance
        is_recorded = keras_private.is_recorded(arguments)
        y = folded(*arguments, layer.epsilon) if keras_private.is_recorded([x]) or not is_recorded else None
        if y is None and is_recorded:
            y = _differentiated(*arguments, layer.epsilon)
        elif y is None:
            x, mean = bias_in_mean(x, mean)
            y = _inferred(x, gamma, beta, mean, variance, layer.epsilon)
    return y if y.shape.rank == inputs.shape.rank else tf.reshape(y, tf.shape(inputs))


def _applies(layer: Any, inputs: Any, training: Any, mask: Any) -> bool:
    return (
        tf.is_tensor(inputs)
        and isinstance(inputs, tf.Tensor)
        and inputs.dtype in _DTYPES
        and inputs.dtype == layer.compute_dtype  # else Keras rounds to another type at the end
        and inputs.shape.rank is not None
        and inputs.shape.rank >= 2
        and layer.axis in (-1, inputs.shape.rank - 1)
        and inputs.shape[-1] is not None
        and mask is None
        and isinstance(training, bool | int | None)
        and not (layer.renorm or layer.synchronized)
        and (layer.epsilon >= _CUDNN_EPSILON or not tf.config.list_logical_devices("GPU"))
    )


def _trained(layer: Any, x: Any, gamma: Any, beta: Any) -> Any:
    """Normalizes with the statistics of the batch, and updates the moving ones."""
    none = tf.constant([], tf.float32)
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=none, variance=none, epsilon=layer.epsilon, is_training=True
    )
    n = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
    variance *= (n - 1.0) / n
    for moving, of_batch in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        value = tf.cast(moving, tf.float32)
        moving.assign(value * layer.momentum + of_batch * (1.0 - layer.momentum))
    return y


def _inferred(x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon, is_training=False
    ).y


def _differentiated(x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    """Normalizes with fixed statistics, and can be differentiated for all of its arguments."""

    @tf.custom_gradient
    def normalized(x: Any, gamma: Any, beta: Any, mean: Any, variance: Any) -> Any:
        def gradient(dy: Any) -> tuple[Any, ...]:
            # TensorFlow computes only those that somebody needs.
            inverse = tf.math.rsqrt(variance + epsilon)
            wide = tf.cast(dy, tf.float32)
            dbeta = tf.reduce_sum(wide, (0, 1, 2))
            of_x = tf.reduce_sum(wide * (tf.cast(x, tf.float32) - mean), (0, 1, 2))
            dx = tf.cast(wide * (gamma * inverse), dy.dtype)
            dvariance = -0.5 * gamma * inverse**3 * of_x
            return dx, of_x * inverse, dbeta, -dbeta * gamma * inverse, dvariance

        return _inferred(x, gamma, beta, mean, variance, epsilon), gradient

    return normalized(x, gamma, beta, mean, variance)
