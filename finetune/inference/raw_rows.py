"""Raw rows, some at a time: from files, folders, tables, arrays, standard input, or values in Python.

A chunk has columns of values and the place of each row. What the values become is `prepared_inputs.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from finetune.data.audio import ENDINGS as SOUNDS
from finetune.data.columnar_files import columnar_batches
from finetune.data.delimited_text import delimited_rows
from finetune.data.images import ENDINGS as IMAGES
from finetune.data.json_rows import json_object, json_rows
from finetune.data.npz import read_array, read_arrays
from finetune.data.separators import LOOKED_AT, TextForm, separator_of, separator_text, with_points
from finetune.data.table_bytes import ending_of
from finetune.data.table_head import ARROW, DELIMITED, LINES, head_names, is_number
from finetune.data.table_head import ENDINGS as TABLES
from finetune.errors import DataError, quote
from finetune.files.patterns import is_pattern, matching_files
from finetune.inference.record import check_exist

ROWS = 32  # in a chunk of images, sounds or arrays
TABLE_ROWS = 512  # in a chunk of numbers, categories and texts, which are small
ARRAYS = (".npz", ".npy")
AS_FOUND = TextForm()


@dataclass(frozen=True, eq=False)
class RawRows:
    """Some raw rows.

    Attributes:
        columns: The values of each column by its name; the name is empty where rows have a single value without a name.
        places: Where each row is, such as `reviews.csv:12` or the name of a file.
        folder: Where names of files in the columns begin.
    """

    columns: Mapping[str, Any]
    places: Sequence[str]
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.places)

    def select(self, numbers: Sequence[int] | np.ndarray) -> "RawRows":
        """Returns the rows with some numbers, counted from 0."""
        columns = {name: [values[number] for number in numbers] for name, values in self.columns.items()}
        return RawRows(columns, [self.places[number] for number in numbers], self.folder)

    def row(self, number: int) -> "RawRows":
        """Returns a single row."""
        return self.select([number])


def read_raw_rows(
    inputs: Sequence[str | Path],
    *,
    size: int = ROWS,
    form: TextForm = AS_FOUND,
    lines: TextIO | None = None,
    without_rows: list[str] | None = None,
) -> Iterator[RawRows]:
    """Reads rows from the places that a command line names, in their order.

    Args:
        inputs: Files of images or sounds, folders of them (with all folders inside), tables, NumPy files, patterns of
            these such as `part-*.parquet`; `-` reads `lines`, a text or a JSON object a line.
        size: Rows of a chunk at most, >= 1.
        form: How values are written in tables that are text.
        lines: What `-` reads.
        without_rows: Gets the names of those that hold none, when all has been read.

    Raises:
        DataError: There is no such file, or it is of a kind that is not read.
    """
    check_exist(inputs)
    inputs = [file for each in inputs for file in (matching_files([each], "files") if is_pattern(each) else [each])]
    _check_kinds(inputs)
    without_rows = [] if without_rows is None else without_rows
    pending: list[Path] = []  # files that are rows, which share chunks
    for each in inputs:
        path, is_empty = Path(each), True
        if str(each) != "-" and (path.is_dir() or path.suffix.lower() in (*IMAGES, *SOUNDS)):
            for file in _files_in(path) if path.is_dir() else (path,):
                is_empty = False
                pending.append(file)
                if len(pending) == size:
                    yield _of_files(pending)
                    pending = []
        else:
            if pending:
                yield _of_files(pending)
                pending = []
            for rows in _of_lines(lines or (), size) if str(each) == "-" else _of_file(path, size, form):
                is_empty = False
                yield rows
        without_rows += [str(each)] if is_empty else []
    if pending:
        yield _of_files(pending)


def _check_kinds(inputs: Sequence[str | Path]) -> None:
    for path in (Path(each) for each in inputs if str(each) != "-"):
        known = (*IMAGES, *SOUNDS, *TABLES, *ARRAYS)
        if not path.is_dir() and ending_of(path) not in known:
            raise DataError(
                "Rows are read from images, sounds, tables and NumPy files, by their endings: "
                f"{quote(known, limit=30)}. Received: `{path}`. Rename it, or pass its text on standard input: `-`."
            )


def _files_in(folder: Path) -> Iterator[Path]:
    """Yields the images and sounds in a folder and the folders in it, sorted within each; hidden ones are left out."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in inside if path.suffix.lower() in (*IMAGES, *SOUNDS) and path.is_file()]
    yield from files
    for each in (path for path in inside if path.is_dir()):
        yield from _files_in(each)


