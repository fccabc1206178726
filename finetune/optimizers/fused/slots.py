"""One entry of a stacked variable as a variable of its own, so that many can be kept, read and updated as one."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class SlotView(tf.__internal__.tracking.Trackable):
    """One entry of a stacked variable, which passes for a variable itself.

    Args:
        stacked: The variable that holds the entries, first axis.
        index: Which of them.
        path: What the entry is called.
    """

    def __init__(self, stacked: tf.Variable, index: int, path: str):
        self.stacked, self.index = stacked, index
        self.path, self.name = path, path.split("/")[-1]
        self._shared_name = path  # a checkpoint asks a variable for it
        self.shape, self.dtype, self.trainable = stacked.shape[1:], stacked.dtype.name, False

    @property
    def value(self) -> tf.Tensor:
        """The entry as a tensor. Write with `assign`."""
        return tf.convert_to_tensor(self.stacked)[self.index]

    def numpy(self) -> np.ndarray:
        return self.value.numpy()

    def assign(self, value: Any) -> None:
        self.stacked[self.index].assign(tf.cast(value, self.dtype))

    def assign_add(self, value: Any) -> None:
        self.assign(self.value + value)

    def assign_sub(self, value: Any) -> None:
        self.assign(self.value - value)

    def scatter_add(self, rows: tf.IndexedSlices) -> None:
        self.assign(tf.tensor_scatter_nd_add(self.value, rows.indices[:, None], rows.values))

    def scatter_sub(self, rows: tf.IndexedSlices) -> None:
        self.assign(tf.tensor_scatter_nd_sub(self.value, rows.indices[:, None], rows.values))

    def scatter_update(self, rows: tf.IndexedSlices) -> None:
        self.assign(tf.tensor_scatter_nd_update(self.value, rows.indices[:, None], rows.values))

    # What a `keras.Variable` asks of the value that it holds, and Keras' update rules of a slot.
    def __float__(self) -> float:
        return float(self.numpy())

    def __int__(self) -> int:
        return int(self.numpy())

    def __sub__(self, other: Any) -> tf.Tensor:
        return self.value - other

    def __neg__(self) -> tf.Tensor:
        return -self.value

    def __abs__(self) -> tf.Tensor:
        return abs(self.value)

    def __getitem__(self, index: Any) -> tf.Tensor:
        return self.value[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.numpy(), dtype)

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> tf.Tensor:
        return tf.convert_to_tensor(self.value, dtype, name=name)

    def __repr__(self) -> str:
        return f"<SlotView path={self.path}, shape={tuple(self.shape)}, dtype={self.dtype}>"

    # tf.train.Checkpoint asks for these; the name is that of a variable's value, so files are the same either way.
    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {"VARIABLE_VALUE": self.value}

    def _restore_from_tensors(self, restored_tensors: Mapping[str, tf.Tensor]) -> None:
        self.assign(restored_tensors["VARIABLE_VALUE"])

    # An asynchronous checkpoint writes such a copy.
    def _copy_trackable_to_cpu(self, object_map: Any) -> None:
        if self in object_map:
            object_map[self].assign(self.value)
        else:
            object_map[self] = tf.Variable(self.value)


def move_together(variables: Sequence[keras.Variable]) -> None:
    """Lets scalar variables keep their values in one common variable, from which a step reads them all at once.

    They stay the objects that they are, to be read and written one by one. Those of different types are left alone.
    """
    if len({variable.dtype for variable in variables}) > 1:
        return
    stacked: Any = tf.Variable(tf.stack([tf.convert_to_tensor(v) for v in variables]), trainable=False, name="rates")
    for index, variable in enumerate(variables):
        variable._value = SlotView(stacked, index, variable.path)


def column(variables: Sequence[Any]) -> tf.Tensor | None:
    """Reads variables that were moved together, in any order and number; `None` if they were not."""
    slot_views = [getattr(variable, "_value", None) for variable in variables]
    places = [(slot_view.stacked, slot_view.index) for slot_view in slot_views if isinstance(slot_view, SlotView)]
    if len(places) < len(variables) or len({id(stacked) for stacked, _ in places}) != 1:
        return None
    return tf.gather(tf.convert_to_tensor(places[0][0]), [index for _, index in places])
