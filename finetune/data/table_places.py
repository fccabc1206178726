"""Where the rows of a table are: in which file, and in which line of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True, eq=False)
class Places(Sequence[tuple[str, int]]):
    """The place of each row, as a pair of the file's name and the line, or row, in it.

    A million pairs would take longer to make than the table takes to read, so they are made when they are asked for.

    Attributes:
        names: Names of the files.
        files: Which of them each row is in, int32 of shape `(rows,)`.
        lines: The line where each row ends, int64 of shape `(rows,)`, counted from 1.
    """

    names: tuple[str, ...]
    files: np.ndarray
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, index: int) -> tuple[str, int]: ...
    @overload
    def __getitem__(self, index: slice) -> "Places": ...
    def __getitem__(self, index: int | slice) -> "tuple[str, int] | Places":
        if isinstance(index, slice):
            return Places(self.names, self.files[index], self.lines[index])
        return self.names[self.files[index]], int(self.lines[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType] - as for other sequences that compare their items

    def text(self, row: int) -> str:
        """Returns the place of a row, such as `reviews.csv:1042`."""
        return "{}:{}".format(*self[row])

    def select(self, rows: np.ndarray) -> "Places":
        """Returns the places of some rows."""
        return Places(self.names, self.files[rows], self.lines[rows])


def places_in(name: str, lines: Sequence[int] | np.ndarray) -> Places:
    """Returns the places of rows in a file, by their lines."""
    return Places((name,), np.zeros(len(lines), np.int32), np.asarray(lines, np.int64))


def join_places(parts: Sequence[Places]) -> Places:
    """Returns the places of the rows of several tables, one after another."""
    starts = np.cumsum([0, *(len(part.names) for part in parts)])
    files = [part.files + np.int32(start) for part, start in zip(parts, starts[:-1], strict=True)]
    names = tuple(name for part in parts for name in part.names)
    return Places(names, np.concatenate(files), np.concatenate([part.lines for part in parts]))
