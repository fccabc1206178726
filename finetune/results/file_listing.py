"""What a file of weights holds, as text: plain data in, lines out."""

from collections.abc import Mapping
from typing import Any

from finetune.errors import counted, printable
from finetune.results.formatting import counts_text, shape_text, size_text


def listing_text(listing: Mapping[str, Any]) -> str:
    """Writes a line for each tensor with name, role, shape, type and size, and last lines with the totals.

    Args:
        listing: As `finetune.pretrained.listing.list_weights` returns it.

    Returns:
        The lines, the first with path and kind of the file; no newline at the end.
    """
    header = ("tensor", "role", "shape", "dtype", "parameters", "size")
    rows = [
        (
            *(printable(row["name"]), row["role"], shape_text(row["shape"])),
            *(printable(row["dtype"]), f"{row['parameters']:,}"),
            # Strings have no fixed size, so no number of bytes is shown for them.
            "" if row["dtype"] == "string" else size_text(row["bytes"]),
        )
        for row in [*listing["weights"], *listing["others"]]
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        texts, amounts = cells[:4], cells[4:]  # the last two columns are aligned to the right
        padded = [cell.ljust(width) for cell, width in zip(texts, widths[:4], strict=True)]
        padded += [cell.rjust(width) for cell, width in zip(amounts, widths[4:], strict=True)]
        return "  ".join(padded).rstrip()

    table = [line(header), "  ".join("-" * width for width in widths), *map(line, rows)]
    types = ", ".join(f"{count} {printable(name)}" for name, count in listing["dtypes"].items())
    total = f"{listing['parameters']:,} parameters, {size_text(listing['bytes'])} ({types})"
    lines = [
        f"{printable(listing['path'])}: {listing['kind']}",
        *table,
        f"{counted(len(listing['weights']), 'weight')}, {total}",
    ]
    # Slots, counters and averages are listed, and not counted among the weights: they are no part of the model.
    others = counts_text({role: count for role, count in listing["roles"].items() if role != "weight"})
    lines += [f"no weights: {others}"] if others else []
    if "operations" in listing:
        counts = listing["operations"]
        names = ", ".join(f"{name} x{count}" if count > 1 else name for name, count in counts.items())
        outside = ", ".join(f"{name} ({kind})" for name, kind in listing["outside"].items())
        lines += [f"graph: {sum(counts.values()):,} operations: {names}", f"reach outside of it: {outside or 'none'}"]
    return "\n".join(lines)