def _of_files(paths: Sequence[Path]) -> RawRows:
    return RawRows({"": list(paths)}, [str(path) for path in paths])


def _of_file(path: Path, size: int, form: TextForm) -> Iterator[RawRows]:
    ending = ending_of(path)
    if ending in DELIMITED:
        yield from _of_delimited(path, size, form)
    elif ending in LINES:
        yield from _of_objects(json_rows(path), path.name, size, path.parent)
    elif ending in ARROW:
        yield from _of_columnar(path, size)
    else:
        yield from _of_arrays(path, size)


def _of_delimited(path: Path, size: int, form: TextForm) -> Iterator[RawRows]:
    delimiter = separator_of(path, form.delimiter, quotes=form.quotes, first=form.found)
    rows = delimited_rows(path, delimiter, quotes=form.quotes)
    _, head = next(rows, (1, []))
    first = list(islice(rows, LOOKED_AT))
    names, rows = head_names(head, [row for _, row in first]), chain(first, rows)
    if len(set(names)) != len(names):
        raise DataError(
            "Every column needs a name of its own in the first line. "
            f"`{path}` begins with `{delimiter.join(head)[:80]}`."
        )
    for some in _chunks(rows, size):
        for line, row in some:
            if len(row) != len(names):
                raise DataError(
                    f"Every row must have a value for each of the {len(names)} columns. `{path.name}:{line}` has "
                    f"{len(row)}. Put text with {separator_text(delimiter)} in it in double quotes."
                )
        columns: dict[str, Sequence[str]] = dict(zip(names, zip(*(row for _, row in some), strict=True), strict=True))
        places = [f"{path.name}:{line}" for line, _ in some]
        for name in (name for name in form.commas if name in columns):
            _check_written_alike(name, columns[name], places)
            columns[name] = with_points(columns[name])
        yield RawRows(columns, places, path.parent)


def _check_written_alike(name: str, values: Sequence[str], places: Sequence[str]) -> None:
    """Refuses points beside decimal commas: `1.234` may be more than a thousand."""
    by_mark = {
        mark: next(
            (row for row, value in enumerate(values) if mark in value and is_number(value.replace(",", "."))), None
        )
        for mark in ".,"
    }
    if None not in by_mark.values():
        shown = " and ".join(
            f"`{values[row].strip()}` (`{places[row]}`)" for row in by_mark.values() if row is not None
        )
        raise DataError(
            f"Numbers of a column are written in a single way. `{name}` has {shown}. Correct them, without separators "
            "of thousands."
        )


def _of_objects(
    rows: Iterable[tuple[int, dict[str, Any]]], name: str, size: int, folder: Path | None
) -> Iterator[RawRows]:
    for some in _chunks(rows, size):
        names = dict.fromkeys(key for _, row in some for key in row)
        columns = {key: [row.get(key) for _, row in some] for key in names}
        yield RawRows(columns, [f"{name}:{number}" for number, _ in some], folder)


def _of_lines(lines: Iterable[str], size: int) -> Iterator[RawRows]:
    """Reads standard input: JSON objects where the first line is one, else a text a line."""
    filled = iter(lines)
    first = next((line for line in filled if line.strip()), None)
    if first is None:
        return
    every = _utf8_lines(chain([first], filled))
    if first.lstrip().startswith("{"):
        name = "standard input"
        rows = ((n, json_object(text, f"{name}:{n}")) for n, text in enumerate(every, start=1) if text.strip())
        yield from _of_objects(rows, name, size, Path())
        return
    for some in _chunks(((n, text.rstrip("\r\n")) for n, text in enumerate(every, start=1) if text.strip()), size):
        yield RawRows({"": [text for _, text in some]}, [f"standard input:{line}" for line, _ in some], Path())


