"""Training batches out of arrays, as a `tf.data` pipeline whose order depends on nothing but the seed and the epoch."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import DataError

_SHARED = (
    *(tf.bool, tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.int8, tf.int16, tf.int32, tf.int64),
    *(tf.float16, tf.float32, tf.float64),
)  # what NumPy and TensorFlow can both share


@dataclass(frozen=True, eq=False)
class Rows:
    """An array, wherever it lies, of which a pipeline takes rows.

    Attributes:
        length: How many rows it has.
        take: Returns the rows at some indices, in their order; indices have shape `(batch,)`.
    """

    length: int
    take: Callable[[tf.Tensor], tf.Tensor]


def training_batches(
    x: Any,
    y: Any,
    *,
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
    first_epoch: int = 0,
    sample_weight: Any = None,
    passes: int = 1,
) -> tf.data.Dataset:
    """Returns batches of one epoch after another, without an end, in the same order whenever it is asked for.

    The order of an epoch is a function of `seed` and the number of the epoch alone: what begins at `first_epoch` 3
    gives the batches that what began at 0 gives from its fourth epoch on. As under Keras, the last batch of an epoch
    holds what is left, and floating-point arrays come in `keras.config.floatx()`. Use it as
    `model.fit(batches, steps_per_epoch=steps_per_epoch(rows, batch_size), initial_epoch=first_epoch, epochs=...)`.

    Args:
        x: Inputs: an array or `Rows`, or tuples, lists or dicts of them; the first axis counts the rows. An
            `np.memmap` is read batch by batch, never as a whole; other arrays are copied once, outside of the graph.
        y: Targets, likewise.
        batch_size: Rows in a batch, >= 1.
        shuffle: Whether to shuffle the rows anew in every epoch.
        seed: Seed of the order.
        first_epoch: Number of the epoch to begin with, >= 0.
        sample_weight: Weights of the rows, or `None`.
        passes: How many versions of the inputs lie one after the other in `x`; the epochs use them in turn.

    Raises:
        DataError: The arrays do not fit together, are empty, or `batch_size` or `first_epoch` is out of range.

    Example:
        >>> batches = training_batches(np.arange(5), np.arange(5), batch_size=2, shuffle=False)
        >>> [x.numpy().tolist() for x, y in batches.take(4)]
        [[0, 1], [2, 3], [4], [0, 1]]
    """
    inputs = tf.nest.map_structure(as_rows, keras.tree.lists_to_tuples(x))
    others = tf.nest.map_structure(
        as_rows, keras.tree.lists_to_tuples((y,) if sample_weight is None else (y, sample_weight))
    )
    rows = _count_rows(inputs, others, passes)
    if batch_size < 1 or first_epoch < 0:
        raise DataError(
            f"`batch_size` is at least 1 and `first_epoch` at least 0. Received {batch_size} and {first_epoch}."
        )

    def order(epoch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        indices: Any = tf.range(rows, dtype=tf.int64)
        if shuffle:
            indices = _shuffled(indices, tf.stack([seed % 2**63, epoch]))
        return indices, epoch % passes * rows

    def batches(indices: Any, offset: Any) -> Any:
        def batch(step: Any) -> tuple[Any, ...]:
            taken = indices[step * batch_size : (step + 1) * batch_size]
            found = tf.nest.map_structure(lambda one: one.take(taken + offset), inputs)
            return found, *tf.nest.map_structure(lambda one: one.take(taken), others)

        return tf.data.Dataset.range(steps_per_epoch(rows, batch_size)).map(batch)

    epochs: Any = tf.data.Dataset.range(first_epoch, 2**62).map(order).prefetch(1)  # the next order is made beforehand
    return epochs.flat_map(batches).with_options(lean_options()).prefetch(tf.data.AUTOTUNE)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Returns how many batches the rows make; the last may be smaller."""
    return -(-rows // batch_size)


def as_rows(array: Any) -> Rows:
    """Returns an array as `Rows`: a memory-mapped one stays in its file, any other becomes a tensor."""
    if isinstance(array, Rows):
        return array
    if isinstance(array, np.memmap):
        return _mapped_rows(array)
    if isinstance(array, tf.Tensor):
        return tensor_rows(array)
    array = np.asarray(array)
    if not array.ndim or not len(array):
        raise DataError(f"Training batches need rows. Received an array of shape {array.shape}. Give it a first axis.")
    with tf.device("CPU:0"):
        if array.dtype.kind in "USO":
            return tensor_rows(tf.constant(array.astype(object)))
        return tensor_rows(tf.convert_to_tensor(array.astype(_type_for_keras(array.dtype), copy=False)))


def tensor_rows(tensor: tf.Tensor) -> Rows:
    """Returns the rows of a tensor; it is captured by the pipeline, and no constant of its graph."""
    return Rows(int(tensor.shape[0] or 0), lambda indices: tf.gather(tensor, indices))


def file_rows(path: Path, dtype: tf.DType, shape: tuple[int, ...]) -> Rows:
    """Returns the rows of a file of bare values, which the system reads where they are needed.

    The file must be as long as `shape` says, and writable, though nothing is written.
    """
    return shared_rows(np.memmap(path, np.uint8, mode="r+", shape=(prod(shape) * dtype.size,)), dtype, shape)


def shared_rows(memory: np.ndarray, dtype: tf.DType, shape: tuple[int, ...]) -> Rows:
    """Returns the rows of a tensor on an array's own memory: a copy would take it twice.

    Args:
        memory: The bytes of the tensor, of type uint8, at a multiple of 64 bytes. They may be written later on.
        dtype: The tensor's type.
        shape: The tensor's shape.
    """
    plain = dtype.as_numpy_dtype if dtype in _SHARED else np.dtype(f"int{8 * dtype.size}")
    array = np.asarray(memory).view(plain).reshape(shape)
    tensor: Any = tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tensor_rows(tensor if dtype in _SHARED else tf.bitcast(tensor, dtype))


def _mapped_rows(array: np.memmap) -> Rows:
    if not array.ndim or not len(array):
        raise DataError(f"Training batches need rows. Received an array of shape {array.shape}. Give it a first axis.")
    wanted, shape = _type_for_keras(array.dtype), array.shape[1:]

    def read(indices: np.ndarray) -> np.ndarray:
        return np.asarray(array[indices], dtype=wanted)

    def take(indices: tf.Tensor) -> tf.Tensor:
        found: Any = tf.numpy_function(read, [indices], tf.as_dtype(wanted), stateful=False)
        return tf.ensure_shape(found, [None, *shape])

    return Rows(len(array), take)


def _type_for_keras(dtype: np.dtype) -> np.dtype:
    return np.dtype(keras.config.floatx()) if dtype.kind == "f" and keras.config.floatx() != "bfloat16" else dtype


def _count_rows(inputs: Any, others: Any, passes: int) -> int:
    lengths = {one.length for one in tf.nest.flatten(inputs)}
    rows = {one.length for one in tf.nest.flatten(others)}
    if len(rows) != 1 or lengths != {passes * length for length in rows}:
        often = f", {passes} times as many inputs as targets" if passes > 1 else ""
        raise DataError(
            f"Inputs, targets and weights have the same number of rows{often}. Received {sorted(lengths)} rows of "
            f"inputs and {sorted(rows)} of the others. Leave out what has no counterpart."
        )
    return rows.pop()


def _shuffled(indices: Any, seed: Any) -> Any:
    module: Any = tf.random  # its stubs know no `experimental`
    return module.experimental.stateless_shuffle(indices, seed)


def lean_options() -> tf.data.Options:
    """Returns what keeps a small pipeline in its order and cheap."""
    options = tf.data.Options()
    options.deterministic = True
    # Rewriting the graph of so small a pipeline costs more than it saves, and makes constants of captured arrays.
    options.experimental_optimization.apply_default_optimizations = False
    return options
