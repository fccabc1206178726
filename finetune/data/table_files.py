"""Tables in files: CSV, TSV and JSON lines, and Parquet and Feather where pyarrow is installed.

Readers give text, and what is a number is decided here, so that the same table has the same values in every format.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any, overload

import numpy as np

from finetune.data.arrow_columns import ArrowColumn, typed_column
from finetune.data.arrow_csv import read_plain_csv
from finetune.data.columnar_files import read_columnar
from finetune.data.delimited_text import delimited_rows, swallowed_rows
from finetune.data.json_rows import json_rows
from finetune.data.separators import LOOKED_AT, decimal_in, is_comma_number, separator_of, separator_text
from finetune.data.table_bytes import ending_of
from finetune.data.table_column import Column, column_of
from finetune.data.table_head import ARROW, DELIMITED, ENDINGS, LINES, MISSING, head_names, is_finite, unknown_column
from finetune.data.table_places import Places, places_in
from finetune.errors import DataError, PartError, did_you_mean, quote

_LOOKED_AT = 1000  # rows, for what is said about a name that no column has
_KEPT_BYTES = 2**26  # of the columns of a Parquet or Feather file
_TOGETHER = 2**14  # numbers that are looked at together


class Columns(Mapping[str, Column]):
    """Columns by name, each of which is made when it is asked for: a run reads a few of many.

    Args:
        makers: What makes each column, by its name.
        most_kept: Bytes of the columns that are kept once they are made, beside the latest. Others are made again.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Column]], most_kept: float = inf):
        self._makers, self.most_kept = makers, most_kept
        self._kept: dict[str, Column] = {}
        self._latest: Column | None = None

    def __getitem__(self, name: str) -> Column:
        if name in self._kept:
            return self._kept[name]
        if self._latest is None or self._latest.name != name:
            self._latest = None  # before the next takes its memory
            self._latest = self._makers[name]()
            if sum(column.values.nbytes for column in (*self._kept.values(), self._latest)) <= self.most_kept:
                self._kept[name] = self._latest
        return self._latest

    def once(self, name: str) -> Column:
        """Returns a column for a table that is made of this one, and keeps what it needs itself."""
        return self._kept[name] if name in self._kept else self._makers[name]()

    def __contains__(self, name: object) -> bool:  # without making the column
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True, eq=False)
class CheckedColumns(Sequence[Column]):
    """Some columns of a table, each of which is made and checked when it is reached; see `Table.check_numbers`.

    Attributes:
        table: The table.
        names: The columns.
        types: Columns of which it is written what they are, by name.
    """

    table: "Table"
    names: Sequence[str]
    types: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Column: ...
    @overload
    def __getitem__(self, index: slice) -> "CheckedColumns": ...
    def __getitem__(self, index: int | slice) -> "Column | CheckedColumns":
        if isinstance(index, slice):
            return replace(self, names=self.names[index])
        self.table.check_numbers([self.names[index]], self.types)
        return self.table.column(self.names[index])


