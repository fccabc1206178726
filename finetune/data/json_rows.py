"""Rows of tables in JSON: an object in each line, or an array of objects."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.delimited_text import check_text, not_utf8
from finetune.data.table_bytes import ending_of, open_bytes, read_bytes
from finetune.errors import DataError, quote

_SHOWN = 4096  # bytes that show whether a file is an array


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields rows, each with the number of its line, or of the row in an array, from 1.

    Args:
        path: A `.jsonl`, `.ndjson` or `.json` file, which may be compressed.

    Raises:
        DataError: A row is no JSON object; with its line.
    """
    check_text(path)
    with open_bytes(path) as file:
        is_array = file.read(_SHOWN).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    if is_array or ending_of(path) == ".json":
        rows = _whole(path)
        if rows is not None:
            yield from enumerate(rows, start=1)
            return
    with open_bytes(path) as file:
        for line, content in enumerate(file, start=1):
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise not_utf8(path) from error
            if text.strip():
                yield line, json_object(text, f"{path.name}:{line}")


def json_object(text: str, place: str) -> dict[str, Any]:
    """Returns the object that a line holds.

    Args:
        text: The line.
        place: Where it is, such as `t.jsonl:3`.

    Raises:
        DataError: It holds none.
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"Every line must be JSON. `{place}` is not: {error}.") from error
    if not isinstance(row, dict):
        raise DataError(
            f'Every line must be a JSON object such as `{{"text": "good", "label": 1}}`. `{place}` is a '
            f"`{type(row).__name__}`."
        )
    return row


def _whole(path: Path) -> list[dict[str, Any]] | None:
    """Returns the rows of a file that is a single JSON value; `None` where its lines are to be read."""
    try:
        value = json.loads(read_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a value in each line
            return None
        raise DataError(f"`{path.name}:{error.lineno}` must be JSON. It is not: {error.msg}.") from error
    except RecursionError as error:
        raise DataError(f"`{path.name}` must be JSON. It is not: {error}.") from error
    is_row = isinstance(value, dict) and not any(isinstance(each, dict | list) for each in value.values())
    rows = [value] if is_row else value
    if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
        return rows
    if ending_of(path) != ".json":
        return None
    what = f"an object with {quote(value, limit=5)}" if isinstance(value, dict) else f"a `{type(value).__name__}`"
    raise DataError(
        f'A table in JSON is an array of objects, `[{{"text": "good", "label": 1}}, ...]`, or an object in each line. '
        f"`{path}` is {what}{' of other values' if isinstance(value, list) else ''}. Write it with "
        "`df.to_json(path, orient='records')`."
    )
