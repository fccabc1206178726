"""Reads tables of plain lines with pyarrow, many times faster than Python's reader.

Only files in which both readers see the same values are read here: all others, and all faults, are left to
`finetune.data.table_files`, which knows the line of a fault.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.arrow_columns import ArrowColumn, column_texts, typed_texts
from finetune.data.plain_bytes import look_at_bytes
from finetune.data.table_bytes import is_compressed, read_bytes
from finetune.data.table_head import is_finite

_HEAD = 2**18  # bytes that show which columns are numbers

# A value in quotes, whole and in a single line. Where other quotes are left, the two readers disagree about them.
_QUOTED = rb'(?:^|(?<=[DELIMITER\n]))"(?:[^"\r\n]|"")*+"(?=[DELIMITER\r\n]|$)'
# What only one of the two takes for white space, for no row, or for the end of a file.
_ODD = (*(bytes([code]) for code in (0x00, 0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x1F)), b"\n\n", b"\n\r\n")
_ODD_UTF8 = (b"\xc2\x85", b"\xc2\xa0", b"\xe1\x9a", b"\xe2\x80", b"\xe2\x81", b"\xe3\x80")


def read_plain_csv(
    path: Path,
    delimiter: str,
    names: Sequence[str],
    missing: Sequence[str],
    *,
    quotes: bool = True,
    decimal: str = ".",
) -> tuple[int, dict[str, ArrowColumn]] | None:
    """Reads a table whose every row is a line.

    Args:
        path: The file, in UTF-8, with the names of the columns in its first line.
        delimiter: What is between two values, a single character.
        names: The names of the columns, all different.
        missing: Values that stand for none.
        quotes: Whether values may be in double quotes; otherwise quotes are characters like others.
        decimal: `.`, `,`, or `auto` for either, in all cells of a column the same.

    Returns:
        The number of rows, and each column by its name; `None` where pyarrow is not installed, or another reader might
        see other values.
    """
    try:
        import pyarrow as pa
    except ImportError:
        return None
    if not names or not path.stat().st_size:
        return None
    data = np.frombuffer(read_bytes(path), np.uint8) if is_compressed(path) else np.memmap(path, np.uint8, "r")
    head = look_at_bytes(data[:_HEAD], delimiter)
    # A number that stands for a missing value, such as -999, is looked for as text. Between values, a space is not
    # told from those before a number.
    direct = head.is_plain and not head.has_codes and delimiter != " " and decimal != ","
    direct = direct and not any(map(is_finite, missing))
    with ThreadPoolExecutor(1) as pool:  # what begins plainly mostly is plain: both at once take less time
        reading = pool.submit(_read_numbers, data, delimiter, names, missing, decimal) if direct else None
        about = look_at_bytes(data, delimiter)
    if not about.is_plain and not data.all():
        return None  # a NUL, which the other reader names
    plain = about.is_plain and (about.is_ascii or not any(each in bytes(data) for each in _ODD_UTF8))
    numbers = reading.result() if reading and plain and not about.has_codes else None
    if numbers and numbers[0] == about.lines - 1:
        return numbers
    if not plain and not _is_read_alike(bytes(data), delimiter, quotes):
        return None
    table = _read(pa.py_buffer(data), delimiter, dict.fromkeys(range(len(names)), pa.string()), quotes)
    if table is None or table.num_rows != about.lines - 1:
        return None  # a quoted value goes over several lines, or a line is empty
    with ThreadPoolExecutor() as pool:  # pyarrow works outside of Python's lock
        columns = pool.map(lambda column: typed_texts(column, missing, decimal), table.columns)
        return table.num_rows, dict(zip(names, columns, strict=True))


def _is_read_alike(data: bytes, delimiter: str, quotes: bool) -> bool:
    """Whether both readers see the same cells in bytes with quotes, or with other ends of lines."""
    quoted = _QUOTED.replace(b"DELIMITER", re.escape(delimiter.encode()))
    odd = any(each in data for each in (_ODD if data.isascii() else (*_ODD, *_ODD_UTF8)))
    odd = odd or data.startswith((b"\n", b"\r\n")) or data.count(b"\r") != data.count(b"\r\n")
    return not odd and not (quotes and b'"' in data and b'"' in re.sub(quoted, b"", data))


def _read(buffer: Any, delimiter: str, types: dict[int, Any], quotes: bool = True) -> Any:
    """Returns an Arrow table whose columns are named by their places; `None` for a fault, which Python names."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        return csv.read_csv(
            buffer,
            csv.ReadOptions(column_names=[str(place) for place in types], skip_rows=1),
            # Empty lines are left out, and so their number differs.
            csv.ParseOptions(delimiter=delimiter, quote_char='"' if quotes else False),
            csv.ConvertOptions(
                column_types={str(place): kind for place, kind in types.items()},
                null_values=[""],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:  # a row of another length, bytes that are not UTF-8, text among numbers
        return None


def _read_numbers(
    data: np.ndarray, delimiter: str, names: Sequence[str], missing: Sequence[str], decimal: str
) -> tuple[int, dict[str, ArrowColumn]] | None:
    """Reads columns that begin with numbers as numbers at once; `None` where that is not what they are.

    So numbers never become text. What is returned is right where the bytes are plain, no cell begins with a `0` before
    a digit, and the number of rows is that of the lines.
    """
    import pyarrow as pa

    end = len(data) if len(data) <= _HEAD else int(np.flatnonzero(data[:_HEAD] == 10)[-1:].sum())
    head = _read(pa.py_buffer(data[:end]), delimiter, dict.fromkeys(range(len(names)), pa.string()))
    if head is None or not head.num_rows:
        return None
    few = [typed_texts(column, missing) for column in head.columns]
    kinds = {place: pa.float64() if column.is_number else pa.string() for place, column in enumerate(few)}
    # Of a column without a value in the head nothing is known.
    if any(not column.is_number and not any(column.make()[0].tolist()) for column in few):
        return None
    table = _read(pa.py_buffer(data), delimiter, kinds)
    if table is None:
        return None
    columns: dict[str, ArrowColumn] = {}
    for name, column, kind in zip(names, table.columns, few, strict=True):
        if not kind.is_number:  # what is no number may be one with a decimal comma
            is_text = decimal == "."
            texts = ArrowColumn(False, partial(column_texts, column, missing))
            columns[name] = texts if is_text else typed_texts(column, missing, decimal)
            continue
        values = column.to_numpy()
        if np.count_nonzero(np.isfinite(values)) != len(values) - column.null_count:
            return None  # words such as `inf`
        columns[name] = ArrowColumn(True, partial(lambda values: (values, ()), values))
    return table.num_rows, columns
