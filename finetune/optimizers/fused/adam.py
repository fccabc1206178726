"""Adam by half the passes over memory, with the bits of Keras.

Keras writes a step of Adam, in this order (`keras/src/optimizers/adam.py`, with t = iterations + 1):

    alpha = rate * sqrt(1 - beta_2^t) / (1 - beta_1^t)
    m += (g - m) * (1 - beta_1)
    v += (g * g - v) * (1 - beta_2)
    w -= m * alpha / (sqrt(v) + epsilon)

AdamW decays the weights before: `w -= w * weight_decay * rate`. That is a dozen operations, each of which reads and
writes all elements. Two of TensorFlow's training kernels do several of them in one pass and in the same order:

- gradient descent, `m -= c * (m - g)`, has the bits of `m += (g - m) * c`, since rounding does not look at the sign;
- Adagrad that does not update its accumulator is `w -= m * alpha / (sqrt(v) + epsilon)`.

A variable so large that only memory counts is updated in one pass, which XLA compiles. TensorFlow's own Adam kernel is
one pass too, but computes `1 - beta` in single precision, and so differs from Keras in most elements. See
`tests/optimizers/fused/test_adam.py`, and docs/step.md for what this saves.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from finetune.keras_private import adam_moments, is_compiled_by_xla
from finetune.variables import tf_variable

ONE_PASS_FROM = 2**18  # elements; below, fewer passes do not pay for the call of another program
_POWERS = 2 ** np.arange(31)


def update_adam(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any], variables: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """Updates a built Adam's variables one by one, where this module has the kernels for it.

    Args:
        optimizer: Any built optimizer.
        gradients: One for each variable, dense or sparse.
        variables: Variables of the optimizer.

    Returns:
        The gradients and variables that remain to be updated: all of them for another optimizer than plain Adam or
        AdamW, on several replicas, for other types than float32 and on a GPU.
    """
    if not is_plain_adam(optimizer) or tf.distribute.has_strategy():
        return list(gradients), list(variables)
    left = []
    # Once for all variables of the group.
    alpha = step_size(optimizer, tf.cast(optimizer.learning_rate, tf.float32))
    for gradient, variable in zip(gradients, variables, strict=True):
        w, m, v = map(tf_variable, (variable, *adam_moments(optimizer, variable)))
        if not all(isinstance(each, tf.Variable) and has_kernels(each) for each in (w, m, v)):
            left.append((gradient, variable))
        elif w.shape.num_elements() >= ONE_PASS_FROM and not is_compiled_by_xla() and has_xla():
            update_in_one_pass(optimizer, w, m, v, gradient, alpha)
        else:
            update_moments(optimizer, m, v, gradient)
            update_weights(optimizer, w, m, v, alpha)
    return [gradient for gradient, _ in left], [variable for _, variable in left]


def is_plain_adam(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns whether the optimizer's rule is the rule above; a subclass may have another."""
    is_adam = type(optimizer) in (keras.optimizers.Adam, keras.optimizers.AdamW) and not optimizer.amsgrad
    return is_adam and bool(optimizer.epsilon)  # without epsilon, TensorFlow rewrites Keras' rule: see `rewrites.py`


def has_kernels(variable: Any) -> bool:
    """Returns whether the kernels compute on the variable what Keras computes: float32, not on a GPU."""
    return tf.as_dtype(variable.dtype) == tf.float32 and "GPU" not in (variable.device or "")


def step_size(optimizer: keras.optimizers.Optimizer, learning_rate: Any) -> Any:
    """Returns `alpha`, the rate with its bias correction, in the order of Keras and the shape of the rate."""
    # The steps in float32 and the order of these operations are Keras': another order has other last bits.
    iterations: Any = optimizer.iterations
    local_step = ops.cast(iterations + 1, "float32")
    beta_1_power: Any = ops.power(ops.cast(optimizer.beta_1, "float32"), local_step)
    beta_2_power: Any = ops.power(ops.cast(optimizer.beta_2, "float32"), local_step)
    return learning_rate * ops.sqrt(1 - beta_2_power) / (1 - beta_1_power)


def update_moments(optimizer: keras.optimizers.Optimizer, m: tf.Variable, v: tf.Variable, gradient: Any) -> None:
    """Updates the moving averages of the gradient and of its square.

    Args:
        optimizer: An Adam, for its constants.
        m: First moment.
        v: Second moment.
        gradient: Dense or sparse, of the shape of the moments. The pieces of a row that occurs several times in a
            sparse one are squared one by one and then added up, as Keras does for embeddings.
    """
    if isinstance(gradient, tf.IndexedSlices):
        # `m - g` for all rows, of which those without a gradient decay, too: Adam of Keras is not lazy.
        rows, position = tf.unique(gradient.indices)
        values = tf.cast(gradient.values, m.dtype)
        m_minus_g = _minus_rows(m, rows, position, values)
        v_minus_square = _minus_rows(v, rows, position, values * values)
    else:
        gradient = tf.cast(gradient, m.dtype)
        m_minus_g, v_minus_square = m.read_value() - gradient, v.read_value() - gradient * gradient
    _descend(m, 1 - optimizer.beta_1, m_minus_g)
    _descend(v, 1 - optimizer.beta_2, v_minus_square)


