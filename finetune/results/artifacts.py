"""The run folder: made late, written file by file, no file ever half-written."""

import csv
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError


def choose_run_folder(out: Path | None, *, name: str, overwrite: bool = False) -> Path:
    """Returns the folder a run will write to; nothing is made yet.

    Args:
        out: The folder the user asked for; `None` takes the first free `runs/<name>-<number>`.
        name: Name of the recipe.
        overwrite: Whether a finished run in `out` may be written over.

    Raises:
        FinetuneError: If `out` is a file, or holds something and `overwrite` is false.
    """
    if out is None:
        return next(path for path in _numbered(Path("runs"), name) if not path.exists())
    if out.exists() and not out.is_dir():
        raise FinetuneError(f"A run is written to a folder. `--out {out}` is a file. Choose another name.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise FinetuneError(
            f"A run never writes over what is there. `--out {out}` is not empty. Choose another folder, leave `--out` "
            "away for a numbered one, or say `--overwrite`."
        )
    return out


def _numbered(parent: Path, name: str) -> Iterator[Path]:
    number = 1
    while True:
        yield parent / f"{name}-{number}"
        number += 1


def write_json(path: Path, data: Any) -> None:
    """Writes plain data as indented JSON; NaN and infinities become `null`, so that every reader can read it."""
    write_text(path, json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    return data


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV; the columns are the keys of all rows in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path with the same ending, which becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)
