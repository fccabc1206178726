"""The run folder.

It is created only after everything was checked, so that bad input leaves nothing behind, and locked while a run writes
it. Each file is written under another name, brought to the disk, and then renamed: a reader sees the whole file or
none, and a disk that is full costs the new file, not the old one.
"""

import csv
import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, WriteError, did_you_mean, printable, quote
from finetune.results.formatting import size_text
from finetune.results.run_lock import LOCK_FILE, check_held, check_unlocked, locked

# What `--overwrite` deletes. A file that a run writes and that is missing here would be left from an older run.
RUN_FILES = (
    *("recipe.yaml", "plan.txt", "plan.json", "restore.json", "metrics.csv", "steps.csv", "tensorboard", "checkpoints"),
    *("data.json", "data", "model.keras", "result.json", "plots", "features", "environment.json"),
    *("report.json", "predictions.npz", "report.html", "model_card.md", "hashes.json"),
    *("run.log", "former", "migration.json", "evaluations.csv", "trackers.json", ".ending", "workers"),
)
# There from `result.json` on until everything is written: a run that is killed meanwhile has not come to its end.
ENDING_FILE = ".ending"
DATA_FOLDER = "data"  # in it: the files that inputs are made with
PRESET_FOLDER = "preset"  # in that: what makes token ids as a preset does
_WRITING = ".writing-"  # begins the name of a file that is being written


def check_run_folder(
    out: Path | None, *, overwrite: bool = False, resume: bool = False, is_locked: bool = False
) -> None:
    """Checks that `open_run_folder` will succeed later; changes nothing.

    Args:
        out: The folder the user asked for; `None` for a numbered folder below `runs`.
        overwrite: Whether it may contain files.
        resume: Whether it may contain a run.
        is_locked: Whether this process holds the lock of the folder.

    Raises:
        FinetuneError: `out` is a file, cannot be created, or is not empty and `overwrite` is false.
        LockError: Another run writes to it.
    """
    if out and not is_locked:
        check_unlocked(out)
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
    if (
        out
        and existing == out
        and not overwrite
        and not (resume and only_files_of_a_run(out))
        and any(path.name != LOCK_FILE for path in out.iterdir())
    ):
        raise FinetuneError(
            f"A run does not overwrite files. `--out {out}` is not empty. Choose another folder, remove `--out` "
            "for a new numbered folder, or add `--overwrite`"
            + (", or `--resume` to go on with the run in it." if is_run(out) else ".")
        )


@contextmanager
def open_run_folder(out: Path | None, *, name: str, overwrite: bool = False, removes: bool = True) -> Iterator[Path]:
    """Creates the folder that a run writes to, and holds its lock for the time of the block.

    Args:
        out: The folder the user asked for; `None` creates the first `runs/<name>-<number>` that does not exist.
        name: Name of the recipe.
        overwrite: Whether `out` may hold files.
        removes: Whether those of an earlier run are removed first, then. Other files always stay.

    Yields:
        The folder.

    Raises:
        FinetuneError: As `check_run_folder` does.
    """
    # Again: minutes may have passed since the command began, and another run may have taken the folder.
    check_run_folder(out, overwrite=overwrite)
    try:
        folder = _first_free(Path("runs"), name) if out is None else out
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_created(error) from error
    with locked(folder):
        # Again: a run may have begun and ended meanwhile.
        check_run_folder(out, overwrite=overwrite, is_locked=True)
        try:
            if is_run(folder):
                for path in _run_files(folder) if removes else half_written(folder):
                    _remove(path)
        except OSError as error:
            raise _cannot_be_created(error) from error
        yield folder


def _cannot_be_created(error: OSError) -> FinetuneError:
    return FinetuneError(
        f"A run needs a folder that can be created and written to. `{error.filename}`: {error.strerror}. Choose "
        "another folder with `--out`."
    )


def new_run_folder(name: str) -> Path:
    """Creates the first `runs/<name>-<number>` that does not exist.

    Raises:
        FinetuneError: It cannot be created.
    """
    check_run_folder(None)
    try:
        return _first_free(Path("runs"), name)
    except OSError as error:
        raise _cannot_be_created(error) from error


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


def is_run(folder: Path) -> bool:
    """Returns whether a folder holds a run, which may be unfinished."""
    return (folder / "recipe.yaml").is_file() and (folder / "plan.txt").is_file()


