"""Files in a folder for each class, or in such folders for each split."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from finetune.data.file_names import FilePaths, joined_texts
from finetune.data.split_names import SPLITS, note_on_names, split_folders
from finetune.errors import DataError, did_you_mean, quote


@dataclass(frozen=True, eq=False)
class ClassFiles:
    """Files and the class of the folder of each.

    Attributes:
        paths: The files, relative to the folder that all of them lie in.
        labels: Name of the folder of the class of each, text of shape `(files,)`.
        splits: The split of its folder, if the folders are named after splits; else empty.
        others: How many files with another ending lie beside them, by the ending.
        note: What the user should know of the names of the splits; may be empty.
    """

    paths: FilePaths
    labels: np.ndarray
    splits: np.ndarray
    others: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: np.ndarray) -> "ClassFiles":
        """Returns the files at some indices."""
        return replace(self, paths=self.paths.select(rows), labels=self.labels[rows], splits=self.splits[rows])

    def warnings(self, endings: Sequence[str]) -> list[str]:
        """Returns sentences about the names of splits, and about files that are left out for their ending.

        Args:
            endings: Endings of the names of files that are taken.
        """
        said = [self.note] if self.note else []
        if not self.others:
            return said
        count, shown = sum(self.others.values()), sorted(self.others, key=lambda ending: (-self.others[ending], ending))
        of_each = [f"{self.others[ending]:,} {f'`{ending}`' if ending else 'without an ending'}" for ending in shown]
        return [
            *said,
            f"{count:,} file{'s' if count > 1 else ''} in the folders of classes {'are' if count > 1 else 'is'} left "
            f"out: {', '.join(of_each[:5])}. Those that end in {', '.join(endings)} are read",
        ]


def find_files(folder: str | Path, endings: Sequence[str], what: str, example: str) -> ClassFiles:
    """Lists the files in folders of classes, sorted, hidden files left out.

    Args:
        folder: Holds a folder for each class; or folders named `train`, `test` and `validation` (or as
            `finetune.data.split_names` has it), of which each does.
        endings: Endings of the names of the files, in lower case.
        what: What messages call the files, in the plural and in lower case.
        example: Name of a class, for messages.

    Raises:
        DataError: There is no such folder, there are no folders of classes, or a class has no files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        others = sorted(other.name for other in folder.parent.glob("*") if other.is_dir())
        said = f"{what.capitalize()} lie in a folder. `{folder}` is none."
        raise DataError(f"{said}{did_you_mean(folder.name, others)}")
    inside = _subfolders(folder)
    of_splits = split_folders([each.name for each in inside])
    if of_splits and len(of_splits) < len(inside):
        others = [each.name for each in inside if each.name not in of_splits]
        raise DataError(
            f"Beside a folder `train` there may only be {quote(SPLITS[1:])} (or `val`, `valid`, `dev`). `{folder}` "
            f"also holds {quote(others)}."
            f"{did_you_mean(others[0], SPLITS)} Move them into `train`, or rename it."
        )
    counts: Counter[tuple[str, str]] = Counter()  # files of each split and class, in their order
    left_out: Counter[str] = Counter()

    def names() -> Iterator[str]:
        for part in map(folder.joinpath, of_splits) if of_splits else [folder]:
            for each in _classes_in(part, endings, what, example):
                found = sorted(_names_in(each, endings, left_out), key=lambda name: name.split(os.sep))
                counts[of_splits.get(part.name, ""), each.name] += len(found)
                yield from (f"{each.relative_to(folder)}{os.sep}{name}" for name in found)

    paths = FilePaths(folder, joined_texts(names()))
    empty = ["/".join(filter(None, key)) for key, count in counts.items() if not count]
    if empty:
        raise DataError(
            f"Every folder of a class must hold {what} ({', '.join(endings)}). {quote(empty)} in `{folder}` hold none. "
            "Remove the folders, or fill them."
        )
    splits, labels = (np.repeat(np.array(texts), list(counts.values())) for texts in zip(*counts, strict=True))
    return ClassFiles(paths, labels, splits, dict(left_out), note_on_names(of_splits))


def _classes_in(folder: Path, endings: Sequence[str], what: str, example: str) -> list[Path]:
    classes = _subfolders(folder)
    if not classes:
        count = sum(path.suffix.lower() in endings for path in folder.iterdir())
        raise DataError(
            f"{what.capitalize()} lie in a folder for each class, such as `{folder / example}`. `{folder}` holds no "
            f"folders, and {count} {what}. Move the {what} of each class into a folder of its name, or name the files "
            "in a table: `data: {table: labels.csv}`."
        )
    return classes


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _names_in(folder: Path, endings: Sequence[str], left_out: Counter[str]) -> Iterator[str]:
    """Yields the names of the files of a class, relative to its folder; counts others by their ending."""
    folders = [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:  # which know what they are: a `stat` for each would take longer than all the rest
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if not entry.is_symlink():  # it may lead back
                        folders.append(entry.path)
                    continue
                ending = os.path.splitext(entry.name)[1].lower()
                if ending not in endings:
                    left_out[ending] += 1
                elif entry.is_file():
                    yield entry.path[len(str(folder)) + 1 :]
