"""Momentum as TF1 had it: the learning rate stays outside the velocity."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError
from finetune.variables import tf_variable


@keras.saving.register_keras_serializable("finetune")
class Momentum(keras.optimizers.Optimizer):
    """Gradient descent with momentum, exactly `tf.compat.v1.train.MomentumOptimizer`.

    ```
    m = momentum * m + g
    v = v - learning_rate * m                      # nesterov: v - learning_rate * (g + momentum * m)
    ```

    `keras.optimizers.SGD` keeps `learning_rate * m` instead of `m`. That is the same under a constant rate. Under a
    decaying one Keras' velocity still holds gradients scaled by the earlier, larger rates, so a recipe from TF1 takes
    another path.

    Updates are TF1's own kernels, bit for bit; compiled by XLA they may differ in the last bit (fused multiply-add).
    Of a sparse gradient (an embedding's) only the rows that occur are updated, and only their `m` decays.

    Args:
        learning_rate: A float, a schedule, or a callable without arguments.
        momentum: Share of `m` that is kept at each step, in [0, 1].
        nesterov: Whether to look one step ahead.
        **kwargs: What every Keras optimizer takes: `name`, `weight_decay`, `clipnorm`, `use_ema`, ...

    Raises:
        GroupError: `momentum` is not a number in [0, 1].

    References:
        Sutskever et al. (2013), On the importance of initialization and momentum in deep learning,
        https://proceedings.mlr.press/v28/sutskever13.html

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
        self.momentum = _share(momentum)
        self.nesterov = nesterov

    def build(self, variables: list[Any]) -> None:
        """Creates one slot for each variable."""
        if self.built:
            return
        super().build(variables)
        self.momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable and its slot in place."""
        slot = tf_variable(self.momentums[self._get_variable_index(variable)])
        variable = tf_variable(variable)
        gradient, rate, momentum = (tf.cast(x, variable.dtype) for x in (gradient, learning_rate, self.momentum))
        if isinstance(gradient, tf.IndexedSlices):
            _update_rows(variable, slot, gradient, rate, momentum, self.nesterov)
            return
        if not (hasattr(variable, "handle") and hasattr(slot, "handle")):  # of several variables: see stacks.py
            _update_all(variable, slot, gradient, rate, momentum, self.nesterov)
            return
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


def _share(momentum: Any) -> float:
    if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 <= momentum <= 1:
        raise GroupError(
            f"`momentum` must be a number from 0 to 1. Received `{momentum!r}`. 0 is plain gradient descent, `0.9` is "
            "usual. Write a number between."
        )
    return float(momentum)


def _update_all(
    variable: Any, slot: Any, gradient: tf.Tensor, rate: tf.Tensor, momentum: tf.Tensor, nesterov: bool
) -> None:
    # The operations of TF1's kernel in its order; the kernel itself takes only one rate.
    velocity = slot * momentum + gradient
    slot.assign(velocity)
    variable.assign_sub(gradient * rate + velocity * momentum * rate if nesterov else velocity * rate)


def _update_rows(
    variable: Any, slot: Any, gradient: tf.IndexedSlices, rate: tf.Tensor, momentum: tf.Tensor, nesterov: bool
) -> None:
    # `ResourceSparseApplyMomentum`, TF1's kernel, has no XLA counterpart. These are its operations in its order.
    rows, position = tf.unique(gradient.indices)
    gradient_sum = tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))
    velocity = momentum * tf.gather(slot, rows) + gradient_sum
    step = rate * gradient_sum + rate * momentum * velocity if nesterov else rate * velocity
    slot.scatter_update(tf.IndexedSlices(velocity, rows))
    variable.scatter_sub(tf.IndexedSlices(step, rows))
