"""The sigmoid linear unit with a written gradient.

    y = x s(x),  s(x) = 1 / (1 + exp(-x));   dy/dx = s(x) (1 + x - y)

Keras' gradient, `s (1 + x (1 - s))`, computes `s` again and takes five passes over the batch behind it. Here `y` is at
hand, which the next layer keeps in any case, and TensorFlow has one operation for a gradient times `s(x)`: the one for
the gradient of softplus. That is four passes. Where `y` nears `x`, the difference `x - y` loses as many digits as
`1 - s` does.

References:
    Elfwing et al. (2017), https://arxiv.org/abs/1702.03118
    `keras.ops.silu`, which it stands for.
"""

from typing import Any

import tensorflow as tf


def silu(x: Any) -> Any:
    """Computes a `keras.ops.silu`.

    Args:
        x: The inputs, of any shape.

    Returns:
        The outputs; `None` where the kernel does not apply.
    """
    # In half precision either difference loses most of its digits, but not the same ones.
    return _silu(x) if isinstance(x, tf.Tensor) and x.dtype in (tf.float32, tf.float64) else None


@tf.custom_gradient
def _silu(x: Any) -> Any:
    y = x * tf.sigmoid(x)  # which TensorFlow joins

    def gradient(dy: Any) -> Any:
        of_sigmoid = tf.raw_ops.SoftplusGrad(gradients=dy, features=x)
        return of_sigmoid + of_sigmoid * (
            x - y
        )  # TensorFlow would make `(1 + x) - y` of `1 + (x - y)`, which is less exact

    return y, gradient
