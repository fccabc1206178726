"""Where the API takes a sequence of names, a single name is a sequence of one, as in a recipe: never its letters."""

from collections.abc import Iterable
from typing import Any


def one_or_more(value: Any) -> tuple[Any, ...]:
    """Returns a single text, number or path as a tuple of one, a sequence as a tuple, and `None` as an empty one.

    >>> one_or_more("head"), one_or_more(["stem", "head"]), one_or_more(None)
    (('head',), ('stem', 'head'), ())
    """
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (value,)
