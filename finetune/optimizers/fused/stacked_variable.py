"""Several variables of one shape as one variable, for an update rule that is called once for all of them.

Only the fused update (`fusion.py`) and the fast loop (`training/fast/`) need this module.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import tensorflow as tf

from finetune.variables import tf_variable

_ids = count()


class StackedVariable:
    """Variables of one shape that an update rule takes for one variable, whose first axis counts them.

    The values remain in the variables, where layers and files look for them: `read` stacks them, and `assign_sub`
    subtracts from each its part. During a call of several steps they are in a buffer instead, see `Buffers`.

    Args:
        variables: At least one, all of the same shape and dtype.

    Attributes:
        variables: The same variables, in the order of the first axis.
        shape: `(len(variables), *shape of each)`.
        dtype: The dtype of each.
        buffer: The variable that holds the values instead during a call of several steps; otherwise `None`.
    """

    def __init__(self, variables: Sequence[Any]):
        self.variables = list(variables)
        self.shape = tf.TensorShape([len(variables), *variables[0].shape])
        self.dtype = tf.as_dtype(variables[0].dtype)
        self._unique_id = f"stacked_{next(_ids)}"  # Keras' optimizers find the slots of a variable by this attribute
        self.path = self.name = self._unique_id
        self.buffer: tf.Variable | None = None

    def read(self) -> tf.Tensor:
        """Returns all values as one tensor of `shape`."""
        if self.buffer is not None:
            return self.buffer.read_value()
        return tf.stack([tf_variable(variable).read_value() for variable in self.variables])

    def write(self, value: tf.Tensor) -> None:
        """Assigns to every variable its part. The parts of an unstacked tensor share its memory: nothing is copied."""
        for variable, part in zip(self.variables, tf.unstack(value), strict=True):
            tf_variable(variable).assign(part, read_value=False)

    def assign_sub(self, value: tf.Tensor) -> None:
        """Subtracts from every variable its part of `value`."""
        if self.buffer is not None:
            self.buffer.assign_sub(value, read_value=False)
            return
        for variable, part in zip(self.variables, tf.unstack(value), strict=True):
            tf_variable(variable).assign_sub(part, read_value=False)

    def assign_add(self, value: tf.Tensor) -> None:
        """Adds to every variable its part of `value`; `a + b` and `a - (-b)` have the same bits."""
        self.assign_sub(-value)


class Buffers:
    """One variable for the values of each stacked variable, during a call that makes several steps.

    Reading and writing many small variables costs an operation each, in every step. Within `filled` that happens once
    for the whole call; in between, the layers see `slices` of the buffers, and updates change the buffers alone.

    Args:
        stacked: Stacked variables, of which no two share a variable.
    """

    def __init__(self, stacked: Sequence[StackedVariable] = ()):
        self._buffers = {
            variables: tf.Variable(tf.zeros(variables.shape, variables.dtype), trainable=False, name=variables.name)
            for variables in stacked
        }

    def __len__(self) -> int:
        return len(self._buffers)

    @property
    def variables(self) -> list[Any]:
        """The variables whose values may lie in the buffers."""
        return [variable for stacked in self._buffers for variable in stacked.variables]

    @contextmanager
    def filled(self) -> Iterator[None]:
        """Copies all values into the buffers, lets updates traced meanwhile change these, and copies them back."""
        # Traced: these copies are operations of the call, one per variable, before and after its loop.
        for stacked, buffer in self._buffers.items():
            buffer.assign(stacked.read(), read_value=False)
        try:
            for stacked, buffer in self._buffers.items():
                stacked.buffer = buffer
            yield
        finally:
            for stacked in self._buffers:
                stacked.buffer = None
        # Not in `finally`: where tracing failed there is no call, and no value to copy.
        for stacked, buffer in self._buffers.items():
            stacked.write(buffer.read_value())

    def slices(self) -> list[tuple[Any, tf.Tensor]]:
        """Returns every variable with its present value, a tensor of its shape."""
        return [
            (variable, part)
            for stacked in self._buffers
            for variable, part in zip(stacked.variables, tf.unstack(stacked.read()), strict=True)
        ]

    def without(self, variables: Iterable[Any]) -> "Buffers":
        """Returns only the buffers that hold none of some variables."""
        kept = {id(variable) for variable in variables}
        fewer = Buffers()
        fewer._buffers = {
            stacked: buffer
            for stacked, buffer in self._buffers.items()
            if not any(id(variable) in kept for variable in stacked.variables)
        }
        return fewer
