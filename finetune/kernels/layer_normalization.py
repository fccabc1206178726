"""LayerNormalization over the last axis with a written gradient, and by one kernel where no gradient is needed.

Of each row, of `n` elements:

    mean = sum(x) / n;  variance = sum((x - mean)^2) / n;  r = 1 / sqrt(variance + epsilon)
    y = gamma c r + beta,  c = x - mean

With `p = c dy`, its gradient is

    dbeta = sum over rows of dy;  dgamma = sum over rows of r p
    dx = r (gamma dy - mean of gamma dy - c r^2 (mean of gamma p))

Keras spells out the forward pass and TensorFlow differentiates that, operation by operation, in twice as many. Here the
sums are matrix products, and of the forward pass only `x` and a number or two of each row are kept. The gradient of the
gradient is right as well; Keras' is not, because `tf.nn.moments` takes the mean in the variance for a constant.

Without a gradient, oneDNN has a kernel for the layer. TensorFlow puts it in place of what `tf_keras` computed: batch
normalization in training of an image whose channels are the rows.

References:
    Ba et al. (2016), https://arxiv.org/abs/1607.06450
    `keras.layers.LayerNormalization.call`, which it stands for; `FindMklLayerNorm` in
    `tensorflow/core/grappler/optimizers/remapper.cc`.
"""

from typing import Any

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.kernels.shapes import lengths_of, reshape

_DTYPES = (tf.float16, tf.bfloat16, tf.float32)


def layer_normalization(layer: Any, inputs: Any) -> Any:
    """Computes a `keras.layers.LayerNormalization`.

    Args:
        layer: The layer.
        inputs: Shape `(..., features)`.

    Returns:
        The normalized inputs; `None` where the kernel does not apply.
    """
    if not (isinstance(inputs, tf.Tensor) and inputs.dtype in _DTYPES and (inputs.shape.rank or 0) >= 2):
        return None
    last = layer.axis in ([-1], [inputs.shape.rank - 1])
    features = inputs.shape[-1]
    if not last or features is None or layer.rms_scaling:
        return None
    gamma = tf.ones(features) if layer.gamma is None else tf.cast(layer.gamma, tf.float32)
    beta = tf.zeros(features) if layer.beta is None else tf.cast(layer.beta, tf.float32)
    # TensorFlow joins the operations where it sees two or three axes. It moves casts and reshapes of known shapes away.
    rows = tf.reshape(inputs, (-1, features))
    x = inputs if inputs.shape.rank <= 3 else rows
    is_seen = x.dtype == tf.float32 and (x is inputs or not inputs.shape.is_fully_defined())
    has_kernel = keras_private.uses_onednn() and not tf.config.list_logical_devices("GPU")
    if is_seen and has_kernel and not keras_private.is_recorded([inputs, gamma, beta]):
        y = _inferred(x, gamma, beta, layer.epsilon)
    else:
        y = _differentiated(rows, gamma, beta, layer.epsilon)
    y = y if y.shape.rank == inputs.shape.rank else reshape(y, lengths_of(inputs))
    return keras.ops.cast(y, layer.compute_dtype)


def _inferred(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    none = tf.constant([], tf.float32)
    # Each operation is as `FindMklLayerNorm` looks for it: `Fill`, which a number that is known would make a constant.
    rows = tf.raw_ops.PlaceholderWithDefault(input=tf.size(x) // x.shape[-1], shape=[])
    normalized = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(x, [1, rows, x.shape[-1], 1]),
        scale=tf.fill([rows], 1.0),
        offset=tf.fill([rows], 0.0),
        mean=none,
        variance=none,
        epsilon=epsilon,
        data_format="NCHW",
        is_training=True,
    )
    return tf.reshape(normalized.y, tf.shape(x)) * gamma + beta


def _differentiated(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    @tf.custom_gradient
    def normalized(x: Any, gamma: Any, beta: Any) -> Any:
        wide = tf.cast(x, tf.float32)
        mean = tf.reduce_mean(wide, -1, keepdims=True)
        centred = wide - mean
        r = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)

        def gradient(dy: Any) -> tuple[Any, Any, Any]:
            c = tf.cast(x, tf.float32) - mean  # again: to keep it would cost as much memory as `x`
            p = c * dy
            share = tf.reshape(gamma / x.shape[-1], (-1, 1))
            dx = r * (gamma * dy - tf.matmul(dy, share) - c * (tf.matmul(p, share) * r**2))
            dgamma = tf.reshape(tf.matmul(r, p, transpose_a=True), (-1,))
            return tf.cast(dx, x.dtype), dgamma, tf.raw_ops.BiasAddGrad(out_backprop=dy)

        return centred * r * gamma + beta, gradient

    return normalized(x, gamma, beta)
