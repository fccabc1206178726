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

SEPARATORS = (",", ";", "\t", "|")  # in the order in which they are tried
TABBED = (".tsv", ".tab")  # whose values a tab separates, whatever they hold
COMMA_NUMBER = r"[+-]?([0-9]+(,[0-9]*)?|,[0-9]+)([eE][+-]?[0-9]+)?"  # as both readers know a number of this kind
_LOOKED_AT = 100  # rows
_MOST = 2**20  # characters of them
_WORDS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


@dataclass(frozen=True)
class TextForm:
    """How values are written in tables that are text.

    Attributes:
        quotes: Whether values may be in double quotes.
        delimiter: What is between two values: `auto`, `tab`, or the character.
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
    below it into the same number of values, at least 2; and a comma where none does.

    Args:
        path: The file, which may have any content.
        written: `auto`, or what the user says: `tab`, or the character.
        quotes: Whether values may be in double quotes.
        first: What is tried first; by default a comma.
    """
    if written != "auto":
        return "\t" if written == "tab" else written
    if ending_of(path) in TABBED:
        return "\t"
    first = first or ","
    try:
        with open_text(path) as file:
            text = file.read(_MOST)
    except (OSError, ValueError):
        return first  # its reader says what is wrong
    return next((mark for mark in dict.fromkeys((first, *SEPARATORS)) if _splits(text, mark, quotes)), first)


def _splits(text: str, mark: str, quotes: bool) -> bool:
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    try:
        with any_length():
            rows = list(islice(csv.reader(StringIO(text, ""), delimiter=mark, quoting=quoting), _LOOKED_AT))
    except csv.Error:
        return False
    rows = list(filter(None, rows[:-1] if len(text) == _MOST and len(rows) < _LOOKED_AT else rows))
    return bool(rows) and len(rows[0]) > 1 and {len(row) for row in rows} == {len(rows[0])}


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
    """Returns a separator as a recipe has it: `tab`, or the character."""
    return "tab" if mark == "\t" else mark


def decimal_in(separator: str, written: str) -> str:
    """Returns how the numbers of a file may be written: `.`, `,`, or `auto` for either, each column in a single way.

    Args:
        separator: What is between two values.
        written: `auto`, or what the user says.
    """
    if written != "auto":
        return written
    return "auto" if separator in ";\t" else "."


def is_comma_number(text: str) -> bool:
    """Returns whether a text is a number with a decimal comma, or a whole number."""
    return re.fullmatch(COMMA_NUMBER, text) is not None


def with_points(values: Sequence[str]) -> list[str]:
    """Returns cells of numbers, of which those with a decimal comma have a point instead."""
    return [value.replace(",", ".") if is_comma_number(value.strip()) else value for value in values]
