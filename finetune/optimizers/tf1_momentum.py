"""Momentum as TF1 had it: the learning rate is not part of the velocity.

TF1:    m = momentum * m + g           w -= rate * m
Keras:  m = momentum * m - rate * g    w += m
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError
from finetune.optimizers.fused.rewrites import as_written
from finetune.variables import tf_variable


@keras.saving.register_keras_serializable("finetune")
class Momentum(keras.optimizers.Optimizer):
    """Gradient descent with momentum, exactly `tf.compat.v1.train.MomentumOptimizer`.

    ```
    m = momentum * m + g
    v = v - learning_rate * m                      # nesterov: v - learning_rate * (g + momentum * m)
    ```

    `keras.optimizers.SGD` keeps `learning_rate * m` instead of `m`. That is the same under a constant rate. Under a
    decaying rate Keras' velocity still holds gradients scaled by the earlier, larger rates, so that settings found with
    TF1 give other weights.

    Updates are computed by TF1's kernels, bit for bit; compiled by XLA they may differ in the last bit (fused
    multiply-add). With a sparse gradient, as of an embedding, only the rows that occur are updated, and only their `m`
    decays.

    Args:
        learning_rate: A float, a schedule, or a callable without arguments.
        momentum: Share of `m` that is kept at each step, in [0, 1].
        nesterov: Whether to apply the momentum once more in advance, as in the formula.
        **kwargs: What every Keras optimizer takes: `name`, `weight_decay`, `clipnorm`, `use_ema`, ...

    Raises:
        GroupError: If `momentum` is not a number in [0, 1].

    References:
        Sutskever et al. (2013), On the importance of initialization and momentum in deep learning,
        https://proceedings.mlr.press/v28/sutskever13.html

    Examples:
        >>> weight = tf.Variable([1.0])
        >>> optimizer = Momentum(learning_rate=0.5, momentum=0.5)
        >>> for _ in range(2):
        ...     optimizer.apply([tf.constant([1.0])], [weight])  # m is 1, then 1.5
        >>> weight.numpy().tolist()
        [-0.25]
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], Any] = 0.01,
        momentum: float = 0.9,
        nesterov: bool = False,
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum = _checked_momentum(momentum)
        self.nesterov = nesterov

    def build(self, variables: list[Any]) -> None:
        """Makes the slot `m` for each variable."""
        if self.built:
            return
        super().build(variables)
        self.momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates a variable and its slot.

        Args:
            gradient: Dense or sparse, of the variable's shape.
            variable: A variable that `build` knows; also a `StackedVariable`, whose `learning_rate` may be a column.
            learning_rate: A scalar.
        """
        slot = tf_variable(self.momentums[self._get_variable_index(variable)])
        variable = tf_variable(variable)
        gradient, rate, momentum = (tf.cast(x, variable.dtype) for x in (gradient, learning_rate, self.momentum))
        if isinstance(gradient, tf.IndexedSlices):
            _update_rows(variable, slot, gradient, rate, momentum, self.nesterov)
            return
        if not (hasattr(variable, "handle") and hasattr(slot, "handle")):  # stacked, or a view: see `fused/`
            # The operations of TF1's kernel in its order; the kernel takes a single rate and whole variables.
            # As written: TensorFlow takes common factors out of a compiled sum, but not in the kernel.
            gradient = as_written(gradient)
            velocity = slot * momentum + gradient
            slot.assign(velocity)
            step = as_written(velocity * momentum) * rate if self.nesterov else velocity * rate
            variable.assign_sub(as_written(gradient * rate) + step if self.nesterov else step)
            return
        # One pass over memory: accum = momentum * accum + grad; var -= lr * accum, or with nesterov as above.
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=slot.handle,
            lr=rate,
            grad=gradient,
            momentum=momentum,
            use_nesterov=self.nesterov,
        )

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"momentum": self.momentum, "nesterov": self.nesterov}


def _checked_momentum(momentum: Any) -> float:
    if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 <= momentum <= 1:
        raise GroupError(
            f"`momentum` must be a number from 0 to 1. Received `{momentum!r}`. 0 is plain gradient descent, `0.9` is "
            "usual."
        )
    return float(momentum)


def _update_rows(
    variable: Any, slot: Any, gradient: tf.IndexedSlices, rate: tf.Tensor, momentum: tf.Tensor, nesterov: bool
) -> None:
    # XLA cannot compile TF1's kernel, `ResourceSparseApplyMomentum`. These are its operations in its order, after the
    # sum over the pieces of each row, which TF1 takes first as well.
    # Rows that do not occur keep their velocity: TF1 decays it only when the row is used again.
    rows, position = tf.unique(gradient.indices)
    gradient_sum = tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))
    velocity = momentum * tf.gather(slot, rows) + gradient_sum
    step = rate * gradient_sum + rate * momentum * velocity if nesterov else rate * velocity
    slot.scatter_update(tf.IndexedSlices(velocity, rows))
    variable.scatter_sub(tf.IndexedSlices(step, rows))
