"""Lines of values in text files: CSV and TSV, in UTF-8, and what is said about files that are something else."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.file_beginnings import begins_as
from finetune.data.separators import any_length
from finetune.data.table_bytes import open_bytes, open_text, read_bytes
from finetune.errors import DataError, quote

# What a file begins with that is no text.
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive, such as a file of Excel. Save it as CSV, or unpack it",
    b"\x1f\x8b": "compressed. Unpack it: `gunzip`",
    b"BZh": "compressed. Unpack it: `bunzip2`",
    b"\xfd7zXZ": "compressed. Unpack it: `unxz`",
    b"\xd0\xcf\x11\xe0": "a file of an older Excel. Save it as CSV",
    b"PAR1": "a Parquet file. Name it `.parquet`",
    b"ARROW1": "a Feather file. Name it `.feather`",
}
# Longer ones first: UTF-32 begins as UTF-16 does.
_WIDE = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_LOOKED_AT = 4096  # bytes
_FEW = 100  # different values of a column by which a row is known
_WIDEST = 2**22  # characters of an array of texts of the same width, where that is more than they need
_OF_TEXT = 16  # bytes beside its characters, in an array of texts of any length


def delimited_rows(path: Path, delimiter: str, *, quotes: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Yields the line where a row ends, counted from 1, and its values; empty lines are no rows.

    Args:
        path: The file.
        delimiter: What is between two values, a single character.
        quotes: Whether a value may be in double quotes, and then hold delimiters and line breaks; otherwise they are
            characters like others.

    Raises:
        DataError: It is not text in UTF-8, a value ends in a NUL, or its quotes do not match.
    """
    check_text(path)
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    with any_length(), open_text(path) as file:
        reader = csv.reader(_checked(file, path, delimiter), delimiter=delimiter, strict=True, quoting=quoting)
        begin = 1
        try:
            for row in reader:
                begin = reader.line_num + 1
                if row:
                    yield reader.line_num, row
        except UnicodeDecodeError as error:
            raise not_utf8(path) from error
        except csv.Error as error:
            raise DataError(
                f"`{path}` must be a table of values in lines. Reading `{path.name}:{reader.line_num}`"
                f"{f', in the row that begins in line {begin},' if begin < reader.line_num else ''} failed: {error}."
                " Text with a quote in it is written in quotes, and the quote twice. Where quotes are characters like "
                "others, set `data.quotes: false`."
            ) from error


def check_text(path: Path) -> None:
    """Refuses files that are no text in UTF-8, as far as their beginning shows it.

    Raises:
        DataError: Says what the file is, and how to convert it.
    """
    with open_bytes(path) as file:
        head = file.read(_LOOKED_AT)
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise DataError(f"Tables are text in UTF-8. `{path.name}` is {what}.")
    if head and (kind := begins_as(head)):
        raise DataError(f"Tables are text in UTF-8. `{path.name}` is {kind}.")
    encoding = next((name for mark, name in _WIDE.items() if head.startswith(mark)), "")
    zeros = [head[place::2].count(0) for place in (0, 1)]
    if not encoding and max(zeros) > len(head) / 4:  # ASCII as UTF-16 without a mark has a zero beside each letter
        encoding = "UTF-16LE" if zeros[1] > zeros[0] else "UTF-16BE"
    if encoding:
        raise DataError(
            f"Tables are text in UTF-8. `{path.name}` is in {encoding}. Convert it: `iconv -f {encoding} -t UTF-8 "
            f"{path.name} > utf8{path.suffix}`."
        )


def _checked(lines: Iterable[str], path: Path, delimiter: str) -> Iterator[str]:
    """Yields lines; refuses a value that ends in a NUL, which an array of texts drops."""
    ends = ("\0\n", "\0\r", f"\0{delimiter}", '\0"')
    for number, line in enumerate(lines, start=1):
        if "\0" in line and (line.endswith("\0") or any(end in line for end in ends)):
            raise DataError(
                f"Tables are text, whose values do not end in NUL characters. `{path.name}:{number}` has some after "
                f"`{line[: line.index(chr(0))][-20:]}`. If the file is damaged, write it again; otherwise remove them: "
                f"`tr -d '\\0' < {path.name} > clean{path.suffix}`."
            )
        yield line


