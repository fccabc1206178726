"""Rows to test or validate on that are among the training rows, too: found cheaply, before training.

Rows in memory are hashed; of images, sounds and records what they are decoded from is, and of files only those whose
size in bytes is that of another. Nothing is decoded. `finetune check --deep` reads every row of any source.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.examples import SPLITS, Examples, leaves
from finetune.data.rows import Rows, StoredRows
from finetune.data.same_rows import same_rows

_HASHED_BYTES = 2**29  # at most: about a second
_AT_ONCE = 4096  # rows
_TRIED = 16  # rows that are read to know how large rows are


def leaked_rows(examples: Examples) -> dict[str, list[int]]:
    """Returns the numbers of the rows of other splits whose inputs are those of a training row, by the split's name.

    It is empty where none are, and where looking would cost too much.
    """
    splits = [name for name in SPLITS if getattr(examples, name)]
    arrays = {name: [array for _, array in leaves("x", getattr(examples, f"x_{name}"))] for name in splits}
    if not all(_is_ready(array) or _stored(array) for of_split in arrays.values() for array in of_split):
        return {}
    if all(_is_ready(array) for of_split in arrays.values() for array in of_split):
        size = sum(len(array) * _nbytes_of_row(array) for of_split in arrays.values() for array in of_split)
        rows = {name: same_rows(arrays["train"], arrays[name]) for name in splits[1:] if size <= _HASHED_BYTES}
        return {name: numbers.tolist() for name, numbers in rows.items() if len(numbers)}
    alike = _of_the_same_sizes(arrays)
    if sum(_bytes_of(array, alike[name]) for name, of_split in arrays.items() for array in of_split) > _HASHED_BYTES:
        return {}
    trained = set(_digests(arrays["train"], alike["train"]))
    leaked = {}
    for name in splits[1:]:
        digests = zip(alike[name].tolist(), _digests(arrays[name], alike[name]), strict=True)
        leaked[name] = [row for row, digest in digests if digest in trained]
    return {name: rows for name, rows in leaked.items() if rows}


def _is_ready(array: Any) -> bool:
    """Whether the rows of an array can be read at once; of text an array holds no more than pointers."""
    return array.is_ready if isinstance(array, Rows) else isinstance(array, np.ndarray) and array.dtype.kind != "O"


def _stored(array: Any) -> StoredRows | None:
    return array.stored if isinstance(array, Rows) else None


def _of_the_same_sizes(arrays: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """Returns the rows of each split that have as many bytes as a row of another; all where sizes are not known."""
    sizes = {
        name: [stored.sizes for array in of_split if (stored := _stored(array)) and stored.sizes is not None]
        for name, of_split in arrays.items()
    }
    if not sizes["train"]:
        return {name: np.arange(len(of_split[0])) for name, of_split in arrays.items()}
    of_rows = {name: list(zip(*(each.tolist() for each in of_split), strict=True)) for name, of_split in sizes.items()}
    shared = {*of_rows["train"]} & {size for name in of_rows if name != "train" for size in of_rows[name]}
    return {name: np.flatnonzero([size in shared for size in rows]) for name, rows in of_rows.items()}


def _bytes_of(array: Any, rows: np.ndarray) -> float:
    """Returns about how many bytes some rows have."""
    stored = _stored(array)
    if not len(rows):
        return 0
    if stored is None or _is_ready(array):
        return len(rows) * _nbytes_of_row(array)
    if stored.sizes is not None:
        return int(stored.sizes[rows].sum())
    tried = rows[:: max(1, len(rows) // _TRIED)][:_TRIED]
    return len(rows) * sum(len(stored.read(row)) for row in tried.tolist()) / len(tried)


def _nbytes_of_row(array: Any) -> int:
    return _bytes_of_rows(array, [0])[0].nbytes


def _bytes_of_rows(array: Any, rows: Sequence[int]) -> list[np.ndarray]:
    if (stored := _stored(array)) and not _is_ready(array):
        return [np.frombuffer(stored.read(row), np.uint8) for row in rows]
    if isinstance(array, Rows):
        return list(np.asarray(array.take(tf.constant(rows, tf.int64))))
    return [np.ascontiguousarray(array[row]) for row in rows]


def _digests(arrays: Sequence[Any], rows: np.ndarray) -> Iterator[bytes]:
    for start in range(0, len(rows), _AT_ONCE):
        numbers = rows[start : start + _AT_ONCE].tolist()
        for parts in zip(*(_bytes_of_rows(array, numbers) for array in arrays), strict=True):
            yield hashlib.blake2b(b"|".join(part.tobytes() for part in parts), digest_size=16).digest()


def warning_of_leaks(leaked: dict[str, list[int]], examples: Examples) -> str:
    """Returns a sentence about rows that `leaked_rows` found; empty where there are none."""
    parts = []
    for name, rows in leaked.items():
        places = examples.places.get(name)
        shown = ", ".join(f"`{places[row] if places else f'row {row}'}`" for row in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        parts.append(f"{len(rows):,} of {len(getattr(examples, name)):,} rows of `{name}` ({shown}{more})")
    if not parts:
        return ""
    has_columns = examples.source.get("kind") in ("table", "tfrecord", "tfds")
    return (
        f"warning: training rows have the same inputs as {' and '.join(parts)}, so these figures are too good. Remove "
        f"the copies{', or split with `by: group`' if has_columns else ''}"
    )