@dataclass(frozen=True, eq=False)
class Table:
    """A table in memory.

    Attributes:
        path: The file it was read from, or the first of several.
        paths: All files it was read from, if they are several.
        columns: The columns by name, in their order.
        places: Where each row is: the name of its file, and the number of the line where it ends, counted from 1, or of
            the row in files without lines.
        warnings: What is probably not meant so.
        delimiter: What is between two values of a file of text; empty for others.
        decimal: How its numbers may be written: `.`, `,`, or `auto` for either, each column in a single way.
    """

    path: Path
    columns: Columns
    places: Places
    warnings: tuple[str, ...] = ()
    delimiter: str = ""
    decimal: str = "."
    paths: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.places)

    def column(self, name: str) -> Column:
        """Returns a column.

        Raises:
            PartError: There is none of this name.
        """
        self._check_known(name)
        return self.columns[name]

    def checked_columns(self, names: Sequence[str], types: Mapping[str, str]) -> CheckedColumns:
        """Returns columns to be used in turn, each of which is checked as `check_numbers` does.

        Raises:
            PartError: There is none of a name.
        """
        for name in names:
            self._check_known(name)
        return CheckedColumns(self, names, types)

    def _check_known(self, name: str) -> None:
        if name not in self.columns:
            raise PartError(
                unknown_column([name], self.path, {known: self._first(known) for known in self.columns}), name
            )

    def _first(self, name: str) -> list[str]:
        """Returns the first values of a column, which show whether the first line of a text holds names."""
        if not self.delimiter:
            return []
        column = self.columns[name]
        return replace(column, values=column.values[:_LOOKED_AT]).texts().tolist()

    def places_of(self, rows: np.ndarray) -> str:
        """Returns where the first five of some rows are, such as `reviews.csv:1042`."""
        more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
        return ", ".join(f"`{self.places.text(row)}`" for row in rows[:5]) + more

    def check_numbers(self, names: Sequence[str], types: Mapping[str, str]) -> None:
        """Refuses columns of numbers in which a few values are none: nobody means them as categories or classes.

        Args:
            names: The columns to check.
            types: Columns of which it is written what they are, by name; they are taken as that.

        Raises:
            DataError: At least 9 of 10 values of a column are numbers, and others are not; or some have a decimal
                comma and others a point.
        """
        for column in (self.column(name) for name in names if name not in types):
            if column.kind == "number":
                continue
            texts, strays = column.texts().tolist(), self.strays(column)
            if len(strays):
                words = list(dict.fromkeys(column.values[strays].tolist()))
                present = int((~column.missing).sum())
                raise DataError(
                    f"`{column.name}` has numbers in {present - len(strays):,} rows, and other text in "
                    f"{len(strays):,}: {quote(words, limit=3)}, at {self.places_of(strays)}. Correct them; or, where "
                    f"such text stands for a missing number, leave its cell empty or add it to `data.missing`; or set "
                    f"`types: {{{column.name}: category}}`."
                )
            pointed = next((text for text in texts if "." in text), "")
            other = next((text for text in texts if "," in text), "")
            if pointed and all(map(self._is_number, filter(None, texts))) and (other or self.decimal == ","):
                raise DataError(
                    f"Numbers of a column are written in a single way. `{column.name}` has `{pointed}`, and "
                    f"{f'`{other}`' if other else '`data.decimal` is `,`'}. Correct them, without separators of "
                    f"thousands, or set `types: {{{column.name}: category}}`."
                )

    def strays(self, column: Column) -> np.ndarray:
        """Returns the rows of a column that hold no number, where at least 9 of 10 values are numbers; else none."""
        if column.kind == "number":
            return np.array([], int)
        rows = [row for row, text in enumerate(column.texts().tolist()) if text and not self._is_number(text)]
        return np.array(rows if len(rows) <= int((~column.missing).sum()) / 10 else [], int)

    def _is_number(self, text: str) -> bool:
        return is_finite(text) or (self.decimal != "." and is_comma_number(text))

    def select(self, rows: np.ndarray) -> "Table":
        """Returns the table of some rows."""
        if len(rows) == len(self) and (rows == np.arange(len(rows))).all():
            return self

        def some(name: str) -> Column:
            column = self.columns.once(name)
            return replace(column, values=column.values[rows])

        columns = Columns({name: partial(some, name) for name in self.columns}, self.columns.most_kept)
        return replace(self, columns=columns, places=self.places.select(rows))


def read_table(
    path: str | Path,
    missing: Sequence[str] | None = None,
    *,
    quotes: bool = True,
    delimiter: str = "auto",
    decimal: str = "auto",
) -> Table:
    """Reads a table whose first line, where it has lines, holds the names of its columns.

    Args:
        path: A file that ends in `.csv`, `.tsv`, `.txt`, `.jsonl`, `.json`, or one of these with `.gz`, `.bz2` or `.xz`
            behind it, or in `.parquet` or `.feather`.
        missing: What stands for a missing value, beside an empty cell; by default `NA`, `None` and the like.
        quotes: Whether values of CSV and TSV may be in double quotes; otherwise quotes are characters like others.
        delimiter: What is between two values of text: `tab`, `space`, the character, or `auto`, see `separator_of`.
        decimal: `.`, `,`, or `auto`: of files with a semicolon or a tab between values, columns whose numbers all have
            a point or none are read so, and those that all have a comma or none, too.

    Raises:
        DataError: The file cannot be read as such a table; with the line.
    """
    path, missing = Path(path), MISSING if missing is None else missing
    if not path.is_file():
        if path.is_dir():
            raise DataError(
                f"A table is a file. `{path}` is a folder. Name a file in it, or all with the same columns by "
                f"`{path / '*.csv'}`; for folders of images write `data.images`, for sounds `data.audio`."
            )
        others = sorted(other.name for other in path.parent.glob("*") if ending_of(other) in ENDINGS)
        raise DataError(
            f"The table `{path}` does not exist. `{path.parent}` holds {quote(others) or 'no tables'}."
            f"{did_you_mean(path.name, others)}"
        )
    ending = ending_of(path)
    if ending in DELIMITED:
        mark = separator_of(path, delimiter, quotes=quotes)
        decimal = decimal_in(mark, decimal)
        table = _read_plain(path, mark, missing, quotes, decimal)
        return table or _read_delimited(path, mark, missing, quotes, decimal)
    if ending in LINES:
        columns, lines = _read_json(path)
    elif ending in ARROW:
        return _read_arrow(path, missing)
    else:
        raise DataError(f"A table is a file that ends in one of {quote(ENDINGS, limit=12)}. Received: `{path}`.")
    if not columns or not len(lines):
        raise _no_rows(path)
    made = {name: partial(column_of, name, values, missing) for name, values in columns.items()}
    return Table(path, Columns(made), places_in(path.name, lines))