def _utf8_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yields lines; Python has kept each byte that is not UTF-8 as a surrogate, which no text holds otherwise."""
    for number, text in enumerate(lines, start=1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            byte = ord(text[error.start]) & 0xFF
            raise DataError(
                f"Text must be UTF-8. `standard input:{number}` has the byte {byte:#04x} after "
                f"`{text[: error.start]}`. Convert it, such as with `iconv -f WINDOWS-1252 -t UTF-8`."
            ) from error
        yield text


def _of_columnar(path: Path, size: int) -> Iterator[RawRows]:
    begin = 1
    for names, columns, _ in columnar_batches(path):
        rows = len(columns[0]) if columns else 0
        for start in range(0, rows, size):
            some = {name: column[start : start + size] for name, column in zip(names, columns, strict=True)}
            count = min(size, rows - start)
            yield RawRows(some, [f"{path.name}:{begin + start + n}" for n in range(count)], path.parent)
        begin += rows


def _of_arrays(path: Path, size: int) -> Iterator[RawRows]:
    arrays = {"": read_array(path)} if path.suffix.lower() == ".npy" else read_arrays(path)
    inputs = {_input_name(name): array for name, array in arrays.items() if _input_name(name) is not None}
    named: Mapping[str, np.ndarray] = {name or "": array for name, array in inputs.items()} or arrays
    lengths = {name: len(array) if array.ndim else 0 for name, array in named.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"Arrays of inputs have the same number of rows. `{path}` has {lengths}.")
    for start in range(0, next(iter(lengths.values())), size):
        some = {name: array[start : start + size] for name, array in named.items()}
        count = len(next(iter(some.values())))
        yield RawRows(some, [f"{path.name}:{start + number}" for number in range(count)])


def _input_name(name: str) -> str | None:
    """Returns the input that an array of a NumPy file is for: `x`, `x_test`, `x_test/token_ids`; `None` for others."""
    part, _, key = name.partition("/")
    return key if part in ("x", "x_test", "x_predict") else None


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while some := list(islice(iterator, size)):
        yield some


def raw_rows_of(values: Any, *, size: int = TABLE_ROWS, read: Callable[..., Iterator[RawRows]]) -> Iterator[RawRows]:
    """Returns the rows of values in Python.

    Args:
        values: A path or paths of files and folders; a text or texts; a dict of columns or a data frame; dicts, one a
            row; an array of rows, or a picture of Pillow.
        size: Rows of a chunk at most, >= 1.
        read: Reads paths, as `read_raw_rows` does.
    """
    if isinstance(values, Path):
        yield from read([values], size=size)
        return
    if hasattr(values, "to_dict") and hasattr(values, "columns"):  # a data frame of pandas or polars
        values = {str(name): list(values[name]) for name in values.columns}
    if isinstance(values, Mapping):
        columns = {str(name): column for name, column in values.items()}
    elif isinstance(values, np.ndarray):
        columns = {"": values}
    elif isinstance(values, Sequence) and not isinstance(values, str | bytes):
        if values and all(isinstance(each, Path) for each in values):
            yield from read(list(values), size=size)
            return
        if values and all(isinstance(each, Mapping) for each in values):
            names = dict.fromkeys(key for row in values for key in row)
            columns = {str(key): [row.get(key) for row in values] for key in names}
        else:
            columns = {"": values}
    else:
        columns = {"": [values]}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"Columns have the same number of rows. Received {lengths}.")
    for start in range(0, max(lengths.values(), default=0), size):
        some = {name: column[start : start + size] for name, column in columns.items()}
        count = len(next(iter(some.values())))
        yield RawRows(some, [f"row {start + number}" for number in range(count)], Path())
