"""What is between two values of a table in text, found in its first rows, and how its numbers are written.

Nothing here needs NumPy or TensorFlow, so that `finetune check` sees the columns that a run sees.
"""

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path

from finetune.data.table_bytes import ending_of, open_text

SEPARATORS = (",", ";", "\t", "|", " ")  # in the order in which they are tried
TABBED = (".tsv", ".tab")  # whose values a tab separates, whatever they hold
COMMA_NUMBER = r"[+-]?([0-9]+(,[0-9]*)?|,[0-9]+)([eE][+-]?[0-9]+)?"  # as both readers know a number of this kind
LOOKED_AT = 100  # rows
_MOST = 2**20  # characters of them
_WORDS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar", " ": "a space"}
_WRITTEN = {"\t": "tab", " ": "space"}  # in recipes
_MARKS = {word: mark for mark, word in _WRITTEN.items()}


@dataclass(frozen=True)
class TextForm:
    """How values are written in tables that are text.

    Attributes:
        quotes: Whether values may be in double quotes.
        delimiter: What is between two values: `auto`, `tab`, `space`, or the character.
        found: What was between the values of the training rows, which `auto` tries first; may be empty.
        commas: Columns whose numbers had a decimal comma in the training rows.
    """

    quotes: bool = True
    delimiter: str = "auto"
    found: str = ""
    commas: tuple[str, ...] = ()


def separator_of(path: Path, written: str = "auto", *, quotes: bool = True, first: str = "") -> str:
    """Returns what is between two values of a table.

    Of a `.tsv` that is a tab. Of other files it is the first of `SEPARATORS` that splits the line of names and the rows
    below it into the same number of values, at least 2, or into a value more below (`lacks_first_name`); a comma where
    none does.

    Args:
        path: The file, which may have any content.
        written: `auto`, or what the user says: `tab`, `space`, or the character.
        quotes: Whether values may be in double quotes.
        first: What is tried first; by default a comma.
    """
    if written != "auto":
        return _MARKS.get(written, written)
    if ending_of(path) in TABBED:
        return "\t"
    first = _MARKS.get(first, first) or ","
    try:
        with open_text(path) as file:
            text = file.read(_MOST)
    except (OSError, ValueError):
        return first  # its reader says what is wrong
    marks = list(dict.fromkeys((first, *SEPARATORS)))
    splits = {mark: _splits(text, mark, quotes) for mark in marks}
    return next((mark for how in ("alike", "below") for mark in marks if splits[mark] == how), first)


def _splits(text: str, mark: str, quotes: bool) -> str:
    """Returns `alike` where all lines have the same number of values, `below` where all but the first have one more."""
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    try:
        with any_length():
            rows = list(islice(csv.reader(StringIO(text, ""), delimiter=mark, quoting=quoting), LOOKED_AT))
    except csv.Error:
        return ""
    rows = list(filter(None, rows[:-1] if len(text) == _MOST and len(rows) < LOOKED_AT else rows))
    if rows and len(rows[0]) > 1 and {len(row) for row in rows} == {len(rows[0])}:
        return "alike"
    return "below" if rows and lacks_first_name(rows[0], rows[1:]) else ""


def lacks_first_name(head: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Returns whether a table begins with the names of its rows, which have no name in the first line, as R writes it.

    Every row then has a value more than the first line. The names of rows are all different; below a single name of a
    column they are numbers counted from 1, so that a text with a comma in each row is not taken for such a table.

    Args:
        head: The cells of the first line.
        rows: Rows below it, of which the first 100 are looked at.
    """
    rows = rows[:LOOKED_AT]
    if not head or not rows or {len(row) for row in rows} != {len(head) + 1} or not any(row[-1] for row in rows):
        return False  # rows that end in a separator have nothing behind it
    names = [row[0].strip() for row in rows]
    return len(set(names)) == len(names) and (
        len(head) > 1 or names == [str(number) for number in range(1, len(names) + 1)]
    )


@contextmanager
def any_length() -> Iterator[None]:
    """Lets values be longer than 131,072 characters, which is what Python's reader takes otherwise."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def separator_text(mark: str) -> str:
    """Returns what a separator is called, such as `a comma`."""
    return _WORDS.get(mark, f"`{mark}`")


def written_separator(mark: str) -> str:
    """Returns a separator as a recipe has it: `tab`, `space`, or the character."""
    return _WRITTEN.get(mark, mark)


def decimal_in(separator: str, written: str) -> str:
    """Returns how the numbers of a file may be written: `.`, `,`, or `auto` for either, each column in a single way.

    Args:
        separator: What is between two values.
        written: `auto`, or what the user says.
    """
    if written != "auto":
        return written
    return "auto" if separator in ";\t " else "."


def is_comma_number(text: str) -> bool:
    """Returns whether a text is a number with a decimal comma, or a whole number."""
    return re.fullmatch(COMMA_NUMBER, text) is not None


def with_points(values: Sequence[str]) -> list[str]:
    """Returns cells of numbers, of which those with a decimal comma have a point instead."""
    return [value.replace(",", ".") if is_comma_number(value.strip()) else value for value in values]
