"""The run folder.

It is created only after everything was checked, so that bad input leaves nothing behind. Each file is written under
another name and then renamed: a reader sees the whole file or none.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, printable

# What `--overwrite` deletes. A file that a run writes and that is missing here would be left from an older run.
RUN_FILES = (
    *("recipe.yaml", "plan.txt", "plan.json", "restore.json", "metrics.csv", "tensorboard", "checkpoints"),
    *("data.json", "model.keras", "result.json", "plots"),
)


def check_run_folder(out: Path | None, *, overwrite: bool = False) -> None:
    """Checks that `make_run_folder` will succeed later; changes nothing.

    Args:
        out: The folder the user asked for; `None` for a numbered folder below `runs`.
        overwrite: Whether it may contain files.

    Raises:
        FinetuneError: `out` is a file, cannot be created, or is not empty and `overwrite` is false.
    """
    # `lexists`: a link that leads nowhere is in the way as well, and `exists` would not see it.
    folder = out or Path("runs")
    if os.path.lexists(folder) and not folder.is_dir():
        name = f"`--out {out}`" if out else "`runs`"
        raise FinetuneError(f"A run is written to a folder. {name} is a file. Choose another folder with `--out`.")
    # The nearest folder that exists decides whether the others can be made; the root always exists.
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise FinetuneError(
            f"A run needs a folder that can be created and written to. `{folder}` cannot: `{existing}` is "
            f"{'write-protected' if existing.is_dir() else 'a file'}. Choose another folder with `--out`."
        )
    if out and existing == out and not overwrite and any(out.iterdir()):
        raise FinetuneError(
            f"A run does not overwrite files. `--out {out}` is not empty. Choose another folder, remove `--out` "
            "for a new numbered folder, or add `--overwrite`."
        )


def make_run_folder(out: Path | None, *, name: str, overwrite: bool = False) -> Path:
    """Creates the folder that a run writes to.

    Args:
        out: The folder the user asked for; `None` creates the first `runs/<name>-<number>` that does not exist.
        name: Name of the recipe.
        overwrite: Whether the files of an earlier run in `out` are removed first. Other files always stay.

    Returns:
        The folder.

    Raises:
        FinetuneError: As `check_run_folder` does.
    """
    # Again: minutes may have passed since the command began, and another run may have taken the folder.
    check_run_folder(out, overwrite=overwrite)
    try:
        if out is None:
            return _first_free(Path("runs"), name)
        out.mkdir(parents=True, exist_ok=True)
        if (out / "recipe.yaml").is_file() and (out / "plan.txt").is_file():  # else it was not a run
            _remove_run(out)
    except OSError as error:
        raise FinetuneError(
            f"A run needs a folder that can be created and written to. `{error.filename}`: {error.strerror}. Choose "
            "another folder with `--out`."
        ) from error
    return out


def _first_free(parent: Path, name: str) -> Path:
    number = 1
    while True:
        folder = parent / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # creating is the test: another run may start at the same time
            number += 1
        else:
            return folder


def _remove_run(folder: Path) -> None:
    for path in (folder / name for name in RUN_FILES):
        # A link is removed, never what it leads to.
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Writes plain data as indented JSON; NaN and infinities become `null`, as standard JSON has neither."""
    write_text(path, json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    # `data != data` is true for NaN alone.
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    return data


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV; the columns are the keys of all rows in order of appearance."""
    # Of all rows: phases bring columns of their own, such as the rate of a group that was frozen before.
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writerow({column: printable(column) for column in columns})
        writer.writerows(rows)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path with the same ending, which is renamed to `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename between two file systems is a copy, which can be seen half done.
    temporary = path.with_name(f".writing-{path.name}")
    try:
        yield temporary
        # Atomic, and unlike `rename` it also replaces on Windows.
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
