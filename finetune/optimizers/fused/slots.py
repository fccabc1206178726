"""One entry of a stacked variable as a variable itself, so that many can be read and updated as one.

Files, users and Keras' update rules deal with the slots and rates of single variables. They get views of this module;
the fused update reads and writes what the views show, in one operation for all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.keras_private import set_stored_value, stored_value, trackable_base

_Trackable: Any = trackable_base()


class SlotView(_Trackable):
    """One entry of a stacked variable, with the interface of a variable.

    It is never trainable. Its methods are those that Keras' optimizers call on a slot, those that a `keras.Variable`
    calls on the value it holds, and those that `tf.train.Checkpoint` calls on a variable.

    Args:
        stacked: The variable that holds the entries, along its first axis.
        index: The position of the entry.
        path: Path of the entry, as of a variable: `optimizer/kernel_momentum`.
    """

    def __init__(self, stacked: tf.Variable, index: int, path: str):
        self.stacked, self.index = stacked, index
        self.path, self.name = path, path.split("/")[-1]
        self._shared_name = path  # `tf.train.Checkpoint` asks a variable for it
        self.shape, self.dtype, self.trainable = stacked.shape[1:], stacked.dtype.name, False

    @property
    def value(self) -> tf.Tensor:
        """The entry as a tensor. Write with `assign`."""
        return tf.convert_to_tensor(self.stacked)[self.index]

    def numpy(self) -> np.ndarray:
        """Returns the entry as an array."""
        return self.value.numpy()

    def assign(self, value: Any) -> None:
        """Sets the entry; the others stay as they are."""
        # A strided-slice assignment: one operation, which touches no other entry.
        self.stacked[self.index].assign(tf.cast(value, self.dtype))

    def assign_add(self, value: Any) -> None:
        """Adds to the entry."""
        self.assign(self.value + value)

    def assign_sub(self, value: Any) -> None:
        """Subtracts from the entry."""
        self.assign(self.value - value)

    # Keras' rules use these three for sparse gradients, those of embeddings.
    def scatter_add(self, rows: tf.IndexedSlices) -> None:
        """Adds to some rows of the entry; a row that occurs twice gets both."""
        self.assign(tf.tensor_scatter_nd_add(self.value, rows.indices[:, None], rows.values))

    def scatter_sub(self, rows: tf.IndexedSlices) -> None:
        """Subtracts from some rows of the entry; from a row that occurs twice, both."""
        self.assign(tf.tensor_scatter_nd_sub(self.value, rows.indices[:, None], rows.values))

    def scatter_update(self, rows: tf.IndexedSlices) -> None:
        """Sets some rows of the entry."""
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

    # `tf.train.Checkpoint` calls these. The key is that of a variable's value, so that a checkpoint is the same whether
    # variables were updated together or alone, and either loads into the other.
    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {"VARIABLE_VALUE": self.value}

    def _restore_from_tensors(self, restored_tensors: Mapping[str, tf.Tensor]) -> None:
        self.assign(restored_tensors["VARIABLE_VALUE"])

    # An asynchronous checkpoint writes such a copy while training goes on.
    def _copy_trackable_to_cpu(self, object_map: Any) -> None:
        if self in object_map:
            object_map[self].assign(self.value)
        else:
            object_map[self] = tf.Variable(self.value)


def share_storage(variables: Sequence[keras.Variable]) -> None:
    """Moves the values of scalar variables into one common variable, from which a step reads all of them at once.

    They remain the same objects, to be read and written one by one. Variables of different dtypes are left as they are.
    """
    if len({variable.dtype for variable in variables}) > 1:
        return
    stacked: Any = tf.Variable(tf.stack([tf.convert_to_tensor(v) for v in variables]), trainable=False, name="rates")
    # The Keras variable remains the object that users, files and the optimizer hold; it only keeps its value elsewhere.
    for index, variable in enumerate(variables):
        set_stored_value(variable, SlotView(stacked, index, variable.path))


def gather_scalars(variables: Sequence[Any]) -> tf.Tensor | None:
    """Reads variables that share their storage, in any order and number, as a tensor with one entry for each.

    Returns:
        `None` if not all of them share one storage: see `share_storage`.
    """
    views = [view for view in map(stored_value, variables) if isinstance(view, SlotView)]
    if len(views) < len(variables) or len({id(view.stacked) for view in views}) != 1:
        return None
    return tf.gather(tf.convert_to_tensor(views[0].stacked), [view.index for view in views])
