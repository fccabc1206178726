"""Reads tables of plain lines with pyarrow, which is many times faster than Python's own reader.

Only files in which both readers see the same values are read here: all others, and all faults, are left to
`finetune.data.table_files`, which knows the line of a fault.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.delimited_text import text_array

# A value in quotes, whole and in a single line. Where other quotes are left, the two readers disagree about them.
_QUOTED = rb'(?:^|(?<=[DELIMITER\n]))"(?:[^"\r\n]|"")*+"(?=[DELIMITER\r\n]|$)'
# What only one of the two takes for white space, for no row, or for the end of a file.
_ODD = (*(bytes([code]) for code in (0x00, 0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x1F)), b"\n\n", b"\n\r\n")
_ODD_UTF8 = (b"\xc2\x85", b"\xc2\xa0", b"\xe1\x9a", b"\xe2\x80", b"\xe2\x81", b"\xe3\x80")


def read_plain_csv(
    path: Path, delimiter: str, names: Sequence[str], missing: Sequence[str], *, quotes: bool = True
) -> dict[str, tuple[np.ndarray, bool, tuple[str, ...]]] | None:
    """Reads a table whose every row is a line.

    Args:
        path: The file, in UTF-8, with the names of the columns in its first line.
        delimiter: What is between two values, a single character.
        names: The names of the columns, all different.
        missing: Values that stand for none.
        quotes: Whether values may be in double quotes; otherwise quotes are characters like others.

    Returns:
        For each column by its name the values as in `finetune.data.table_files.Column`, whether they are numbers, and
        which words stand for none;
        `None` where pyarrow is not installed, or another reader might see other values.
    """
    try:
        import pyarrow as pa
        from pyarrow import csv
    except ImportError:
        return None
    data = path.read_bytes()
    quoted = _QUOTED.replace(b"DELIMITER", re.escape(delimiter.encode()))
    odd = any(each in data for each in (_ODD if data.isascii() else (*_ODD, *_ODD_UTF8)))
    odd = odd or data.startswith((b"\n", b"\r\n")) or data.count(b"\r") != data.count(b"\r\n")
    if odd or (quotes and b'"' in data and b'"' in re.sub(quoted, b"", data)):
        return None
    try:
        table = csv.read_csv(
            pa.py_buffer(data),
            csv.ReadOptions(column_names=[str(place) for place in range(len(names))], skip_rows=1),
            csv.ParseOptions(delimiter=delimiter, quote_char='"' if quotes else False, ignore_empty_lines=False),
            csv.ConvertOptions(
                column_types={str(place): pa.string() for place in range(len(names))},
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:  # a row of another length, bytes that are not UTF-8: read again by whom names the line
        return None
    if table.num_rows != data.rstrip(b"\r\n").count(b"\n"):
        return None  # a quoted value goes over several lines
    with ThreadPoolExecutor() as pool:  # pyarrow works outside of Python's lock
        arrays = pool.map(lambda column: _values(column, pa.array(missing)), table.columns)
        return dict(zip(names, arrays, strict=True))


def _values(column: Any, missing: Any) -> tuple[np.ndarray, bool, tuple[str, ...]]:
    import pyarrow as pa
    from pyarrow import compute

    pc: Any = compute  # its functions are made when it is imported, unseen by type checkers
    texts = pc.utf8_trim_whitespace(column)
    is_missing = pc.is_in(texts, missing)
    words = tuple(sorted(set(pc.unique(pc.filter(texts, is_missing)).to_pylist()) - {""}))
    present = pc.if_else(is_missing, None, texts)
    if not pc.any(pc.match_substring_regex(present, "^[+-]?0[0-9]")).as_py():
        try:
            numbers = pc.cast(present, pa.float64()).to_numpy()
        except pa.ArrowInvalid:
            numbers = None
        if numbers is not None and np.isfinite(numbers[~is_missing.to_numpy()]).all() and not np.isnan(numbers).all():
            return numbers, True, words
    return text_array(pc.if_else(is_missing, "", texts).to_pylist()), False, words
