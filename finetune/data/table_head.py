"""The head of a table: the endings of files that are tables, and the names of their columns, without reading the rows.

Nothing here needs NumPy or TensorFlow, so that a recipe with a misspelt column is refused at once.
"""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import isfinite
from pathlib import Path

from finetune.data.separators import any_length, lacks_first_name, separator_of, separator_text, written_separator
from finetune.data.table_bytes import DELIMITED, LINES, ending_of, open_text
from finetune.errors import FinetuneError, did_you_mean, quote
from finetune.files.patterns import is_pattern, matching_files

MISSING = ("NA", "N/A", "NaN", "nan", "null", "NULL", "None")  # what stands for a missing value, beside an empty cell
ARROW = (".parquet", ".pq", ".feather", ".arrow")
ENDINGS = (*DELIMITED, *LINES, *ARROW)
_LOOKED_AT = 1000  # rows


def table_paths(places: Sequence[str | Path]) -> list[Path]:
    """Returns the files of a table. The name of a single one is returned as it is: its reader says that it is missing.

    Args:
        places: Files and patterns.

    Raises:
        DataError: There is no file.
    """
    if len(places) == 1 and not is_pattern(places[0]):
        return [Path(places[0])]
    return matching_files(places, "tables")


def read_head(path: Path, delimiter: str = "auto", *, quotes: bool = True) -> dict[str, list[str]] | None:
    """Returns the columns of a table by name, with the values of the first rows where these are text.

    Args:
        path: The file.
        delimiter: `auto`, `tab`, `space`, or the character between two values.
        quotes: Whether values may be in double quotes.

    Returns:
        `None` where the columns are not known, or the file cannot be read: the reader of the whole table says why.
    """
    ending = ending_of(path)
    try:
        if ending in DELIMITED:
            mark, quoting = (
                separator_of(path, delimiter, quotes=quotes),
                csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
            )
            with any_length(), open_text(path) as file:
                rows = [row for row in islice(csv.reader(file, delimiter=mark, quoting=quoting), _LOOKED_AT) if row]
            names = head_names(rows[0], rows[1:])
            return {
                name: [row[place].strip() for row in rows[1:] if place < len(row)] for place, name in enumerate(names)
            }
        if ending in LINES:
            with open_text(path) as file:
                lines = list(islice((line for line in file if line.strip()), _LOOKED_AT + 1))
            # A line may lack keys: only at the end of the file all names are known.
            names = [name for line in lines for name in json.loads(line)] if len(lines) <= _LOOKED_AT else []
        else:
            names = _names_of_arrow(path) if ending in ARROW else []
        return {name: [] for name in names} or None
    except (OSError, ValueError, TypeError, IndexError, ImportError, RecursionError, csv.Error, FinetuneError):
        return None


def head_names(cells: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the names of columns; one without a name is called as pandas calls it, `Unnamed: 0` by its place.

    Args:
        cells: The cells of the first line.
        rows: Rows below it. Where they show that their first column has no cell in the first line, it has no name.
    """
    names = [cell.strip() for cell in (["", *cells] if lacks_first_name(cells, rows) else cells)]
    for place in (place for place, name in enumerate(names) if not name):
        name, number = f"Unnamed: {place}", 0
        while name in names:  # a table that pandas has read and written again has a column of this name
            number += 1
            name = f"Unnamed: {place}.{number}"
        names[place] = name
    return names


def is_unnamed(name: str) -> bool:
    """Returns whether a column has no name of its own: an index of pandas, or none in the first line."""
    return re.fullmatch(r"Unnamed: \d+(\.\d+)?|__index_level_\d+__", name) is not None


def unnamed_warning(names: Iterable[str]) -> tuple[str, ...]:
    """Returns what to say about columns without a name of their own; nothing where there are none.

    Args:
        names: The names of all columns.
    """
    unnamed = list(filter(is_unnamed, names))
    if not unnamed:
        return ()
    return (
        f"{quote(unnamed)} {'has' if len(unnamed) == 1 else 'have'} no name in the first line, as the index that "
        f"pandas or R writes; `inputs: rest` leaves {'it' if len(unnamed) == 1 else 'them'} out. Write tables without "
        "the index (`to_csv(index=False)`, `row.names = FALSE`), or name the column where it is meant",
    )


def _names_of_arrow(path: Path) -> Sequence[str]:
    from pyarrow import ipc, parquet  # optional; its errors are kinds of `OSError` and `ValueError`

    if path.suffix.lower() in (".parquet", ".pq"):
        return parquet.read_schema(path).names
    with ipc.open_file(path) as file:
        return file.schema.names


def is_misread(columns: Mapping[str, Sequence[str]]) -> bool:
    """Whether a table seems to have no line of names, or another separator, so that no name of a column is right.

    Args:
        columns: As for `unknown_column`.
    """
    return bool(_other_separator(columns) or _values_in(columns))


def _other_separator(columns: Mapping[str, Sequence[str]]) -> str:
    return next((mark for mark in ",;\t|" if len(columns) == 1 and all(mark in name for name in columns)), "")


def _values_in(columns: Mapping[str, Sequence[str]]) -> list[str]:
    # Names of columns are no numbers, and do not occur among the values below them.
    return [name for name in columns if is_number(name) or name in columns[name]]


def unknown_column(unknown: Sequence[str], path: Path, columns: Mapping[str, Sequence[str]]) -> str:
    """Returns what to say about columns that a table does not have.

    Args:
        unknown: The names that were written.
        path: The table.
        columns: Values of the first rows by the name of the column; may be empty where they are not text.
    """
    names = list(columns)
    if other := _other_separator(columns):
        return (
            f"`{path}` seems to have {separator_text(other)} between its values, but not the same number in every row: "
            f'its first line is `{names[0][:80]}`. Set `data.delimiter: "{written_separator(other)}"`, or name it by '
            "what it is."
        )
    values = _values_in(columns)
    hint = (
        f" Its first line seems to hold values ({quote(values, limit=3)}): write a line of names above it."
        if values
        else ""
    )
    known = f"Its columns are {quote(names, limit=12)}.{hint or did_you_mean(unknown[0], names)}"
    return f"`{path}` has no column {quote(unknown)}. {known}"


def is_finite(text: str) -> bool:
    """Returns whether Python reads a text as a finite number."""
    return is_number(text) and isfinite(float(text))


def is_number(text: str) -> bool:
    """Returns whether Python reads a text as a number; `nan` and `inf` are such texts."""
    try:
        float(text)
    except ValueError:
        return False
    return True