def not_utf8(path: Path) -> DataError:
    """Returns the error that names the first bytes of a file that are not UTF-8, with their line."""
    data = read_bytes(path)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        begin = data.rfind(b"\n", 0, error.start) + 1
        line, place = data.count(b"\n", 0, error.start) + 1, error.start - begin + 1
        near = data[max(begin, error.start - 15) : error.start + 15].split(b"\n")[0].decode("cp1252", "replace").strip()
        return DataError(
            f"Tables are text in UTF-8. `{path.name}:{line}` holds the byte 0x{data[error.start]:02x} at place "
            f"{place}, which would be `{near}` in Latin-1. Convert the file: `iconv -f CP1252 -t UTF-8 {path.name} > "
            f"utf8{path.suffix}`."
        )
    return DataError(f"`{path.name}` changed while it was read. Try again.")


def swallowed_rows(
    path: Path, delimiter: str, rows: Sequence[Sequence[str]], lines: Sequence[int], columns: int
) -> tuple[str, ...]:
    """Returns a warning where values over several lines look like rows that an open quote has swallowed.

    A text that somebody wrote has no tabs in it. Its lines may have as many commas as a row, but what is between these
    is not what the columns hold elsewhere, where they hold a few different values.

    Args:
        path: The file, for the message.
        delimiter: What is between two values.
        rows: The rows.
        lines: The line where each row ends.
        columns: Values of a row, >= 1.
    """
    several = [(row, line) for row, line in zip(rows, lines, strict=True) if any("\n" in value for value in row)]
    if not several or columns == 1:
        return ()
    known = [set(column) for column in zip(*rows, strict=True)]
    few = {place: values for place, values in enumerate(known) if len(values) <= min(_FEW, len(rows) / 2)}

    def is_row(line: str) -> bool:
        values = line.rstrip("\r").split(delimiter)
        return len(values) == columns and all(values[place] in of for place, of in few.items())

    places, swallowed = [], 0
    for row, line in several:
        for value in (value for value in row if "\n" in value):
            whole = value.split("\n")[1:-1]  # without what is left of the first and the last line
            if delimiter in value and (delimiter == "\t" or (few and whole and all(map(is_row, whole)))):
                places.append(f"{path.name}:{line - value.count(chr(10))}")
                swallowed += value.count("\n")
    if not places:
        return ()
    return (
        f"quotes in {quote(places)} enclose {swallowed:,} line breaks with lines that look like rows, which are not "
        "read as rows. Where quotes are characters like others, set `data.quotes: false`",
    )


def text_array(texts: Sequence[str]) -> np.ndarray:
    """Returns texts as an array, shape `(rows,)`: of their widest width where that is small, else as `empty_texts`."""
    if not is_wide(max(map(len, texts), default=0), len(texts), sum(map(len, texts))):
        return np.array(texts, dtype=np.str_)
    values = empty_texts(len(texts))
    try:
        values[:] = texts
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON may hold
        return np.array(texts, object)
    return values


def is_wide(widest: int, rows: int, total: int) -> bool:
    """Returns whether an array of the same width for each text, 4 bytes a character, is more than texts should take.

    Args:
        widest: Characters of the longest text.
        rows: Number of texts.
        total: Characters of all of them.
    """
    return widest * rows > _WIDEST and 4 * widest * rows > total + _OF_TEXT * rows


def empty_texts(rows: int) -> np.ndarray:
    """Returns an array for texts of any length: those of NumPy 2, or before it Python's own strings."""
    types: Any = np.dtypes
    return np.empty(rows, types.StringDType() if hasattr(types, "StringDType") else object)
