"""A column of a table, and what decides whether it holds numbers or text, in whatever format it was stored."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.delimited_text import text_array
from finetune.data.separators import is_comma_number, with_points
from finetune.errors import DataError

_SEVERAL = list | tuple | set | frozenset | np.ndarray  # data frames hold lists of Parquet as arrays


@dataclass(frozen=True, eq=False)
class Column:
    """A column of a table.

    Attributes:
        name: Its name in the head of the table.
        kind: `number` or `text`.
        values: Shape `(rows,)`: float64 with NaN where a number is missing; or text, empty where it is missing.
        whole: Whether all numbers are there and are whole.
        missing_words: What stands in its cells for a missing value, beside nothing: `NA`, `None` and so on.
        has_commas: Whether its numbers are written with a decimal comma.
    """

    name: str
    kind: str
    values: np.ndarray
    whole: bool = False
    missing_words: tuple[str, ...] = ()
    has_commas: bool = False

    @property
    def missing(self) -> np.ndarray:
        """Which rows have no value, shape `(rows,)`."""
        return np.isnan(self.values) if self.kind == "number" else self.values == ""

    def texts(self) -> np.ndarray:
        """Returns the values as text; whole numbers have no decimal point."""
        if self.kind == "text":
            return self.values
        return np.array(["" if np.isnan(v) else cell_number(v) for v in self.values])


def cell_number(value: float) -> str:
    """Returns a number as text; a whole number has no decimal point."""
    return f"{value:.0f}" if value == np.rint(value) else repr(float(value))


def cell_text(value: Any) -> str:
    """Returns the value of a cell as text: empty where it is missing; a list is joined by `|`, an empty one is `|`."""
    return "" if value is None or (isinstance(value, float) and value != value) else _text(value)


def column_of(name: str, values: Sequence[Any], missing: Sequence[str], decimal: str = ".") -> Column:
    """Decides what the values of a column are: numbers if all that are there are numbers, else text.

    Args:
        name: Its name.
        values: The values of its cells, `None` where they are missing.
        missing: What stands for a missing value, beside nothing.
        decimal: `.`, `,`, or `auto` for either, in all cells the same.

    Raises:
        DataError: They are objects of JSON, lists of lists, or bytes.
    """
    nested = next((value for value in values if _is_nested(value)), None)
    if nested is not None:
        what = "bytes" if isinstance(nested, bytes | bytearray) else "values within values"
        raise DataError(
            f"A cell holds a value, or a list of labels. `{name}` holds {what}, such as `{str(nested)[:60]}`. Write a "
            "column for each value that a network is to see, or leave this column out."
        )
    texts = [cell_text(value) for value in values]  # data frames mark a missing value with NaN
    words = tuple(sorted({text for text in texts if text in missing} - {""}))
    texts = ["" if text in words else text for text in texts]
    present = [text for text in texts if text]
    numbers, has_commas = _numbers_of(present, decimal) if present else (None, False)
    if numbers is None:
        return Column(name, "text", text_array(texts), missing_words=words)
    column = np.full(len(texts), np.nan)
    column[[bool(text) for text in texts]] = numbers
    whole = len(present) == len(texts) and bool((numbers == np.rint(numbers)).all())
    return Column(name, "number", column, whole, words, has_commas)


def _is_nested(value: Any) -> bool:
    several = isinstance(value, _SEVERAL) and any(isinstance(part, dict | _SEVERAL) for part in value)
    return several or isinstance(value, dict | bytes | bytearray)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, _SEVERAL):  # labels; an empty list has none of them, which is no missing value
        parts = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return "|".join(text for part in parts if (text := cell_text(part))) or "|"
    return value.strip() if isinstance(value, str) else str(value)


def _numbers_of(texts: Sequence[str], decimal: str) -> tuple[np.ndarray | None, bool]:
    """Returns the numbers that texts are, if all are, and whether they have decimal commas."""
    if decimal != ",":
        numbers = _numbers(texts)
        if numbers is not None or decimal == ".":
            return numbers, False
    if not all(map(is_comma_number, texts)):
        return None, False
    return _numbers(with_points(texts)), any("," in text for text in texts)


def _numbers(texts: Sequence[str]) -> np.ndarray | None:
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        return None
    # Python also takes `1_000`, `infinity` and the digits of other scripts, which are text in a table, and drops the
    # zeros of a code like `007`.
    is_text = any("_" in text or not text.isascii() or re.match(r"[+-]?0\d", text) for text in texts)
    return numbers if np.isfinite(numbers).all() and not is_text else None