def check_holds_run(folder: Path, rule: str) -> None:
    """Checks that a folder holds a run, which may be unfinished.

    Args:
        folder: What the user has named.
        rule: What the command is about, as a sentence.

    Raises:
        FinetuneError: It does not; the message says what is there, and which runs are in it or beside it.
    """
    if is_run(folder):
        return
    inside, beside = (
        [str(path.parent) for path in sorted(place.glob("*/plan.txt")) if is_run(path.parent)]
        for place in (folder, folder.parent)
    )
    why = "it has no `recipe.yaml` and `plan.txt`" if folder.is_dir() else "there is no such folder"
    why = "it is a file" if folder.is_file() else why
    if folder.is_file() and is_run(folder.parent):
        advice = f"Name the folder it is in: `{folder.parent}`."
    elif folder.is_file() and folder.suffix in (".yaml", ".yml"):
        advice = f"A recipe is run with `finetune run {folder}`, which prints the folder."
    elif inside:
        advice = f"It holds runs: {quote(inside)}. Name one of them."
    elif beside:
        advice = f"There are the runs {quote(beside)}.{did_you_mean(str(folder), beside)}"
    else:
        advice = "Name the folder that the run has printed, such as `runs/digits-1`."
    raise FinetuneError(f"{rule} `{folder}` is no run folder: {why}. {advice}")


def check_can_resume(out: Path | None, *, overwrite: bool) -> None:
    """Checks options: a run that goes on has a folder, whose files stay.

    Raises:
        FinetuneError: There is no folder, or it is to be overwritten.
    """
    if out is None:
        raise FinetuneError("`--resume` goes on with the run in a folder. Name the folder with `--out`.")
    if overwrite:
        raise FinetuneError("`--resume` goes on with a run, `--overwrite` deletes it. Remove one of the two.")


def is_finished(folder: Path) -> bool:
    """Returns whether a folder holds a run that has come to its end."""
    return is_run(folder) and (folder / "result.json").is_file() and not (folder / ENDING_FILE).exists()


def only_files_of_a_run(folder: Path) -> bool:
    """Returns whether a folder holds nothing but what a run writes, which may have been killed at any moment."""
    known = {*RUN_FILES, LOCK_FILE}
    return all(path.name in known or path.name.startswith(_WRITING) for path in folder.iterdir())


def _run_files(folder: Path) -> list[Path]:
    """Returns what an earlier run has written to a folder, and what it was writing when it was killed."""
    return [path for name in RUN_FILES if os.path.lexists(path := folder / name)] + list(folder.glob(f"{_WRITING}*"))


def half_written(folder: Path) -> list[Path]:
    """Returns what is being written in a run folder and in its own folders, or was when a process was killed."""
    own = [path for name in RUN_FILES if (path := folder / name).is_dir()]  # not another run that lies inside
    return [*folder.glob(f"{_WRITING}*"), *(path for each in own for path in each.rglob(f"{_WRITING}*"))]


def _remove(path: Path) -> None:
    # A link is removed, never what it leads to.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_room(folder: Path, total: int, largest: int, *, overwrite: bool = False) -> None:
    """Checks that a run will find room on the disk; changes nothing.

    Args:
        folder: The run folder, which need not exist.
        total: Bytes that the run writes, at most at once.
        largest: Bytes of its largest file.
        overwrite: Whether the files of an earlier run in the folder are removed first.

    Raises:
        WriteError: The disk has less room, or the process may not write files as large.
    """
    free = free_bytes(folder)
    if overwrite and is_run(folder):
        freed = (path for part in _run_files(folder) for path in (part, *part.rglob("*")))
        free += sum(path.lstat().st_size for path in freed if path.is_file())
    if total > free:
        raise WriteError(
            f"A run checks before training that the disk has room for its files. They take about {size_text(total)} at "
            f"`{folder}`, where {size_text(free)} are free. Free some space, or choose another folder with `--out`."
        )
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and largest > limit:
        raise WriteError(
            f"A run checks before training that its files can be written. The largest takes about "
            f"{size_text(largest)}, and this process may write files of {size_text(limit)}. Raise the limit "
            "(`ulimit -f unlimited`)."
        )


def free_bytes(folder: Path) -> int:
    """Returns the bytes that are free for this user where a folder is, or will be created."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.is_dir())).free


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


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], *, durable: bool = True) -> None:
    """Writes rows as CSV; the columns are the keys of all rows in order of appearance.

    Args:
        path: The file.
        rows: A mapping for each row.
        durable: As for `replacing`.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path, durable=durable) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writerow({column: printable(column) for column in columns})
        writer.writerows(rows)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path with the same ending, which is renamed to `path` when the block ends without an error.

    Args:
        path: The file.
        durable: Whether the content is on the disk before it takes the name, so that not even a loss of power leaves
            half a file. Takes milliseconds.

    Raises:
        WriteError: The file cannot be written, or the folder is no longer that which this process has locked.
    """
    check_held(path)
    temporary = path.with_name(f"{_WRITING}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        check_held(path)
        os.replace(temporary, path)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(_not_written(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> str:
    """Returns the message for a file that could not be written."""
    if error.errno == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        advice = f"This process may write files of {size_text(limit)}: raise the limit (`ulimit -f unlimited`)"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = f"{size_text(free_bytes(path.parent))} are free there: free some space, or choose another folder"
    else:
        advice = "Choose a folder that exists and can be written to"
    reason = error.strerror or str(error) or type(error).__name__
    return f"Files are written whole or not at all. `{path}` could not be written: {reason}. {advice}."
