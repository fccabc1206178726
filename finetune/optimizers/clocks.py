"""A clock for every group: a group that enters late starts like one that is trained from the first step.

Adam and its kin divide by how many gradients their averages have seen. A group that enters after a thousand steps with
empty averages would be taken for one that has seen a thousand, and its first step would be several times too large.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.utils import tracking

from finetune.optimizers.group import Group
from finetune.optimizers.saved import track_all


class Clocks:
    """The steps at which the groups began; 0 for all of them until one is started again.

    Args:
        groups: All groups, input to output.
        iterations: The optimizer's step counter.
    """

    def __init__(self, groups: Sequence[Group], iterations: keras.Variable):
        self._groups, self._iterations = list(groups), iterations
        shape, dtype = (len(self._groups),), iterations.dtype
        self.starts = keras.Variable(tf.zeros(shape, dtype), dtype=dtype, trainable=False, name="group_starts")

    def start(self, group: Group) -> None:
        """Lets a group count from now on, for steps that are traced from here on."""
        index = self._groups.index(group)
        values = self.starts.numpy()
        values[index] = self._iterations.numpy()
        self.starts.assign(values)
        self.heed()

    def heed(self) -> None:
        """Lets every child whose group began late count so, as after `starts` came from a file."""
        for index, start in enumerate(self.starts.numpy()):
            if start:
                with tracking.DotNotTrackScope():
                    self._groups[index].optimizer._iterations = Clock(self, index)

    def steps_of(self, groups: Sequence[Group]) -> Any:
        """The steps of some groups: one number if they agree, else one for each."""
        if all(self.is_first(group) for group in groups):
            return self._iterations
        indices = [self._groups.index(group) for group in groups]
        return self.read(indices[0] if len(set(indices)) == 1 else indices)

    def is_first(self, group: Group) -> bool:
        """Whether the group counts all steps."""
        return not isinstance(group.optimizer._iterations, Clock)

    def read(self, index: int | list[int]) -> tf.Tensor:
        return tf.convert_to_tensor(self._iterations) - tf.gather(tf.convert_to_tensor(self.starts), index)


class Clock:
    """What stands in place of a child's step counter."""

    def __init__(self, clocks: Clocks, index: int):
        self.clocks, self.index = clocks, index

    @property
    def dtype(self) -> Any:
        return self.clocks.starts.dtype

    def __add__(self, number: int) -> tf.Tensor:
        return self.clocks.read(self.index) + number

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> tf.Tensor:
        return tf.convert_to_tensor(self.clocks.read(self.index), dtype, name=name)


def give_fresh_slots(group: Group) -> None:
    """Sets all that a built child keeps, but for its rate, to what a new one would keep."""
    child = group.optimizer
    new = type(child).from_config({**child.get_config(), "learning_rate": 1.0, "gradient_accumulation_steps": None})
    with tracking.DotNotTrackScope():
        new.build(group.variables)
    track_all(new)
    theirs = [v for v in new.variables if v is not new._iterations and v is not new._learning_rate]
    ours = [v for v in child.variables if v is not group.unused_counter and v is not child._learning_rate]
    for mine, fresh in zip(ours, theirs, strict=True):
        mine.assign(fresh.numpy())
