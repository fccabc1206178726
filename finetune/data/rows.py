"""Rows that a pipeline takes by their indices, wherever they lie: in memory, in files, or computed when they are taken.

Everything that gives examples gives `Rows`, so that the order of an epoch is made of indices alone.
"""

import hashlib
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.aligned_arrays import finished_bytes
from finetune.data.file_names import FilePaths
from finetune.errors import DataError

# Element types that DLPack can hand from NumPy to TensorFlow without a copy.
_DLPACK_TYPES = (
    *(tf.bool, tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.int8, tf.int16, tf.int32, tf.int64),
    *(tf.float16, tf.float32, tf.float64),
)


_COPIED = 2**26  # bytes of a memory-mapped array of which rows are copied


@dataclass(frozen=True, eq=False)
class StoredRows:
    """What rows are decoded from, such as files: rows of the same bytes are the same.

    Attributes:
        read: Returns the bytes of the row of a number.
        sizes: How many bytes each row has, int64 of shape `(rows,)`; `None` where that shows only when it is read.
        files: The file of each row, where each has its own.
    """

    read: Callable[[int], bytes]
    sizes: np.ndarray | None = None
    files: FilePaths | None = None


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of an array that need not exist as a whole: it may lie in a file, or be decoded when it is taken.

    Attributes:
        length: Number of rows.
        take: Returns the rows at some indices, in their order; indices have shape `(batch,)`. Runs in graphs too.
        fingerprint: A hash of all that the values depend on, or empty. What is computed from rows without it cannot be
            recognised in another run.
        take_row: Returns the row at an index, shape `()`, where a row is worth a thread of its own, such as an image to
            decode; else `None`.
        batch_width: Returns how many values of the second axis the rows of a batch need, at their indices: what follows
            is padding in all of them, as where texts are shorter than `take` returns them. `None` where rows have no
            padding that may be left out. Rows that share a width share the function.
        is_ready: Whether the values lie in memory, so that taking a row is no more than a copy.
        stored: What the rows are decoded from, where that can be read without decoding it.
    """

    length: int
    take: Callable[[Any], Any]
    fingerprint: str = ""
    take_row: Callable[[Any], Any] | None = None
    batch_width: Callable[[Any], Any] | None = None
    is_ready: bool = False
    stored: StoredRows | None = None

    def __len__(self) -> int:
        return self.length


def rows_of(arrays: Any) -> Any:
    """Returns the same structure with every array as `Rows`; lists become tuples, which is what `tf.data` takes."""
    return tf.nest.map_structure(as_rows, keras.tree.lists_to_tuples(arrays))


def select(arrays: Any, chosen: slice | np.ndarray) -> Any:
    """Returns the chosen rows of every array and of every `Rows` in a structure, in the order in which they are chosen.

    Args:
        arrays: A structure of arrays and `Rows`, or `None`.
        chosen: A slice of the rows, or their indices.
    """

    widths: dict[Any, Any] = {}  # of the chosen rows, by those of all rows

    def of(array: Any) -> Any:
        if isinstance(array, np.memmap) and isinstance(chosen, np.ndarray) and array.nbytes > _COPIED:
            array = as_rows(array)  # rows that are chosen one by one would be copied into memory
        if array is None or not isinstance(array, Rows):
            return None if array is None else array[chosen]
        indices = np.arange(array.length)[chosen]
        digest = hashlib.sha256(indices.tobytes()).hexdigest()
        fingerprint = f"{array.fingerprint} {digest}" if array.fingerprint else ""
        with tf.device("CPU:0"):
            places = tf.constant(indices)
        one, width, stored = array.take_row, array.batch_width, array.stored
        if width is not None and width not in widths:
            widths[width] = lambda numbers: width(tf.gather(places, numbers))
        return Rows(
            len(indices),
            lambda numbers: array.take(tf.gather(places, numbers)),
            fingerprint,
            None if one is None else lambda number: one(places[number]),
            None if width is None else widths[width],
            array.is_ready,
            stored
            and StoredRows(
                lambda row: stored.read(int(indices[row])),
                None if stored.sizes is None else stored.sizes[indices],
                stored.files and stored.files.select(indices),
            ),
        )

    return tf.nest.map_structure(of, arrays)


def as_rows(array: Any) -> Rows:
    """Returns an array as `Rows`: a memory-mapped one stays in its file, any other becomes a tensor.

    That is a copy, since an array may be written later, but for a read-only one of `aligned_array`.

    Raises:
        DataError: The array has no rows, or a type that TensorFlow does not have.
    """
    if isinstance(array, Rows):
        return array
    if isinstance(array, tf.Tensor):
        return tensor_rows(array)
    array = array if isinstance(array, np.memmap) else np.asarray(array)
    if array.dtype.kind in "mMV":
        raise DataError(
            f"Rows are numbers, truth values or text. Received an array of type `{array.dtype}`. Convert dates and "
            "times to numbers first, such as days since a date: `dates.astype('datetime64[D]').astype('float32')`."
        )
    if not array.ndim or not len(array):
        raise DataError(
            f"Training batches need rows. Received an array of shape {array.shape}. Its first axis must count the rows."
        )
    if isinstance(array, np.memmap):
        return _mapped_rows(array)
    memory = finished_bytes(array)
    if memory is not None and array.dtype == _type_for_keras(array.dtype):
        return shared_rows(memory, tf.as_dtype(array.dtype), array.shape)
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

    fingerprint = ""
    if array.filename and isinstance(array.base, mmap.mmap):  # of a slice it is not known where it begins
        stat = Path(array.filename).stat()
        place = (
            f"{array.filename} {stat.st_size} {stat.st_mtime_ns} {array.offset} {array.shape} {array.strides} {dtype}"
        )
        fingerprint = hashlib.sha256(place.encode()).hexdigest()
    return Rows(len(array), take, fingerprint)


def _type_for_keras(dtype: np.dtype) -> np.dtype:
    return np.dtype(keras.config.floatx()) if dtype.kind == "f" and keras.config.floatx() != "bfloat16" else dtype


def take(arrays: Any, indices: Any) -> Any:
    """Returns the rows at some indices of every `Rows` in a structure."""
    return tf.nest.map_structure(lambda rows: rows.take(indices), arrays)


def take_batch(arrays: Any, indices: Any) -> Any:
    """Returns the rows of a batch of every `Rows` in a structure, without the padding that all of them have."""

    def of(rows: Rows) -> Any:
        values = rows.take(indices)
        return values if rows.batch_width is None else values[:, : rows.batch_width(indices)]

    return tf.nest.map_structure(of, arrays)


def count_rows(inputs: Any, others: Any, passes: int = 1) -> int:
    """Returns how many rows there are.

    Args:
        inputs: A structure of `Rows`, each of `passes` times as many rows.
        others: A structure of `Rows` that belong to the inputs: targets, and weights of the rows.
        passes: How many versions of the inputs there are, one after another.

    Raises:
        DataError: The numbers of rows differ.
    """
    lengths = {array.length for array in tf.nest.flatten(inputs)}
    rows = {array.length for array in tf.nest.flatten(others)}
    if len(rows) != 1 or lengths != {passes * length for length in rows}:
        times = f", {passes} times as many inputs as targets" if passes > 1 else ""
        raise DataError(
            f"Inputs, targets and weights must have the same number of rows{times}. Received {sorted(lengths)} rows of "
            f"inputs and {sorted(rows)} of targets and weights. Remove the rows that have no counterpart."
        )
    return rows.pop()
