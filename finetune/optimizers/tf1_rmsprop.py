"""RMSProp as TF1 had it: the mean of the squared gradients starts at 1, and `epsilon` is 1e-10.

Keras' starts at 0, so that its first steps are larger: with `rho=0.9` about three times.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError
from finetune.optimizers.fused.rewrites import as_written
from finetune.variables import tf_variable


@keras.saving.register_keras_serializable("finetune")
class TF1RMSprop(keras.optimizers.Optimizer):
    """Gradient descent divided by the root of a running mean square, exactly `tf.compat.v1.train.RMSPropOptimizer`.

    ```
    s = rho * s + (1 - rho) * g ** 2                         # starts at 1; TF1 calls `rho` `decay`
    m = momentum * m + learning_rate * g / sqrt(s + epsilon)
    v = v - m                                                # centered: s - a ** 2 for s, where a is the mean of g
    ```

    `keras.optimizers.RMSprop` has the same formula and starts `s` at 0, with an `epsilon` of 1e-7. Settings that were
    chosen with TF1, as those of Inception and EfficientNet, begin too fast there: after 20 steps at a rate of 0.01 the
    weights differ by 5e-2.

    Updates are computed by TF1's kernels, bit for bit; compiled by XLA they may differ in the last bit (fused
    multiply-add). With a sparse gradient, as of an embedding, only the rows that occur are updated, and only their
    means decay.

    Args:
        learning_rate: A float, a schedule, or a callable without arguments.
        rho: Share of the means that is kept at each step, in [0, 1].
        momentum: Share of `m` that is kept at each step, in [0, 1].
        epsilon: Added to the mean square before the root, >= 0.
        centered: Whether the square of the mean gradient is subtracted, which makes `s` a variance.
        **kwargs: What every Keras optimizer takes: `name`, `weight_decay`, `clipnorm`, `use_ema`, ...

    Raises:
        GroupError: If `rho`, `momentum` or `epsilon` is not a number within its bounds.

    References:
        Hinton (2012), Neural Networks for Machine Learning, lecture 6,
        https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf

    Examples:
        >>> weight = tf.Variable([1.0])
        >>> optimizer = TF1RMSprop(learning_rate=0.5, rho=0.5, epsilon=0.0)
        >>> optimizer.apply([tf.constant([1.0])], [weight])  # s stays 1
        >>> weight.numpy().tolist()
        [0.5]
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], Any] = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-10,
        centered: bool = False,
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.rho = _checked("rho", rho)
        self.momentum = _checked("momentum", momentum)
        self.epsilon = _checked("epsilon", epsilon)
        self.centered = centered

    def build(self, variables: list[Any]) -> None:
        """Makes the slots of each variable."""
        if self.built:
            return
        super().build(variables)
        self.mean_squares = self.add_optimizer_variables(variables, "mean_square", initializer="ones")
        self.momentums = self.add_optimizer_variables(variables, "momentum")
        self.means = self.add_optimizer_variables(variables, "mean") if self.centered else []

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates a variable and its slots.

        Args:
            gradient: Dense or sparse, of the variable's shape.
            variable: A variable that `build` knows; also a `StackedVariable`, whose `learning_rate` may be a column.
            learning_rate: A scalar.
        """
        index = self._get_variable_index(variable)
        lists = [self.mean_squares, self.momentums, *([self.means] if self.centered else [])]
        slots = [tf_variable(slots[index]) for slots in lists]
        variable = tf_variable(variable)
        settings = (gradient, learning_rate, self.rho, self.momentum, self.epsilon)
        gradient, rate, rho, momentum, epsilon = (tf.cast(value, variable.dtype) for value in settings)
        if isinstance(gradient, tf.IndexedSlices):
            _update_rows(variable, slots, gradient, rate, rho, momentum, epsilon)
            return
        if not all(hasattr(known, "handle") for known in (variable, *slots)):  # stacked, or a view: see `fused/`
            values, step = _rule(slots, gradient, rate, rho, momentum, epsilon)
            for slot, value in zip(slots, values, strict=True):
                slot.assign(value)
            variable.assign_sub(step)
            return
        # One pass over memory, by TF1's kernel.
        mean = {"mg": slots[2].handle} if self.centered else {}
        update = tf.raw_ops.ResourceApplyCenteredRMSProp if mean else tf.raw_ops.ResourceApplyRMSProp
        update(
            var=variable.handle,
            **mean,
            ms=slots[0].handle,
            mom=slots[1].handle,
            lr=rate,
            rho=rho,
            momentum=momentum,
            epsilon=epsilon,
            grad=gradient,
        )

    def get_config(self) -> dict[str, Any]:
        settings = {"rho": self.rho, "momentum": self.momentum, "epsilon": self.epsilon, "centered": self.centered}
        return super().get_config() | settings


def _checked(name: str, value: Any) -> float:
    most = float("inf") if name == "epsilon" else 1
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        bounds = "a number >= 0" if name == "epsilon" else "a number from 0 to 1"
        usual = {"rho": "`0.9`", "momentum": "`0.9`, or 0 for none,", "epsilon": "`1e-10`"}[name]
        raise GroupError(f"`{name}` must be {bounds}. Received `{value!r}`. {usual} is usual.")
    return float(value)


def _rule(
    slots: list[Any], gradient: Any, rate: tf.Tensor, rho: tf.Tensor, momentum: tf.Tensor, epsilon: tf.Tensor
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Returns the new values of the slots, and the step to subtract: the operations of TF1's kernel in its order."""
    # As written, since TensorFlow reorders sums and divisions by a root in a compiled step, but not the kernel.
    mean_square, velocity, *means = slots
    mean_square = mean_square + (tf.square(gradient) - mean_square) * (1 - rho)
    means = [mean + (gradient - mean) * (1 - rho) for mean in means]
    variance = as_written(mean_square - as_written(tf.square(means[0]))) if means else mean_square
    velocity = velocity * momentum + gradient * rate / as_written(tf.sqrt(variance + epsilon))
    return [mean_square, velocity, *means], velocity


def _update_rows(
    variable: Any, slots: list[Any], gradient: tf.IndexedSlices, rate: tf.Tensor, *settings: tf.Tensor
) -> None:
    # XLA cannot compile TF1's kernel, `ResourceSparseApplyRMSProp`. TF1 sums the pieces of a row first, as here; rows
    # that do not occur keep their means.
    rows, position = tf.unique(gradient.indices)
    gradient_sum = tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))
    values, step = _rule([tf.gather(slot, rows) for slot in slots], gradient_sum, rate, *settings)
    for slot, value in zip(slots, values, strict=True):
        slot.scatter_update(tf.IndexedSlices(value, rows))
    variable.scatter_sub(tf.IndexedSlices(step, rows))
