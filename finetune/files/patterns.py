"""Files that are named by patterns, such as `train-*.parquet`, and how they are called apart."""

import os
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from finetune.errors import DataError, did_you_mean, quote

_MARKS = "*?["


def is_pattern(path: str | Path) -> bool:
    """Returns whether a path is a pattern; the name of a file that exists is none, whatever marks it has."""
    return any(mark in str(path) for mark in _MARKS) and not Path(path).exists()


def matching_files(patterns: Sequence[str | Path], what: str) -> list[Path]:
    """Returns the files that match some patterns, each once, in the order of their names for each pattern.

    Args:
        patterns: Files and patterns, in which `**` are folders of any depth.
        what: What the files are, such as `files of records`, for the message.

    Raises:
        DataError: A pattern matches no file.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        names = sorted(glob(str(pattern), recursive=True)) if is_pattern(pattern) else [pattern]
        matches = [path for path in map(Path, names) if path.is_file()]
        if not matches:
            folder = Path(pattern).parent
            others = sorted(other.name for other in folder.glob("*") if other.is_file()) if folder.is_dir() else []
            raise DataError(
                f"There must be {what}. `{pattern}` matches none. `{folder}` holds "
                f"{quote(others) or 'no files'}.{did_you_mean(Path(pattern).name, others)}"
            )
        files |= dict.fromkeys(matches)
    return list(files)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the names of files; where two are the same, with the folders in which they differ."""
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    folder = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(folder).as_posix() for path in paths]
