"""Whether the bytes of a table are so plain that any reader of CSV sees the same cells and numbers in them.

Each question is asked of all bytes at once, many times faster than a reader goes through them.
"""

from dataclasses import dataclass

import numpy as np

_TOGETHER = 2**17  # bytes, which stay in the cache of the processor from one question to the next
_BEFORE = 3  # bytes before a part that tell what its first digits belong to
_TAB, _NEWLINE, _SPACE, _QUOTE, _PLUS, _MINUS, _POINT, _ZERO = b'\t\n "+-.0'


@dataclass(frozen=True)
class PlainBytes:
    """What is known of the bytes of a table.

    Attributes:
        lines: Number of lines, empty lines at the end not counted.
        is_plain: Whether there are neither quotes nor control characters, and lines end in a newline alone.
        is_ascii: Whether all characters are ASCII.
        has_codes: Whether a cell begins as no number is written, like the zip code `01234`; or might.
    """

    lines: int
    is_plain: bool
    is_ascii: bool
    has_codes: bool


def look_at_bytes(data: np.ndarray, delimiter: str) -> PlainBytes:
    """Looks at all bytes of a table.

    Args:
        data: The bytes, uint8 of shape `(bytes,)`.
        delimiter: What is between two cells: a character that no number holds.
    """
    # One after another: threads share the caches and the lock of Python, and took twice the processor's time.
    data, between = np.asarray(data), ord(delimiter)
    newlines, is_plain, is_ascii, has_codes = 0, True, True, False
    for start in range(0, len(data), _TOGETHER):
        part = data[start : start + _TOGETHER]
        ends = int(np.count_nonzero(part == _NEWLINE))
        allowed = ends + (int(np.count_nonzero(part == _TAB)) if between == _TAB else 0)
        newlines += ends
        is_plain = is_plain and int(np.count_nonzero(part < _SPACE)) == allowed and not (part == _QUOTE).any()
        is_ascii = is_ascii and int(part.max()) < 128
        has_codes = has_codes or _has_codes(data[max(start - _BEFORE, 0) : start + _TOGETHER + 1], between)
    end = len(data)
    while end and data[end - 1] == _NEWLINE:
        end -= 1
    return PlainBytes(newlines - (len(data) - end) + (end > 0), is_plain, is_ascii, has_codes)


def _has_codes(part: np.ndarray, between: int) -> bool:
    """Whether there is a `0` before a digit at the beginning of a cell, perhaps behind a sign or spaces."""
    if len(part) < 3:
        return False
    codes = part[1:-1] == _ZERO
    codes &= (part[2:] - _ZERO) < 10  # uint8: what is below `0` is far above 10
    begins = part[:-2] < _POINT  # in a number the byte before is a digit or a point
    codes &= begins | (part[:-2] == between) if between > _POINT else begins
    places = np.flatnonzero(codes) + 1
    before = part[places - 1]
    signed = (before == _PLUS) | (before == _MINUS)
    before = np.where(signed, part[np.maximum(places - 2, 0)], before)
    is_space = before == _SPACE
    before = np.where(is_space, part[np.maximum(places - 2 - signed, 0)], before)
    return bool(((before == between) | (before == _NEWLINE) | (is_space & (before == _SPACE))).any())
