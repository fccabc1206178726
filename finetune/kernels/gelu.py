"""The Gaussian error linear unit with a written gradient.

    exact:        y = x Phi(x),  Phi(x) = (1 + erf(x / sqrt(2))) / 2;   dy/dx = Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)
    approximate:  y = x h,  h = (1 + tanh(u)) / 2,  u = sqrt(2 / pi) (x + 0.044715 x^3)
                  dy/dx = h + 2 x h (1 - h) du/dx,  du/dx = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)

Keras computes the exact one by `erfc(-x / sqrt(2))`, for which TensorFlow has no vector instructions; `erf` is three
times as fast. Far below zero, where `Phi` is tiny, the sum of 1 and `erf` is exact to 6e-8 only and `erfc` to seven
digits; against the largest outputs both are equally exact, and PyTorch computes it as here. The gradient that
TensorFlow derives operation by operation reads and writes a batch a dozen times; written out it is half of that.

The forward pass is spelled as TensorFlow's optimizer expects it: without a gradient, it joins the product with a
kernel, the bias and the unit in one operation. It does not see the cube as a power, or with its factor elsewhere.

References:
    Hendrycks & Gimpel (2016), https://arxiv.org/abs/1606.08415
    `keras.ops.gelu`, which it stands for; `FindMatMulBiasAddAndGelu` in
    `tensorflow/core/grappler/optimizers/remapper.cc`.
"""

import math
from typing import Any

import tensorflow as tf

_CUBIC = 0.044715


def gelu(x: Any, approximate: bool = True) -> Any:
    """Computes a `keras.ops.gelu`.

    Args:
        x: The inputs, of any shape.
        approximate: Whether the normal distribution is approximated by a hyperbolic tangent.

    Returns:
        The outputs; `None` where the kernel does not apply.
    """
    # In half precision, `1 + erf` would lose what `erfc` keeps.
    if not (isinstance(x, tf.Tensor) and x.dtype in (tf.float32, tf.float64)):
        return None
    return _approximate(x) if approximate else _exact(x)


@tf.custom_gradient
def _exact(x: Any) -> Any:
    twice_phi = 1.0 + tf.math.erf(x * math.sqrt(0.5))

    def gradient(dy: Any) -> Any:
        density = tf.exp(-0.5 * tf.square(x)) * (1.0 / math.sqrt(2.0 * math.pi))
        return dy * (0.5 * twice_phi + x * density)

    return 0.5 * x * twice_phi, gradient


@tf.custom_gradient
def _approximate(x: Any) -> Any:
    slope = math.sqrt(2.0 / math.pi)
    twice_h = 1.0 + tf.tanh(slope * (x + _CUBIC * (x * tf.square(x))))

    def gradient(dy: Any) -> Any:
        h = 0.5 * twice_h
        return dy * (h + (x * h) * (1.0 - h) * (2.0 * slope + (6.0 * slope * _CUBIC) * tf.square(x)))

    return 0.5 * x * twice_h, gradient
