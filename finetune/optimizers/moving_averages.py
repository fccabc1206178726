"""A Keras optimizer whose moving average leaves alone what is frozen."""

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops


class AveragingOptimizer(keras.optimizers.Optimizer):
    """Keeps the moving average that `use_ema` asks for, and does not update the average of a frozen variable.

    Keras updates the averages of all variables. That of a frozen variable should not change, since it averages equal
    values, but `0.99 * a + 0.01 * v` is rounded: it drifts in its last bits, and is then written to the variable.

    Args:
        **settings: Those of `keras.optimizers.Optimizer`.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self._stepping: frozenset[Any] = frozenset()  # keys of the variables of this step; the others are frozen

    def _check_variables_are_known(self, variables: list[Any]) -> None:
        # The first hook of a step, called with its variables. Keras checks here that the optimizer was built on them.
        self._stepping = frozenset(self._var_key(variable) for variable in variables)

    def _with_average(self, variables: Iterable[Any]) -> Iterator[tuple[Any, keras.Variable]]:
        # Keras pairs variables and averages by their order in a list, which is wrong for a part of the variables.
        for variable in variables:
            average = self._model_variables_moving_average[self._get_variable_index(variable)]
            if average is not None:
                yield variable, average

    def _start_averages(self, variables: Iterable[Any]) -> None:
        """Sets averages that are still 0, and so did not come from a file, to the values of the variables."""
        # All zeros: made for a placeholder, and not read from a file. (Or the weights are zero, too: nothing changes.)
        for variable, average in self._with_average(variables):
            with tf.init_scope():  # outside of the step that may be traced now
                if not np.any(average):
                    average.assign(variable)

    def _update_model_variables_moving_average(self, trainable_variables: list[Any]) -> None:
        """Computes `average = momentum * average + (1 - momentum) * variable` as Keras, with momentum 1 if frozen.

        At the first step Keras' momentum is 0, so that the average starts at the variable.
        """
        not_first = ops.not_equal(self.iterations, 0)
        for variable, average in self._with_average(trainable_variables):
            keeps = self.ema_momentum if self._var_key(variable) in self._stepping else 1.0
            momentum = ops.multiply(ops.cast(not_first, variable.dtype), keeps)
            average.assign(ops.add(ops.multiply(momentum, average), ops.multiply(ops.subtract(1, momentum), variable)))

    def _overwrite_model_variables_with_average_value(self, trainable_variables: Iterable[Any]) -> None:
        self.finalize_variable_values(v for v in trainable_variables if self._var_key(v) in self._stepping)

    def finalize_variable_values(self, var_list: Iterable[Any]) -> None:
        """Writes the moving average, if there is one, to the variables.

        Args:
            var_list: Any part of the variables; those that are left out may be frozen.
        """
        for variable, average in self._with_average(var_list if self.use_ema else ()):
            variable.assign(average)
