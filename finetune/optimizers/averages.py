"""A Keras optimizer whose moving average leaves alone what is frozen."""

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops


class AveragingOptimizer(keras.optimizers.Optimizer):
    """Keeps the moving average that `use_ema` asks for; that of a frozen variable stands still.

    Keras' own moves in its last bits with every step, and is then put into the variable.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self._stepping: frozenset[Any] = frozenset()  # keys of the variables of this step; the others are frozen

    def _check_variables_are_known(self, variables: list[Any]) -> None:
        self._stepping = frozenset(self._var_key(variable) for variable in variables)

    def _with_average(self, variables: Iterable[Any]) -> Iterator[tuple[Any, keras.Variable]]:
        for variable in variables:
            average = self._model_variables_moving_average[self._get_variable_index(variable)]
            if average is not None:
                yield variable, average

    def _start_averages(self, variables: Iterable[Any]) -> None:
        """Lets averages that are of stand-ins alone, not from a file, begin at the variables that came."""
        for variable, average in self._with_average(variables):
            with tf.init_scope():  # a step may be traced just now
                if not np.any(average):
                    average.assign(variable)

    def _update_model_variables_moving_average(self, trainable_variables: list[Any]) -> None:
        """As in Keras; only that the average of a frozen variable stands still, to the last bit."""
        not_first = ops.not_equal(self.iterations, 0)
        for variable, average in self._with_average(trainable_variables):
            keeps = self.ema_momentum if self._var_key(variable) in self._stepping else 1.0
            momentum = ops.multiply(ops.cast(not_first, variable.dtype), keeps)
            average.assign(ops.add(ops.multiply(momentum, average), ops.multiply(ops.subtract(1, momentum), variable)))

    def _overwrite_model_variables_with_average_value(self, trainable_variables: Iterable[Any]) -> None:
        self.finalize_variable_values(v for v in trainable_variables if self._var_key(v) in self._stepping)

    def finalize_variable_values(self, var_list: Iterable[Any]) -> None:
        """Puts the moving average, if one is kept, into the variables, of which some may be frozen."""
        for variable, average in self._with_average(var_list if self.use_ema else ()):
            variable.assign(average)