def _minus_rows(slot: tf.Variable, rows: tf.Tensor, position: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    summed = tf.math.unsorted_segment_sum(values, position, tf.size(rows))
    return tf.tensor_scatter_nd_sub(slot.read_value(), rows[:, None], summed)


def _descend(variable: tf.Variable, factor: float, direction: tf.Tensor) -> None:
    tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=np.float32(factor), delta=direction)


def update_weights(optimizer: keras.optimizers.Optimizer, w: tf.Variable, m: Any, v: Any, alpha: Any) -> None:
    """Updates weights by their moments: `w -= m * alpha / (sqrt(v) + epsilon)`.

    Args:
        optimizer: An Adam, for its epsilon.
        w: The weights.
        m: First moment, updated already.
        v: Second moment, updated already.
        alpha: A scalar, or one number for each entry of a stack, in a shape that multiplies `m`.
    """
    is_scalar = alpha.shape.rank == 0
    tf.raw_ops.ResourceApplyAdagradV2(
        var=w.handle,
        accum=v.handle,
        lr=alpha if is_scalar else np.float32(1.0),
        epsilon=np.float32(optimizer.epsilon),
        grad=m.read_value() if is_scalar else m.read_value() * alpha,  # the kernel takes one rate; x * 1.0 is exact
        update_slots=False,
    )


def weight_change(optimizer: keras.optimizers.Optimizer, m: Any, v: Any, alpha: Any) -> tf.Tensor:
    """Returns what `update_weights` would subtract, for weights that are not in one variable.

    Args:
        optimizer: An Adam, for its epsilon.
        m: First moment, updated already.
        v: Second moment, updated already.
        alpha: As in `update_weights`.
    """
    return m.read_value() * alpha / (tf.sqrt(v.read_value()) + optimizer.epsilon)


def update_in_one_pass(
    optimizer: keras.optimizers.Optimizer, w: tf.Variable, m: tf.Variable, v: tf.Variable, gradient: Any, alpha: Any
) -> None:
    """Does what `update_moments` and `update_weights` do in one program, which reads and writes memory once.

    Args:
        optimizer: An Adam, for its constants.
        w: The weights.
        m: First moment.
        v: Second moment.
        gradient: Dense or sparse.
        alpha: A scalar.
    """
    # Passed as tensors, not compiled in: optimizers with other constants share the program of a shape.
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
    # The four lines at the top of this file, each product rounded as if it was an operation of its own.
    new_m = m + _rounded((g - m) * c1, zero)
    new_v = v + _rounded((g_squared - v) * c2, zero)
    m.assign(new_m, read_value=False)
    v.assign(new_v, read_value=False)
    w.assign(w - new_m * alpha / (tf.sqrt(new_v) + epsilon), read_value=False)


def _rounded(product: tf.Tensor, zero: tf.Tensor) -> tf.Tensor:
    """Returns the product unchanged, but rounded to float32 before it is added to anything.

    XLA contracts `a + b * c` to a fused multiply-add, which rounds once where Keras' operations round twice. It cannot
    see through an exclusive or with a `zero` that is passed in at run time.
    """
    return tf.bitcast(tf.bitwise.bitwise_xor(tf.bitcast(product, tf.int32), zero), product.dtype)


def _row_sums(gradient: tf.IndexedSlices, variable: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Adds up the rows of a sparse gradient without making it dense.

    Returns:
        For every row of the variable the index of its row in the other two; then sums of the values, and sums of their
        squares. The last row of the sums is 0 and belongs to all rows without a gradient. The sums have 2^n rows, at
        most twice as many as the variable, because XLA compiles anew for every shape.
    """
    rows, position = tf.unique(gradient.indices)
    number = tf.minimum(tf.size(gradient.indices), variable.shape[0])
    length = tf.bitwise.left_shift(1, tf.reduce_sum(tf.cast(number >= _POWERS, tf.int32)))  # the next power of 2
    values = tf.cast(gradient.values, variable.dtype)
    sums, squares = (tf.math.unsorted_segment_sum(x, position, length) for x in (values, values * values))
    nowhere = tf.fill(variable.shape[:1], length - 1)
    return tf.tensor_scatter_nd_update(nowhere, rows[:, None], tf.range(tf.size(rows))), sums, squares


@cache
def has_xla() -> bool:
    """Returns whether this TensorFlow has XLA for CPUs; not every build does."""
    try:
        with tf.init_scope(), tf.device("CPU:0"):  # outside of the step that may be traced now
            tf.function(lambda x: x + 1, jit_compile=True, autograph=False)(tf.constant(0))
    except tf.errors.OpError:
        return False
    return True
