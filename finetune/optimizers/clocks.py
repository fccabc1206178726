"""The step of each group: a group that enters late starts like a group that is trained from the first step.

Adam and similar rules divide their averages by `1 - beta ** t`, where t is how many gradients the averages have seen.
With the step of the whole training as t, a group that enters with empty averages after a thousand steps would take a
first step several times too large. So each group counts its steps from where it starts.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from finetune.keras_private import set_step_counter, step_counter
from finetune.optimizers.group import Group


class Clocks:
    """The steps at which the groups started; 0 for all of them until `start` is called.

    Args:
        groups: All groups, input to output.
        iterations: The optimizer's step counter.

    Attributes:
        starts: Variable with the step at which each group started, shape `(groups,)`; saved with the optimizer.
    """

    def __init__(self, groups: Sequence[Group], iterations: keras.Variable):
        self._groups, self._iterations = list(groups), iterations
        shape, dtype = (len(self._groups),), iterations.dtype
        self.starts = keras.Variable(tf.zeros(shape, dtype), dtype=dtype, trainable=False, name="group_starts")

    def start(self, group: Group) -> None:
        """Makes a group count its steps from now on, in steps that are traced after this call."""
        values = self.starts.numpy()
        values[self._groups.index(group)] = self._iterations.numpy()
        self.starts.assign(values)
        self.count_from_starts()

    def count_from_starts(self) -> None:
        """Gives every group that started late its own counter; to be called after `starts` was read from a file."""
        for index, start in enumerate(self.starts.numpy()):
            # A group that started with the training keeps the shared counter: a step reads one variable less.
            if start:
                set_step_counter(self._groups[index].optimizer, Clock(self, index))

    @property
    def compiled(self) -> tuple[bool, ...]:
        """Which groups count all steps of the training: what a traced step has of the clocks as constants."""
        return tuple(self.is_first(group) for group in self._groups)

    def steps_of(self, groups: Sequence[Group]) -> Any:
        """Returns the step of some groups: a scalar if all have the same, otherwise a vector with the step of each."""
        if all(self.is_first(group) for group in groups):
            return self._iterations
        indices = [self._groups.index(group) for group in groups]
        return self.read(indices[0] if len(set(indices)) == 1 else indices)

    def is_first(self, group: Group) -> bool:
        """Returns whether the group counts all steps of the training."""
        return not isinstance(step_counter(group.optimizer), Clock)

    def read(self, index: int | list[int]) -> tf.Tensor:
        """Returns the step of the group at an index, or of the groups at several."""
        # Read when the step runs, so that a compiled step sees a group that starts again.
        return tf.convert_to_tensor(self._iterations) - tf.gather(tf.convert_to_tensor(self.starts), index)


class Clock:
    """The step counter of a child that started late; it takes the place of `optimizer.iterations`.

    Args:
        clocks: The steps of all groups.
        index: The position of the child's group.
    """

    def __init__(self, clocks: Clocks, index: int):
        self.clocks, self.index = clocks, index

    @property
    def dtype(self) -> Any:
        """The dtype of the counter."""
        return self.clocks.starts.dtype

    # What Keras' rules do with a counter: `ops.cast(self.iterations + 1, dtype)`.
    def __add__(self, number: int) -> tf.Tensor:
        return self.clocks.read(self.index) + number

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> tf.Tensor:
        return tf.convert_to_tensor(self.clocks.read(self.index), dtype, name=name)
