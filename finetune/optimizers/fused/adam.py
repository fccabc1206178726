"""Adam in half the passes over memory, with the bits of Keras.

Keras writes Adam as a dozen operations, each of which reads and writes all elements. Two of TensorFlow's training
kernels do what several of them do, in one pass and in the same order: gradient descent, `m -= c * (m - g)`, is
`m += (g - m) * c` to the last bit, since rounding does not look at the sign; and Adagrad that leaves its accumulator
alone is `w -= m * alpha / (sqrt(v) + epsilon)`. What is so large that memory is all that counts is updated in one pass,
which XLA compiles. TensorFlow's own Adam kernel, one pass too, computes `1 - beta` in single precision, and so differs
from Keras in most elements. See `tests/test_adam.py`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from tensorflow.python.ops import control_flow_util

from finetune.variables import tf_variable

ONE_PASS_FROM = 2**18  # elements; the fewer passes do not pay for another program below
_POWERS = 2 ** np.arange(31)


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
        w, m, v = map(tf_variable, (variable, optimizer._momentums[index], optimizer._velocities[index]))
        if all(isinstance(one, tf.Variable) and has_kernels(one) for one in (w, m, v)):
            if w.shape.num_elements() >= ONE_PASS_FROM and not is_compiled_by_xla() and has_xla():
                move_in_one_pass(optimizer, w, m, v, gradient, alpha)
            else:
                move_slots(optimizer, m, v, gradient)
                move_weights(optimizer, w, m, v, alpha)
        else:
            left.append((gradient, variable))
    return [gradient for gradient, _ in left], [variable for _, variable in left]


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


def move_in_one_pass(
    optimizer: keras.optimizers.Optimizer, w: tf.Variable, m: tf.Variable, v: tf.Variable, gradient: Any, alpha: Any
) -> None:
    """Does `move_slots` and `move_weights` at once, for `alpha` one number."""
    factors = np.float32(1 - optimizer.beta_1), np.float32(1 - optimizer.beta_2), np.float32(optimizer.epsilon)
    constants = (alpha, *map(tf.constant, factors), tf.constant(0))
    with tf.device(w.device):  # XLA takes no resource of another device
        if isinstance(gradient, tf.IndexedSlices):
            _one_pass_of_rows(w, m, v, *_row_sums(gradient, w), *constants)
        else:
            _one_pass(w, m, v, tf.cast(gradient, w.dtype), *constants)


@tf.function(jit_compile=True, autograph=False)
def _one_pass(w: Any, m: Any, v: Any, gradient: Any, *constants: Any) -> None:
    _rule(w, m, v, gradient, _rounded(gradient * gradient, constants[-1]), *constants)


@tf.function(jit_compile=True, autograph=False)
def _one_pass_of_rows(w: Any, m: Any, v: Any, place: Any, sums: Any, squares: Any, *constants: Any) -> None:
    _rule(w, m, v, tf.gather(sums, place), tf.gather(squares, place), *constants)


def _rule(
    w: Any, m: Any, v: Any, g: Any, g_squared: Any, alpha: Any, c1: Any, c2: Any, epsilon: Any, zero: Any
) -> None:
    new_m = m + _rounded((g - m) * c1, zero)
    new_v = v + _rounded((g_squared - v) * c2, zero)
    m.assign(new_m, read_value=False)
    v.assign(new_v, read_value=False)
    w.assign(w - new_m * alpha / (tf.sqrt(new_v) + epsilon), read_value=False)


def _rounded(product: tf.Tensor, zero: tf.Tensor) -> tf.Tensor:
    """Keeps XLA from adding to a product that was not rounded: it cannot know that `zero` changes nothing."""
    return tf.bitcast(tf.bitwise.bitwise_xor(tf.bitcast(product, tf.int32), zero), product.dtype)


def _row_sums(gradient: tf.IndexedSlices, variable: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Takes a sparse gradient apart, without making it dense.

    Returns:
        For every row of the variable its place in the others, and sums of the values and of their squares. Their last
        row is 0: it is of all rows without a gradient. They have 2^n rows, as XLA compiles anew for every shape, and
        at most twice those of the variable.
    """
    rows, position = tf.unique(gradient.indices)
    number = tf.minimum(tf.size(gradient.indices), variable.shape[0])
    length = tf.bitwise.left_shift(1, tf.reduce_sum(tf.cast(number >= _POWERS, tf.int32)))  # the next power of 2
    values = tf.cast(gradient.values, variable.dtype)
    sums, squares = (tf.math.unsorted_segment_sum(one, position, length) for one in (values, values * values))
    nowhere = tf.fill(variable.shape[:1], length - 1)
    return tf.tensor_scatter_nd_update(nowhere, rows[:, None], tf.range(tf.size(rows))), sums, squares


def is_compiled_by_xla() -> bool:
    """Whether what is traced just now becomes a part of something that XLA compiles, with the rounding of XLA."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


@cache
def has_xla() -> bool:
    """Whether this TensorFlow has XLA for processors; not every build does."""
    try:
        with tf.init_scope(), tf.device("CPU:0"):  # a step may be traced just now
            tf.function(lambda x: x + 1, jit_compile=True, autograph=False)(tf.constant(0))
    except tf.errors.OpError:
        return False
    return True
