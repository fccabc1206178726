"""Rows of one data set that are rows of another, too, found without a look at each from Python.

All rows of a block are hashed together, and rows with the same hash compared byte by byte. A digest of each of ten
million small rows would take minutes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.rows import Rows

_AT_ONCE = 2**16  # rows


def same_rows(arrays: Sequence[Any], others: Sequence[Any]) -> np.ndarray:
    """Returns the numbers of the rows of `others` that are rows of `arrays`, ascending.

    Args:
        arrays: Arrays or `Rows` that can be read at once; a row is that of all of them together.
        others: As many, in the same order.
    """
    hashes, of_others = _hashes(arrays), _hashes(others)
    candidates = np.flatnonzero(_is_among(hashes, np.unique(of_others)))
    known, first = np.unique(hashes[candidates], return_index=True)
    rows = np.flatnonzero(_is_among(of_others, known))
    partners = candidates[first][np.searchsorted(known, of_others[rows])]
    equal = np.ones(len(rows), bool)
    for block in _blocks(len(rows)):
        for array, other in zip(arrays, others, strict=True):
            left, right = _bytes_of_rows(array, partners[block]), _bytes_of_rows(other, rows[block])
            equal[block] &= left.shape == right.shape and (left == right).all(axis=1)
    return rows[equal]


def _hashes(arrays: Sequence[Any]) -> np.ndarray:
    """Returns a number of 64 bits for each row, shape `(rows,)`; equal rows have equal numbers."""
    hashes = np.zeros(len(arrays[0]), np.uint64)
    draw = np.random.default_rng(0)
    for array in arrays:
        factors: Any = None
        for block in _blocks(len(hashes)):
            values = _bytes_of_rows(array, np.arange(block.start, block.stop))
            words = np.zeros((len(values), -(-values.shape[1] // 8)), np.uint64)
            words.view(np.uint8)[:, : values.shape[1]] = values
            words ^= words >> np.uint64(32)  # a product carries upwards only
            if factors is None:
                factors = draw.integers(2**63, size=words.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
            hashes[block] = hashes[block] * np.uint64(0x9E3779B97F4A7C15) + (words * factors).sum(1, dtype=np.uint64)
    return hashes


def _bytes_of_rows(array: Any, rows: np.ndarray) -> np.ndarray:
    """Returns the bytes of some rows, shape `(rows, bytes)`."""
    if isinstance(array, Rows):
        values = np.asarray(array.take(tf.constant(rows, tf.int64)))
    else:  # a slice where that is possible: choosing single rows of a file takes far longer
        is_range = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all())
        values = array[rows[0] : rows[-1] + 1] if is_range else array[rows]
    return np.ascontiguousarray(values).reshape(len(rows), -1).view(np.uint8)


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _AT_ONCE):
        yield slice(start, min(start + _AT_ONCE, count))


def _is_among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns which values are among some in ascending order."""
    if not len(known):
        return np.zeros(len(values), bool)
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