def _no_rows(path: Path) -> DataError:
    return DataError(f"A table needs rows below the names of its columns. `{path}` has none.")


def table_of_columns(columns: Mapping[str, Sequence[Any]], name: str, missing: Sequence[str] | None = None) -> Table:
    """Makes a table of columns in memory, with the types that it would have in a file.

    Args:
        columns: Values of the rows by the name of the column, `None` where they are missing.
        name: What messages call the table; the first row is `<name>:1`.
        missing: What stands for a missing value, beside `None`, NaN and empty text; by default `NA` and the like.

    Raises:
        DataError: There are no rows, or columns differ in length.
    """
    missing = MISSING if missing is None else missing
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) != 1 or not max(lengths.values(), default=0):
        raise DataError(
            f"Columns of a table have the same number of rows, and at least a row. Those of `{name}` have "
            f"{', '.join(f'`{key}` {length}' for key, length in list(lengths.items())[:5]) or 'none'}."
        )
    places = places_in(name, np.arange(1, max(lengths.values()) + 1))
    return Table(
        Path(name), Columns({key: partial(column_of, key, values, missing) for key, values in columns.items()}), places
    )


def _read_plain(path: Path, delimiter: str, missing: Sequence[str], quotes: bool, decimal: str) -> Table | None:
    """Reads a table of plain lines quickly; `None` where that cannot be, or where there is a fault to describe."""
    first = [row for _, row in islice(delimited_rows(path, delimiter, quotes=quotes), LOOKED_AT + 1)] or [[]]
    names = head_names(first[0], first[1:])
    if len(set(names)) != len(names):
        return None
    read = read_plain_csv(path, delimiter, names, ("", *missing), quotes=quotes, decimal=decimal)
    if not read or not read[0]:
        return None
    rows, arrow = read

    columns = Columns({name: partial(_of_arrow, name, column) for name, column in arrow.items()})
    places = places_in(path.name, np.arange(2, rows + 2))
    return Table(path, columns, places, delimiter=delimiter, decimal=decimal)


def _read_arrow(path: Path, missing: Sequence[str]) -> Table:
    """Reads a Parquet or Feather file, whose columns become arrays when they are asked for."""
    file = read_columnar(path)
    if not file or not file.rows:
        raise _no_rows(path)

    def made(name: str) -> Column:
        array = file[name]
        typed = typed_column(array, ("", *missing))
        return _of_arrow(name, typed) if typed else column_of(name, array.to_pylist(), missing)

    columns = Columns({name: partial(made, name) for name in file}, _KEPT_BYTES)
    return Table(path, columns, places_in(path.name, np.arange(1, file.rows + 1)))


def _of_arrow(name: str, column: ArrowColumn) -> Column:
    values, words = column.make()
    if not column.is_number:
        return Column(name, "text", values, missing_words=words)
    return Column(name, "number", values, _are_whole(values), words, column.has_commas)


def _are_whole(values: np.ndarray) -> bool:
    # NaN is unlike itself. Parts stay in the cache of the processor, and the first one mostly shows fractions.
    parts = (values[start : start + _TOGETHER] for start in range(0, len(values), _TOGETHER))
    return all((part == np.rint(part)).all() for part in parts)


def _read_delimited(path: Path, delimiter: str, missing: Sequence[str], quotes: bool, decimal: str) -> Table:
    rows, lines = [], []
    for line, row in delimited_rows(path, delimiter, quotes=quotes):
        rows.append(row)
        lines.append(line)
    if not rows:
        raise DataError(f"A table begins with the names of its columns. `{path}` is empty.")
    names = head_names(rows[0], rows[1 : LOOKED_AT + 1])
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"Every column needs a name of its own in the first line. In `{path}` these occur twice: "
            f"{quote(repeated)}. The first line is `{delimiter.join(names)[:80]}`."
        )
    for line, row in zip(lines[1:], rows[1:], strict=True):
        if len(row) != len(names):
            raise DataError(
                f"Every row must have a value for each of the {len(names)} columns. `{path.name}:{line}` has "
                f"{len(row)}. Put text that contains {separator_text(delimiter)} in double quotes."
            )
    if not rows[1:]:
        raise _no_rows(path)
    warnings = swallowed_rows(path, delimiter, rows[1:], lines[1:], len(names)) if quotes else ()
    columns = {
        name: partial(column_of, name, values, missing, decimal)
        for name, values in zip(names, zip(*rows[1:], strict=True), strict=True)
    }
    places = places_in(path.name, np.array(lines[1:], np.int64))
    return Table(path, Columns(columns), places, warnings, delimiter, decimal)


def _read_json(path: Path) -> tuple[dict[str, Sequence[Any]], np.ndarray]:
    numbered = list(json_rows(path))
    rows = [row for _, row in numbered]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}, np.array([n for n, _ in numbered], np.int64)
