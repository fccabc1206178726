"""Batches that come one after another, read once and kept: `tf.data.Dataset` and `keras.utils.PyDataset`.

A pipeline gives its rows in its own order, and cannot give row 17 again without all before it. Read once, into memory
or, where that is too much, into a file that is deleted with the process, its rows are as good as those of an array:
every epoch has an order that depends on the seed alone. What a pipeline draws at random, it draws once.
"""

import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.examples import Split
from finetune.data.indexed import ItemNames, part_of
from finetune.errors import DataError, quote

IN_MEMORY = 2**30  # bytes of an array; larger arrays lie in a file
_FREE_DISK = 2**30  # bytes that stay free
_CHECK_ROWS = 10_000


def read_once(elements: Iterable[Any], names: ItemNames, *, batched: bool) -> Split:
    """Reads every row and keeps it.

    Args:
        elements: `(inputs, target)`, `(inputs, target, weight)` or dicts, of a batch or of a row.
        names: Which parts of a dict are what.
        batched: Whether an element is a batch, whose first axis counts its rows.

    Raises:
        DataError: There are no rows, their shapes differ, or they do not end.
    """
    columns: list[_Column] = []
    structure: Any = None
    with ExitStack() as files:
        for number, element in enumerate(elements):
            parts = _parts(element, names)
            leaves = tf.nest.flatten(parts)
            if not columns:
                # Files without names: they are gone with the process, however that ends.
                columns = [_Column(files.enter_context(tempfile.TemporaryFile())) for _ in leaves]
                structure = parts
            if len(leaves) != len(columns):
                raise DataError(
                    f"All elements have the same parts. Element 0 has {len(columns)}, and {number} has {len(leaves)}."
                )
            for column, leaf in zip(columns, leaves, strict=True):
                column.add(leaf, number, batched=batched)
            if number % _CHECK_ROWS == _CHECK_ROWS - 1 and shutil.disk_usage(tempfile.gettempdir()).free < _FREE_DISK:
                raise DataError(
                    f"A dataset is read once, and its rows are kept. This one did not end within {number + 1:,} "
                    "elements, and the disk is full. Remove `repeat()`, or set `TMPDIR` to a larger disk."
                )
        if not columns:
            raise DataError("A dataset needs rows. This one has none.")
        x, y, *weights = tf.nest.pack_sequence_as(structure, [column.array() for column in columns])
    return Split(x, y, weights[0] if weights else None)


def _parts(element: Any, names: ItemNames) -> tuple[Any, ...]:
    if isinstance(element, dict):
        if not names.inputs or not names.target:
            keys = list(element)
            raise DataError(
                f"Elements are dicts of {quote(keys, limit=12)}: say which part is what, such as `inputs: {keys[0]}` "
                f"and `target: {keys[-1]}`."
            )
        inputs = {key: part_of(element, part) for key, part in names.inputs.items()}
        targets = [np.asarray(part_of(element, part)) for part in names.target]
        target = targets[0] if len(targets) == 1 else np.stack(targets, axis=-1)
        return inputs[""] if list(inputs) == [""] else inputs, target
    if names.inputs or names.target:
        raise DataError("`inputs` and `target` name parts of elements that are dicts, and these are not. Remove both.")
    if isinstance(element, tuple | list) and len(element) in (2, 3):
        return tuple(each for each in element if each is not None)
    raise DataError(
        "An element of a dataset is `(inputs, target)`, `(inputs, target, weight)` or a dict. Received: a "
        f"`{type(element).__name__}`{f' of {len(element)}' if isinstance(element, tuple | list) else ''}."
    )


class _Column:
    """Rows of one array, which is not yet known as a whole."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._texts: list[str] = []
        self._rows, self._shape, self._dtype = 0, (), np.dtype(np.uint8)

    def add(self, leaf: Any, number: int, *, batched: bool) -> None:
        """Appends a batch, or a row; `number` is that of the element, for messages."""
        if isinstance(leaf, tf.RaggedTensor | tf.SparseTensor):
            raise DataError(
                f"Rows are arrays of the same shape. The dataset gives a `{type(leaf).__name__}`. Convert it there: "
                "`.to_tensor()`, or `tf.sparse.to_dense`."
            )
        array = np.asarray(leaf)
        array = array if batched else array[np.newaxis]
        if not array.ndim:
            raise DataError(
                "A batch has an axis that counts its rows, and an element holds a single number. Batch the "
                "dataset: `.batch(32)`."
            )
        if not self._rows:
            self._shape, self._dtype = array.shape[1:], array.dtype
        if array.shape[1:] != self._shape:
            raise DataError(
                f"Rows must all have the same shape. Those of element {number} have {array.shape[1:]}, those before "
                f"{self._shape}. Pad, cut or resize them in the dataset."
            )
        self._rows += len(array)
        if array.dtype.kind in "OSU":
            self._texts += [each.decode() if isinstance(each, bytes) else str(each) for each in array.ravel()]
        else:
            self._file.write(array.astype(self._dtype, copy=False).tobytes())

    def array(self) -> np.ndarray:
        """Returns all rows: in memory, or as a memory-mapped array where they are large."""
        shape = (self._rows, *self._shape)
        if self._texts:
            return np.array(self._texts).reshape(shape)
        self._file.flush()
        self._file.seek(0)
        if self._file.seek(0, 2) > IN_MEMORY:
            return np.memmap(self._file, self._dtype, "r", shape=shape)  # stays when the file is closed
        self._file.seek(0)
        return np.fromfile(self._file, self._dtype).reshape(shape)
