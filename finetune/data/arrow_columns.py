"""From columns that pyarrow has read to NumPy's arrays: the values of Python's readers, many times faster.

Where the two might differ, a column is left to `finetune.data.table_files`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from finetune.data.delimited_text import empty_texts, is_wide, text_array
from finetune.data.separators import COMMA_NUMBER
from finetune.data.table_head import is_finite

# What `str.strip` removes; Arrow has another list of its own.
_WHITESPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
_WHITESPACE += "\u2028\u2029\u202f\u205f\u3000"
_AT_ONCE = 2**16  # rows of text that are Python's objects at a time
_FEW = 2**10  # different texts in four times as many rows


@dataclass(frozen=True)
class ArrowColumn:
    """A column that pyarrow has read.

    Attributes:
        is_number: Whether all of its values are numbers, or missing.
        make: Returns the values as in `finetune.data.table_column.Column`, and which words stand for missing ones.
        has_commas: Whether its numbers are written with a decimal comma.
    """

    is_number: bool
    make: Callable[[], tuple[np.ndarray, tuple[str, ...]]]
    has_commas: bool = False


def typed_column(column: Any, missing: Sequence[str]) -> ArrowColumn | None:
    """Decides what a column of any type is; `None` where only its values as Python's objects show that.

    Args:
        column: A `pyarrow.ChunkedArray`.
        missing: What stands for a missing value, the empty text among them.
    """
    import pyarrow as pa
    from pyarrow import compute, types

    pc: Any = compute  # its functions are made when it is imported, unseen by type checkers
    kind = column.type
    if types.is_string(kind) or types.is_large_string(kind):
        return typed_texts(pc.fill_null(column, ""), missing)
    if types.is_boolean(kind):
        return typed_texts(pc.fill_null(pc.cast(column, pa.string()), ""), missing)
    # A number that stands for a missing value, such as -999, is looked for as text.
    if not (types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)) or any(map(is_finite, missing)):
        return None
    values = np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(), np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        is_finite_sum = len(values) and np.isfinite(values.sum())  # one pass, which settles it for most columns
    if not is_finite_sum and (np.isinf(values).any() or np.isnan(values).all()):
        return None
    return ArrowColumn(True, lambda: (values, ()))


def typed_texts(column: Any, missing: Sequence[str], decimal: str = ".") -> ArrowColumn:
    """Decides what a column of text is: numbers if all that are there are numbers, else text.

    Args:
        column: A `pyarrow.ChunkedArray` of text without nulls.
        missing: What stands for a missing value, the empty text among them.
        decimal: `.`, `,`, or `auto` for either, in all cells the same.
    """
    from pyarrow import compute

    pc: Any = compute
    texts, is_missing = _cells(column, missing)
    present, has_commas = pc.if_else(is_missing, None, texts), False
    numbers = _numbers(present, is_missing) if decimal != "," else None
    if numbers is None and decimal != "." and pc.all(pc.match_substring_regex(present, f"^({COMMA_NUMBER})$")).as_py():
        has_commas = bool(pc.any(pc.match_substring(present, ",")).as_py())
        numbers = _numbers(pc.replace_substring(present, ",", "."), is_missing)
    if numbers is None:
        return ArrowColumn(False, partial(column_texts, column, missing))
    return ArrowColumn(True, lambda: (numbers, _words(texts, is_missing)), has_commas)


def _numbers(present: Any, is_missing: Any) -> np.ndarray | None:
    """Returns the numbers that texts are, NaN where there is none; `None` where some text is no number."""
    import pyarrow as pa
    from pyarrow import compute

    pc: Any = compute
    if pc.any(pc.match_substring_regex(present, "^[+-]?0[0-9]")).as_py():
        return None
    try:
        numbers = pc.cast(present, pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    is_finite = np.isfinite(numbers[~is_missing.to_numpy()]).all() and not np.isnan(numbers).all()
    return numbers if is_finite else None


def column_texts(column: Any, missing: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the texts of a column, empty where they are missing, and which words stand for missing ones.

    Args:
        column: As for `typed_texts`.
        missing: Likewise.
    """
    from pyarrow import compute

    pc: Any = compute
    texts, is_missing = _cells(column, missing)
    present = pc.if_else(is_missing, "", texts)
    lengths = pc.utf8_length(present)
    widest, total = pc.max(lengths).as_py() or 0, pc.sum(lengths).as_py() or 0
    is_plain = not is_wide(widest, len(present), total)
    if is_plain and len(pc.unique(present.slice(0, 4 * _FEW))) <= _FEW:  # names of categories are made once each
        encoded = present.combine_chunks().dictionary_encode()
        return text_array(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()], _words(texts, is_missing)
    if is_plain:
        return np.array(present.to_pylist(), np.str_), _words(texts, is_missing)
    values = empty_texts(len(present))
    for start in range(0, len(present), _AT_ONCE):
        values[start : start + _AT_ONCE] = present.slice(start, _AT_ONCE).to_numpy()
    return values, _words(texts, is_missing)


def _cells(column: Any, missing: Sequence[str]) -> tuple[Any, Any]:
    """Returns the texts of the cells without white space around them, and which of them stand for none."""
    import pyarrow as pa
    from pyarrow import compute

    pc: Any = compute
    texts = pc.utf8_trim(column, characters=_WHITESPACE)
    return texts, pc.is_in(texts, pa.array(missing, texts.type))


def _words(texts: Any, is_missing: Any) -> tuple[str, ...]:
    """Returns the words that stand for missing values, beside an empty cell."""
    from pyarrow import compute

    pc: Any = compute
    return tuple(sorted(set(pc.unique(pc.filter(texts, is_missing)).to_pylist()) - {""}))
