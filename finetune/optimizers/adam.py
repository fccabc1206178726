"""Adam in half the passes over memory, with the bits of Keras.

Keras writes Adam as a dozen operations, each of which reads and writes all elements. Two of TensorFlow's training
kernels do what several of them do, in one pass and in the same order: gradient descent, `m -= c * (m - g)`, is
`m += (g - m) * c` to the last bit, since rounding does not look at the sign; and Adagrad that leaves its accumulator
alone is `w -= m * alpha / (sqrt(v) + epsilon)`. TensorFlow's own Adam kernel is faster still, but computes `1 - beta`
in single precision, and so differs from Keras in most elements. See `tests/test_adam.py`.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops


def update_large(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any], variables: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """Updates what it can of a built Adam's variables, one by one; returns the gradients and variables left."""
    if not is_plain_adam(optimizer) or tf.distribute.has_strategy():
        return list(gradients), list(variables)
    left = []
    alpha = step_size(optimizer, tf.cast(optimizer.learning_rate, tf.float32))
    for gradient, variable in zip(gradients, variables, strict=True):
        index = optimizer._get_variable_index(variable)
        w, m, v = map(native, (variable, optimizer._momentums[index], optimizer._velocities[index]))
        if all(isinstance(one, tf.Variable) and has_kernels(one) for one in (w, m, v)):
            move_slots(optimizer, m, v, gradient)
            move_weights(optimizer, w, m, v, alpha)
        else:
            left.append((gradient, variable))
    return [gradient for gradient, _ in left], [variable for _, variable in left]


def native(variable: Any) -> Any:
    """The `tf.Variable` inside a `keras.Variable`."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def is_plain_adam(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the optimizer's rule is the one that is here; a subclass has a rule of its own."""
    return type(optimizer) in (keras.optimizers.Adam, keras.optimizers.AdamW) and not optimizer.amsgrad


def has_kernels(variable: Any) -> bool:
    """Whether the kernels compute on the variable what Keras computes: single precision, on a processor."""
    return tf.as_dtype(variable.dtype) == tf.float32 and "GPU" not in (variable.device or "")


def step_size(optimizer: keras.optimizers.Optimizer, learning_rate: Any) -> Any:
    """The rate with its bias correction, in the order of Keras; of the rate's shape."""
    iterations: Any = optimizer.iterations
    local_step = ops.cast(iterations + 1, "float32")
    beta_1_power: Any = ops.power(ops.cast(optimizer.beta_1, "float32"), local_step)
    beta_2_power: Any = ops.power(ops.cast(optimizer.beta_2, "float32"), local_step)
    return learning_rate * ops.sqrt(1 - beta_2_power) / (1 - beta_1_power)


def move_slots(optimizer: keras.optimizers.Optimizer, m: tf.Variable, v: tf.Variable, gradient: Any) -> None:
    """Takes a gradient, dense or sparse, into the two moving averages."""
    if isinstance(gradient, tf.IndexedSlices):
        rows, position = tf.unique(gradient.indices)
        values = tf.cast(gradient.values, m.dtype)
        m_rest = _less_rows(m, rows, position, values)
        v_rest = _less_rows(v, rows, position, values * values)
    else:
        gradient = tf.cast(gradient, m.dtype)
        m_rest, v_rest = m.read_value() - gradient, v.read_value() - gradient * gradient
    _descend(m, 1 - optimizer.beta_1, m_rest)
    _descend(v, 1 - optimizer.beta_2, v_rest)


def _less_rows(slot: tf.Variable, rows: tf.Tensor, position: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    summed = tf.math.unsorted_segment_sum(values, position, tf.size(rows))
    return tf.tensor_scatter_nd_sub(slot.read_value(), rows[:, None], summed)


def _descend(variable: tf.Variable, factor: float, direction: tf.Tensor) -> None:
    tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=np.float32(factor), delta=direction)


def move_weights(optimizer: keras.optimizers.Optimizer, variable: tf.Variable, m: Any, v: Any, alpha: Any) -> None:
    """Moves weights by their averages: `alpha` is one number, or one for each row of a stack."""
    is_scalar = alpha.shape.rank == 0
    tf.raw_ops.ResourceApplyAdagradV2(
        var=variable.handle,
        accum=v.handle,
        lr=alpha if is_scalar else np.float32(1.0),
        epsilon=np.float32(optimizer.epsilon),
        grad=m.read_value() if is_scalar else m.read_value() * alpha,
        update_slots=False,
    )


def weight_change(optimizer: keras.optimizers.Optimizer, m: Any, v: Any, alpha: Any) -> tf.Tensor:
    """What `move_weights` subtracts."""
    return m.read_value() * alpha / (tf.sqrt(v.read_value()) + optimizer.epsilon)
