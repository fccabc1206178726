"""Rows of anything that has a length and gives an item for each index: `dataset[i]`.

So are the map-style datasets of PyTorch, Hugging Face and Grain, the sources of ArrayRecord and `tfds.data_source`, and
lists of examples. Items are read when they are needed, except that small targets are read once beforehand.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.arrays import as_array
from finetune.data.examples import Split
from finetune.data.rows import Rows
from finetune.errors import DataError, PartError, did_you_mean, quote
from finetune.machine_failures import raise_machine_failure

# Read from several threads at once by their own documentation; others may keep a file position between two reads.
_READ_IN_PARALLEL = ("grain", "tensorflow_datasets", "array_record")
_KEPT_ITEMS = 64  # of which several parts are taken, one after another
_AT_ONCE = 1024  # items whose targets are asked for together
_SMALL_TARGET = 1024  # values; larger targets, such as masks, are read when they are needed


@dataclass(frozen=True)
class ItemNames:
    """Which parts of an item are what, where items are dicts; `a/b` is the part `b` of the part `a`.

    Attributes:
        inputs: Name of the part for each input of the network, by its name; the name of an only input is empty.
        target: The part that is the target; or several, of numbers, that make a vector.
        column: The part whose values say which rows belong together, or empty.
    """

    inputs: Mapping[str, str] = field(default_factory=dict)
    target: Sequence[str] = ()
    column: str = ""


@dataclass(frozen=True, eq=False)
class IndexedRows:
    """What was read of a source.

    Attributes:
        split: The rows.
        column: The values by which rows are grouped, where the recipe names them.
        unreadable: Why an item cannot be read, by its index; empty where that is an error.
    """

    split: Split
    column: np.ndarray | None
    unreadable: dict[int, str]


def has_items(value: Any) -> bool:
    """Whether a value has a length and gives an item for each index."""
    kind = type(value)
    return hasattr(kind, "__len__") and hasattr(kind, "__getitem__") and not isinstance(value, str | bytes | Mapping)


def indexed_rows(
    source: Any, names: ItemNames | None = None, *, targets: Any = None, skip: bool = False, name: str = "item"
) -> IndexedRows:
    """Returns the rows of a source of items.

    Args:
        source: Has a length and gives an item for each index: `(inputs, target)`, `(inputs, target, weight)`, or a
            dict.
        names: Which parts of a dict are what.
        targets: A source of the same items that is faster to read, since it does not decode the inputs.
        skip: Whether items that cannot be read are noted in place of an error.
        name: What messages call an item.

    Raises:
        DataError: There are no items, an item has another form, or one cannot be read.
    """
    length = len(source)
    if not length:
        raise DataError(f"A source of rows needs rows. `{type(source).__name__}` has none.")
    items = _Items(source, names or ItemNames(), name)
    reference, first = _first_readable(items, length, skip)
    x, y, weight, _ = first
    read_y = sum(np.size(leaf) for leaf in tf.nest.flatten(y)) <= _SMALL_TARGET and not isinstance(y, tuple | dict)
    labels = _Items(targets, items.names, name, only_targets=True) if targets is not None else items
    values, unreadable = _read_targets(labels, length, read_y, weight is not None, skip)
    if unreadable and not skip:
        raise _not_readable(name, *next(iter(unreadable.items())))
    kept = np.array([index for index in range(length) if index not in unreadable], np.int64)
    split = Split(
        _lazy(items, 0, x, kept, reference),
        as_array(values["y"], "targets") if read_y else _lazy(items, 1, y, kept, reference),
        np.asarray(values["weight"], np.float32) if weight is not None else None,
    )
    column = as_array(values["column"]) if items.names.column else None
    return IndexedRows(split, column if isinstance(column, np.ndarray) else None, unreadable)


def _first_readable(items: "_Items", length: int, skip: bool) -> tuple[int, Any]:
    """Returns the index and the parts of the first item that can be read; all others must have its form."""
    for index in range(length):
        parts = items.attempt(index)
        if not isinstance(parts, str):
            return index, parts
        if not skip or index == length - 1:
            raise _not_readable(items.name, index, parts)
    raise AssertionError("there is at least a row")


def _not_readable(name: str, index: int, why: str) -> DataError:
    return DataError(
        f"Every {name} must be readable. {name} {index} is not: {why}. Replace or remove it, or set "
        "`data.on_error: skip`."
    )


def _read_targets(
    items: "_Items", length: int, read_y: bool, has_weight: bool, skip: bool
) -> tuple[dict[str, list[Any]], dict[int, str]]:
    """Returns targets, weights and values of the column of all readable items, and why others are not."""
    values: dict[str, list[Any]] = {"y": [], "weight": [], "column": []}
    unreadable: dict[int, str] = {}
    if not (read_y or has_weight or items.names.column or skip):
        return values, unreadable
    with ThreadPoolExecutor(None if items.is_parallel else 1) as pool:
        for start in range(0, length, _AT_ONCE):
            indices = range(start, min(start + _AT_ONCE, length))
            for index, parts in zip(indices, pool.map(items.attempt, indices), strict=True):
                if isinstance(parts, str):
                    unreadable[index] = parts
                    continue
                _, y, weight, column = parts
                for part, value, is_read in (
                    ("y", y, read_y),
                    ("weight", weight, has_weight),
                    ("column", column, True),
                ):
                    if is_read:
                        values[part].append(value)
            if unreadable and not skip:
                break
    return values, unreadable


def _lazy(items: "_Items", position: int, structure: Any, kept: np.ndarray, reference: int) -> Any:
    """Returns the rows of inputs or targets, in the structure that they have in the first item."""
    leaves = tf.nest.flatten(structure)
    made = [_leaf_rows(items, (position, number), leaf, kept, reference) for number, leaf in enumerate(leaves)]
    return tf.nest.pack_sequence_as(structure, made)


def _leaf_rows(items: "_Items", place: tuple[int, int], example: Any, kept: np.ndarray, reference: int) -> Rows:
    """Returns the rows of an array; `place` says which of the parts it is in, and which of the arrays of that part."""
    example = _value(example)
    is_text = example.dtype.kind in "USO"
    floats = example.dtype.kind == "f" and keras.config.floatx() != "bfloat16"
    dtype = np.dtype(keras.config.floatx()) if floats else example.dtype
    kind: Any = tf.string if is_text else tf.as_dtype(dtype)

    def read(index: Any) -> np.ndarray:
        index = int(kept[index])
        value = _value(tf.nest.flatten(items(index)[place[0]])[place[1]])
        if value.shape != example.shape:
            raise ValueError(
                f"{items.name} {index} has shape {value.shape}, and {items.name} {reference} has {example.shape}: pad, "
                "cut or resize it"
            )
        if is_text:
            return np.asarray(value, object)
        if not np.can_cast(value.dtype, dtype, "same_kind"):
            raise ValueError(
                f"{items.name} {index} is of type {value.dtype}, and {items.name} {reference} of {example.dtype}"
            )
        return value.astype(dtype, copy=False)

    def take_row(index: Any) -> Any:
        row: Any = tf.numpy_function(read, [index], kind, stateful=False)
        return tf.ensure_shape(row, example.shape)

    def take(indices: Any) -> Any:
        def several(numbers: np.ndarray) -> np.ndarray:
            return np.stack([read(each) for each in numbers]) if len(numbers) else np.empty((0, *example.shape), dtype)

        rows: Any = tf.numpy_function(several, [indices], kind, stateful=False)
        return tf.ensure_shape(rows, (None, *example.shape))

    return Rows(len(kept), take, take_row=take_row)


def _value(leaf: Any) -> np.ndarray:
    if isinstance(leaf, bytes):  # an array of bytes would lose zeros at their end
        return np.array(leaf, object)
    array = as_array(leaf)
    assert isinstance(array, np.ndarray)
    return array


class _Items:
    """Items as inputs, target, weight and column. Threads that need the same item together read it once."""

    def __init__(self, source: Any, names: ItemNames, name: str, *, only_targets: bool = False) -> None:
        self._source, self.names, self.name, self._only_targets = source, names, name, only_targets
        self.is_parallel = type(source).__module__.partition(".")[0] in _READ_IN_PARALLEL
        self._reading = nullcontext() if self.is_parallel else threading.Lock()
        self._guard = threading.Lock()
        self._kept: dict[int, Future[Any]] = {}

    def __call__(self, index: int) -> Any:
        with self._guard:
            future = self._kept.pop(index, None)
            is_first = future is None
            future = future or Future()
            self._kept[index] = future
            while len(self._kept) > _KEPT_ITEMS:
                del self._kept[next(iter(self._kept))]
        if is_first:
            try:
                with self._reading:
                    item = self._source[index]
                future.set_result(self._parts(item, index))
            except BaseException as error:
                with self._guard:
                    self._kept.pop(index, None)
                future.set_exception(error)
        return future.result()

    def attempt(self, index: int) -> Any:
        """Returns the parts of an item, or why it cannot be read."""
        try:
            return self(index)
        except DataError:
            raise
        except Exception as error:  # the source's own code, which may raise anything
            raise_machine_failure(error, f"Reading {self.name} {index}")
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"

    def _parts(self, item: Any, index: int) -> tuple[Any, Any, Any, Any]:
        if isinstance(item, Mapping):
            return self._named(item)
        if self.names.inputs or self.names.target:
            raise DataError(
                f"`inputs` and `target` name parts of items that are dicts. {self.name} {index} is a "
                f"`{type(item).__name__}`. Remove both."
            )
        if isinstance(item, tuple | list) and len(item) in (2, 3):
            return item[0], item[1], item[2] if len(item) == 3 else None, None
        length = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        raise DataError(
            f"An item of a source is `(inputs, target)`, `(inputs, target, weight)` or a dict. {self.name} "
            f"{index} is a `{type(item).__name__}`{length}."
        )

    def _named(self, item: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
        names = self.names
        if not names.inputs or not names.target:
            raise DataError(
                f"Items are dicts of {quote(item, limit=12)}: say which part is what, such as `inputs: "
                f"{next(iter(item), 'image')}` and `target: {list(item)[-1] if item else 'label'}`."
            )
        inputs = {} if self._only_targets else {key: part_of(item, part) for key, part in names.inputs.items()}
        x = inputs.get("", inputs) if list(names.inputs) == [""] else inputs
        targets = [part_of(item, part) for part in names.target]
        y = targets[0] if len(targets) == 1 else np.stack([np.asarray(each) for each in targets], axis=-1)
        return x, y, None, part_of(item, names.column) if names.column else None


def part_of(item: Mapping[str, Any], name: str) -> Any:
    """Returns a part of an item by its name; `a/b` is the part `b` of the part `a`.

    Raises:
        PartError: There is no such part.
    """
    value: Any = item
    if name in item:
        return item[name]
    for key in name.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            known = list(_paths(item))
            raise PartError(
                f"Items have no part `{name}`. They have {quote(known, limit=12)}.{did_you_mean(name, known)}", name
            )
        value = value[key]
    return value


def _paths(item: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, value in item.items():
        path = f"{before}{key}"
        yield path
        if isinstance(value, Mapping):
            yield from _paths(value, f"{path}/")
