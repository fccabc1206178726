"""What a file of weights holds, as text: plain data in, lines out."""

from collections.abc import Mapping, Sequence
from typing import Any

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def listing_text(listing: Mapping[str, Any]) -> str:
    """One line a weight with name, shape, type and size, and a last line with the totals.

    Args:
        listing: As `finetune.pretrained.listing.list_weights` returns it.
    """
    head = ("weight", "shape", "dtype", "parameters", "size")
    rows = [
        (row["name"], shape_text(row["shape"]), row["dtype"], f"{row['parameters']:,}", size_text(row["bytes"]))
        for row in listing["weights"]
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [_line(head, widths), "  ".join("-" * width for width in widths), *(_line(row, widths) for row in rows)]
    types = ", ".join(f"{count} {name}" for name, count in listing["dtypes"].items())
    total = f"{listing['parameters']:,} parameters, {size_text(listing['bytes'])} ({types})"
    return "\n".join([f"{listing['path']}: {listing['kind']}", *lines, f"{len(rows)} weights, {total}"])


def shape_text(shape: Sequence[int]) -> str:
    """Writes a shape as `3x3x8`; that of a single number as `scalar`."""
    return "x".join(map(str, shape)) or "scalar"


def size_text(size: float) -> str:
    """Writes a number of bytes with three digits.

    >>> size_text(999), size_text(90_864_192)
    ('999 bytes', '90.9 MB')
    """
    unit = 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if i >= 3 else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()
