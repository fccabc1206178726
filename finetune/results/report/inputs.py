"""Inputs of single rows, as a report shows them: a small picture, a curve, a text, or the values of a row."""

import base64
import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

_SIDE = 112  # pixels of the longer side of a picture
_MOST_TEXT = 400  # characters
_MOST_VALUES = 12
_CURVE = 120  # points of a curve
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")


def shown_input(values: np.ndarray) -> dict[str, Any]:
    """Returns the input of a row as plain data: `picture` (PNG in base64), `curve`, `text` or `values`.

    Args:
        values: What the network takes for the row: an image `(height, width, 1, 3 or 4)`, a long curve `(steps,)` or
            `(steps, 1)`, a text, or a few numbers.
    """
    array = np.asarray(values)
    if array.dtype.kind in "OSU":
        texts = [each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each) for each in array.flat]
        return {"text": _cut(" | ".join(islice(texts, _MOST_VALUES)))}
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4) and min(array.shape[:2]) > 1:
        return {"picture": _picture(array)}
    flat = array.reshape(-1)
    is_curve = flat.size > 4 * _MOST_VALUES and array.size == max(array.shape) and array.dtype.kind == "f"
    if is_curve:
        return {"curve": _curve(flat.astype(np.float64))}
    shown = [f"{value:.4g}" if array.dtype.kind == "f" else str(value) for value in flat[:_MOST_VALUES].tolist()]
    return {"values": ", ".join(shown) + (f" ... ({flat.size:,} values)" if flat.size > _MOST_VALUES else "")}


def _picture(image: np.ndarray) -> str:
    from PIL import Image

    image = np.nan_to_num(image.astype(np.float64)) if image.dtype != np.uint8 else image
    low, high = float(image.min()), float(image.max())
    # Pixels from 0 to 255 and from 0 to 1 keep their brightness; others are spread over the whole range.
    if low < 0 or high > 255:
        image = (image - low) * (255 / (high - low or 1))
    elif high <= 1:
        image = image * 255
    pixels = np.rint(image).astype(np.uint8)
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    picture = Image.fromarray(pixels)
    scale = _SIDE / max(picture.size)
    # Small images show their pixels, large ones are averaged.
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    picture = picture.resize((max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)), how)
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _curve(values: np.ndarray) -> list[list[float]]:
    """Returns the least and the greatest value of each stretch of a curve."""
    parts = np.array_split(np.nan_to_num(values), min(_CURVE, len(values)))
    return [[float(part.min()), float(part.max())] for part in parts]


def text_at(place: str, table: object = None) -> str:
    """Returns the line of a table that a place such as `reviews.csv:1042` names; empty where there is none.

    Args:
        place: A path or the name of a file, and the number of a line, counted from 1.
        table: Path of a table in whose folder the file is; or the paths of several, of which it is one.
    """
    path, _, line = place.rpartition(":")
    if isinstance(table, list):
        path = next((str(each) for each in table if f"/{each}".endswith(f"/{path}")), path)
    path = str(Path(table).parent / path) if isinstance(table, str) else path
    name = path.removesuffix(".gz")
    if not line.isdigit() or not name.endswith(_TABLES):
        return ""
    try:
        with (gzip.open if name != path else open)(
            path, "rt", encoding="utf-8-sig", errors="replace", newline=""
        ) as file:
            first = next(file, "")
            lines = iter([first] if line == "1" else islice(file, int(line) - 2, int(line) + 30))
            return _cut(" | ".join(f"{key}: {value}" for key, value in _fields(name, first, lines)))
    except (OSError, ValueError, EOFError, csv.Error):  # the file has gone, or is no longer what it was
        return ""


def _fields(name: str, first: str, lines: Iterator[str]) -> Sequence[tuple[str, str]]:
    if name.endswith((".jsonl", ".ndjson")):
        row = json.loads(next(lines, "{}"))
        return [(str(key), str(value)) for key, value in row.items()] if isinstance(row, dict) else []
    delimiter = "\t" if name.endswith(".tsv") else max(",;\t|", key=first.count)
    head = next(csv.reader([first], delimiter=delimiter), [])
    return list(zip(head, next(csv.reader(lines, delimiter=delimiter), []), strict=False))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 4] + " ..."
