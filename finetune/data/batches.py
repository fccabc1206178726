"""Batches out of arrays, as `tf.data` pipelines whose order depends on nothing but the seed and the epoch.

`training_batches` is what models train on; `batches_in_order` and `measurement_batches` give the same rows for what
looks at examples without training on them. All of them gather rows by index, from wherever the rows lie (`Rows`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import DataError

# Element types that DLPack can hand from NumPy to TensorFlow without a copy.
_DLPACK_TYPES = (
    *(tf.bool, tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.int8, tf.int16, tf.int32, tf.int64),
    *(tf.float16, tf.float32, tf.float64),
)


@dataclass(frozen=True, eq=False)
class Rows:
    """An array, in memory or in a file, of which a pipeline takes rows.

    Attributes:
        length: Number of rows.
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
    """Returns the batches of one epoch after another, without end, in a reproducible order.

    The order of an epoch is a function of `seed` and the number of the epoch alone: what begins at `first_epoch` 3
    gives the batches that what began at 0 gives from its fourth epoch on. As in Keras, the last batch of an epoch
    holds the rows that remain, and floating-point arrays come in `keras.config.floatx()`. Use it as
    `model.fit(batches, steps_per_epoch=steps_per_epoch(rows, batch_size), initial_epoch=first_epoch, epochs=...)`.

    Args:
        x: Inputs: an array or `Rows`, or tuples, lists or dicts of them; the first axis counts the rows. An
            `np.memmap` is read batch by batch, never as a whole; other arrays are copied once, outside of the graph.
        y: Targets, likewise.
        batch_size: Rows in a batch, >= 1.
        shuffle: Whether every epoch has an order of its own.
        seed: Seed of the order.
        first_epoch: Number of the epoch to begin with, >= 0.
        sample_weight: Weights of the rows, or `None`.
        passes: How many versions of the inputs `x` holds, one after another, shape `(passes * rows, ...)`; epochs use
            them in turn.

    Raises:
        DataError: The arrays do not fit together, are empty, or `batch_size` or `first_epoch` is out of range.

    Example:
        >>> batches = training_batches(np.arange(5), np.arange(5), batch_size=2, shuffle=False)
        >>> [x.numpy().tolist() for x, y in batches.take(4)]
        [[0, 1], [2, 3], [4], [0, 1]]
    """
    inputs = rows_of(x)
    others = rows_of((y,) if sample_weight is None else (y, sample_weight))
    rows = _count_rows(inputs, others, passes)
    if batch_size < 1 or first_epoch < 0:
        raise DataError(
            f"`batch_size` must be at least 1 and `first_epoch` at least 0. Received {batch_size} and {first_epoch}."
        )

    def order(epoch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        indices: Any = tf.range(rows, dtype=tf.int64)
        if shuffle:
            stateless: Any = tf.random  # TensorFlow's stubs do not know `experimental`
            indices = stateless.experimental.stateless_shuffle(indices, tf.stack([seed % 2**63, epoch]))
        return indices, epoch % passes * rows  # the version of this epoch begins at that row of the inputs

    def batches(indices: Any, offset: Any) -> Any:
        def batch(step: Any) -> tuple[Any, ...]:
            chosen = indices[step * batch_size : (step + 1) * batch_size]
            return _take(inputs, chosen + offset), *_take(others, chosen)

        return tf.data.Dataset.range(steps_per_epoch(rows, batch_size)).map(batch)

    epochs: Any = tf.data.Dataset.range(first_epoch, 2**62).map(order).prefetch(1)  # the next order is made in advance
    return epochs.flat_map(batches).with_options(lean_options()).prefetch(tf.data.AUTOTUNE)


def batches_in_order(x: Any, y: Any, *, batch_size: int, limit: int | None = None) -> tf.data.Dataset:
    """Returns every row once, in order, in batches of which the last may be smaller.

    Args:
        x: Inputs, as for `training_batches`.
        y: Targets, likewise.
        batch_size: Rows in a batch, >= 1.
        limit: At most so many batches; by default all.
    """
    inputs, targets = rows_of(x), rows_of(y)
    count = steps_per_epoch(_count_rows(inputs, targets, 1), batch_size)
    batches = training_batches(inputs, targets, batch_size=batch_size, shuffle=False)
    return batches.take(count if limit is None else min(count, limit))


def measurement_batches(x: Any, y: Any, *, batch_size: int, seed: int) -> tf.data.Dataset:
    """Returns shuffled full batches, for measurements that compare batches with each other.

    Each iteration over it has an order of its own. Rows that do not fill a batch are left out, so that the noise of a
    batch depends on its rows alone; if there are fewer rows than `batch_size`, they make one batch.

    Args:
        x: Inputs, as for `training_batches`.
        y: Targets, likewise.
        batch_size: Rows in a batch, >= 1.
        seed: Seed of the orders.
    """
    inputs, targets = rows_of(x), rows_of(y)
    rows = _count_rows(inputs, targets, 1)
    order = tf.data.Dataset.range(rows).shuffle(rows, seed=seed)
    batches = order.batch(min(batch_size, rows), drop_remainder=True)
    return batches.map(lambda chosen: (_take(inputs, chosen), _take(targets, chosen)))


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Returns how many batches the rows make; the last may be smaller."""
    return -(-rows // batch_size)


def rows_of(arrays: Any) -> Any:
    """Returns the same structure with every array as `Rows`; lists become tuples, which is what `tf.data` takes."""
    return tf.nest.map_structure(as_rows, keras.tree.lists_to_tuples(arrays))


def as_rows(array: Any) -> Rows:
    """Returns an array as `Rows`: a memory-mapped one stays in its file, any other becomes a tensor.

    Raises:
        DataError: The array has no rows.
    """
    if isinstance(array, Rows):
        return array
    if isinstance(array, tf.Tensor):
        return tensor_rows(array)
    array = array if isinstance(array, np.memmap) else np.asarray(array)
    if not array.ndim or not len(array):
        raise DataError(
            f"Training batches need rows. Received an array of shape {array.shape}. Its first axis must count the rows."
        )
    if isinstance(array, np.memmap):
        return _mapped_rows(array)
    with tf.device("CPU:0"):  # the pipeline runs there, whatever the model trains on
        if array.dtype.kind in "USO":
            return tensor_rows(tf.constant(array.astype(object)))
        return tensor_rows(tf.convert_to_tensor(array.astype(_type_for_keras(array.dtype), copy=False)))


def tensor_rows(tensor: tf.Tensor) -> Rows:
    """Returns the rows of a tensor. The pipeline captures the tensor, so it does not become a constant of the graph."""
    return Rows(int(tensor.shape[0] or 0), lambda indices: tf.gather(tensor, indices))


def file_rows(path: Path, dtype: tf.DType, shape: tuple[int, ...]) -> Rows:
    """Returns the rows of a file of bare values, which the operating system reads when they are needed.

    Args:
        path: The file. It must be as long as `shape` says, and writable, though nothing is written.
        dtype: Type of the values.
        shape: Shape of the tensor that the file holds, `(rows, ...)`.
    """
    return shared_rows(np.memmap(path, np.uint8, mode="r+", shape=(prod(shape) * dtype.size,)), dtype, shape)


def shared_rows(memory: np.ndarray, dtype: tf.DType, shape: tuple[int, ...]) -> Rows:
    """Returns the rows of a tensor that uses an array's own memory; a copy would double what is needed.

    Args:
        memory: The bytes of the tensor, of type uint8, at a multiple of 64 bytes. They may be written later.
        dtype: The tensor's type.
        shape: The tensor's shape, `(rows, ...)`.
    """
    # NumPy has no bfloat16 and no float8: such values travel as integers of their size.
    plain = dtype.as_numpy_dtype if dtype in _DLPACK_TYPES else np.dtype(f"int{8 * dtype.size}")
    array = np.asarray(memory).view(plain).reshape(shape)
    tensor: Any = tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tensor_rows(tensor if dtype in _DLPACK_TYPES else tf.bitcast(tensor, dtype))


def _mapped_rows(array: np.memmap) -> Rows:
    dtype, shape = _type_for_keras(array.dtype), array.shape[1:]

    def read(indices: np.ndarray) -> np.ndarray:
        return np.asarray(array[indices], dtype=dtype)

    def take(indices: tf.Tensor) -> tf.Tensor:
        values: Any = tf.numpy_function(read, [indices], tf.as_dtype(dtype), stateful=False)
        return tf.ensure_shape(values, [None, *shape])  # `numpy_function` does not know it

    return Rows(len(array), take)


def _type_for_keras(dtype: np.dtype) -> np.dtype:
    return np.dtype(keras.config.floatx()) if dtype.kind == "f" and keras.config.floatx() != "bfloat16" else dtype


def _take(arrays: Any, indices: Any) -> Any:
    return tf.nest.map_structure(lambda rows: rows.take(indices), arrays)


def _count_rows(inputs: Any, others: Any, passes: int) -> int:
    lengths = {array.length for array in tf.nest.flatten(inputs)}
    rows = {array.length for array in tf.nest.flatten(others)}
    if len(rows) != 1 or lengths != {passes * length for length in rows}:
        times = f", {passes} times as many inputs as targets" if passes > 1 else ""
        raise DataError(
            f"Inputs, targets and weights must have the same number of rows{times}. Received {sorted(lengths)} rows of "
            f"inputs and {sorted(rows)} of targets and weights. Remove the rows that have no counterpart."
        )
    return rows.pop()


def lean_options() -> tf.data.Options:
    """Returns options that keep a small pipeline cheap and in its order."""
    options = tf.data.Options()
    options.deterministic = True
    # Rewriting the graph of so small a pipeline costs more than it saves, and makes constants of captured arrays.
    options.experimental_optimization.apply_default_optimizations = False
    return options
