"""What a file of weights holds, as text: plain data in, lines out."""

from collections.abc import Mapping
from typing import Any

from finetune.results.formatting import shape_text, size_text


def listing_text(listing: Mapping[str, Any]) -> str:
    """Writes a line for each weight with name, shape, type and size, and a last line with the totals.

    Args:
        listing: As `finetune.pretrained.listing.list_weights` returns it.

    Returns:
        The lines, the first with path and kind of the file; no newline at the end.
    """
    header = ("weight", "shape", "dtype", "parameters", "size")
    rows = [
        (row["name"], shape_text(row["shape"]), row["dtype"], f"{row['parameters']:,}", size_text(row["bytes"]))
        for row in listing["weights"]
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        texts, amounts = cells[:3], cells[3:]  # the last two columns are aligned to the right
        padded = [cell.ljust(width) for cell, width in zip(texts, widths[:3], strict=True)]
        padded += [cell.rjust(width) for cell, width in zip(amounts, widths[3:], strict=True)]
        return "  ".join(padded).rstrip()

    table = [line(header), "  ".join("-" * width for width in widths), *map(line, rows)]
    types = ", ".join(f"{count} {name}" for name, count in listing["dtypes"].items())
    total = f"{listing['parameters']:,} parameters, {size_text(listing['bytes'])} ({types})"
    return "\n".join([f"{listing['path']}: {listing['kind']}", *table, f"{len(rows)} weights, {total}"])
