"""Rows that are made only once: the first time a row is taken it is decoded and kept, then it is read."""

import mmap
import os
import tempfile
import warnings
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.rows import Rows, shared_rows


@dataclass(frozen=True)
class RowForm:
    """Type and shape of a single row.

    Attributes:
        dtype: Type of its values.
        shape: Its shape.
    """

    dtype: tf.DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of a row."""
        return prod(self.shape) * self.dtype.size


def form_of(rows: Rows) -> RowForm | None:
    """Returns the form of rows that are decoded one by one; `None` where they are not, or differ in shape or are text.

    No row is decoded.
    """
    if rows.take_row is None:
        return None
    traced: Any = tf.function(rows.take_row, autograph=False).get_concrete_function(tf.TensorSpec((), tf.int64))
    value: Any = traced.structured_outputs
    if not isinstance(value, tf.Tensor | tf.TensorSpec) or value.dtype == tf.string or not value.dtype.size:
        return None
    shape: Any = value.shape
    return RowForm(value.dtype, tuple(shape)) if shape.is_fully_defined() else None


def kept_in_memory(rows: Rows, form: RowForm) -> Rows:
    """Returns rows with the same values and fingerprint, of which each is decoded once and then lies in memory.

    Args:
        rows: Rows for which `form_of` returns a form.
        form: That form.
    """
    # The system gives memory to the pages that are written: what was not decoded yet takes none.
    memory = np.frombuffer(mmap.mmap(-1, max(rows.length * form.nbytes, 1)), np.uint8)[: rows.length * form.nbytes]
    tensor_rows = shared_rows(memory, form.dtype, (rows.length, *form.shape))
    of_rows = memory.reshape(rows.length, form.nbytes)

    def keep(index: np.ndarray, value: np.ndarray) -> None:
        of_rows[index] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)

    return _kept(rows, form, keep, lambda index: tensor_rows.take(index[tf.newaxis])[0])


def kept_on_disk(rows: Rows, form: RowForm) -> Rows:
    """Returns rows with the same values and fingerprint, of which each is decoded once and then read from a file.

    The file lies in the folder for temporary files (`TMPDIR`), has no name, and is gone when the process ends, however
    it ends. It is read and written, not mapped, so that its pages do not count as memory of the process.

    Args:
        rows: Rows for which `form_of` returns a form.
        form: That form.
    """
    file: Any = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the rows are used

    def keep(index: np.ndarray, value: np.ndarray) -> None:
        data = np.ascontiguousarray(value).tobytes()
        if os.pwrite(file.fileno(), data, int(index) * form.nbytes) < len(data):
            raise OSError("the disk is full")

    def read(index: np.ndarray) -> np.ndarray:
        data = os.pread(file.fileno(), form.nbytes, int(index) * form.nbytes)
        return np.frombuffer(data, form.dtype.as_numpy_dtype).reshape(form.shape)

    return _kept(rows, form, keep, lambda index: tf.numpy_function(read, [index], form.dtype, stateful=False))


def _kept(rows: Rows, form: RowForm, keep: Any, read: Any) -> Rows:
    decode: Any = rows.take_row
    is_full = False
    # Which rows are kept: one byte each, which the graph reads without Python.
    flags = np.frombuffer(mmap.mmap(-1, rows.length), np.uint8)
    is_kept = shared_rows(flags, tf.uint8, (rows.length,))

    def note(index: np.ndarray, value: np.ndarray) -> np.ndarray:
        nonlocal is_full
        try:
            keep(index, value)
            flags[index] = 1  # last: another thread may look for the row now
        except OSError as error:  # then the row is decoded each time, as without `keep`
            if not is_full:
                warnings.warn(
                    f"Decoded rows cannot be kept on the disk any longer: {error.strerror or error}. Those that are "
                    "not kept are decoded in each epoch.",
                    stacklevel=1,
                )
            is_full = True
        return value

    def take_row(index: Any) -> Any:
        def first_time() -> Any:
            return tf.numpy_function(note, [index, decode(index)], form.dtype, stateful=True)

        value: Any = tf.cond(is_kept.take(index[tf.newaxis])[0] > 0, lambda: read(index), first_time)
        return tf.ensure_shape(value, form.shape)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None,), tf.int64)])
    def take_rows(indices: Any) -> Any:
        return tf.map_fn(take_row, indices, fn_output_signature=tf.TensorSpec(form.shape, form.dtype))

    return Rows(
        rows.length,
        lambda indices: take_rows(tf.cast(indices, tf.int64)),
        rows.fingerprint,
        take_row,
        stored=rows.stored,
    )
