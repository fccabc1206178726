"""Names of many files, and descriptions of many rows, without an object of Python for each.

A list of a million paths takes several hundred bytes for each of them, and as much again for every copy that is made of
it. Here their names lie one after another in a single piece of memory.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import tensorflow as tf


@dataclass(frozen=True, eq=False)
class Texts(Sequence[str]):
    """Texts that lie one after another.

    Attributes:
        content: All of them as bytes, as the file system encodes names.
        starts: Where each text begins in them, int64 of shape `(texts,)`.
        lengths: How many bytes it has, int32 of shape `(texts,)`.
    """

    content: bytes
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Texts": ...
    def __getitem__(self, index: int | slice) -> "str | Texts":
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        start = int(self.starts[index])
        return os.fsdecode(self.content[start : start + int(self.lengths[index])])

    def select(self, rows: np.ndarray) -> "Texts":
        """Returns the texts at some indices, which share the memory of all of them."""
        return Texts(self.content, self.starts[rows], self.lengths[rows])


def joined_texts(texts: Iterable[str]) -> Texts:
    """Returns texts so that they lie one after another."""
    content, lengths = bytearray(), []
    for text in texts:
        encoded = os.fsencode(text)
        content += encoded
        lengths.append(len(encoded))
    of_each = np.array(lengths, np.int32)
    return Texts(bytes(content), np.cumsum(of_each, dtype=np.int64) - of_each, of_each)


@dataclass(frozen=True, eq=False)
class FilePaths(Sequence[Path]):
    """Paths of many files.

    Attributes:
        folder: Where their names begin.
        names: Their names, relative to the folder, or absolute.
    """

    folder: Path
    names: Texts

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> "FilePaths": ...
    def __getitem__(self, index: int | slice) -> "Path | FilePaths":
        name = self.names[index]
        return self.folder / name if isinstance(name, str) else FilePaths(self.folder, name)

    def select(self, rows: np.ndarray) -> "FilePaths":
        """Returns the paths at some indices."""
        return FilePaths(self.folder, self.names.select(rows))

    def graph_names(self) -> Callable[[Any], Any]:
        """Returns the function that gives the path at an index, both tensors of shape `()`. It runs in graphs too."""
        with tf.device("CPU:0"):
            content, folder = tf.constant(self.names.content), tf.constant(os.fsencode(f"{self.folder}{os.sep}"))
            starts, lengths = tf.constant(self.names.starts), tf.constant(self.names.lengths)

        def name(index: Any) -> Any:
            text: Any = tf.strings.substr(content, starts[index], tf.cast(lengths[index], tf.int64))
            is_absolute = tf.equal(tf.strings.substr(text, 0, 1), os.sep)
            return tf.where(is_absolute, text, folder + text)

        return name


def file_paths(paths: Sequence[Path]) -> FilePaths:
    """Returns paths so that they lie one after another; those that do already stay as they are."""
    return paths if isinstance(paths, FilePaths) else FilePaths(Path(), joined_texts(map(str, paths)))


@dataclass(frozen=True, eq=False)
class RowPlaces(Sequence[str]):
    """Where each of some rows is, written when it is asked for.

    Attributes:
        describe: Returns where the row of a number is, such as `reviews.csv:1042`.
        rows: The numbers of the rows, int64 of shape `(rows,)`.
    """

    describe: Callable[[int], str]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType] - as for other sequences that compare their items

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "RowPlaces": ...
    def __getitem__(self, index: int | slice) -> "str | RowPlaces":
        if isinstance(index, slice):
            return RowPlaces(self.describe, self.rows[index])
        return self.describe(int(self.rows[index]))
