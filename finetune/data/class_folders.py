"""Files in a folder for each class, or in such folders for each split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.examples import SPLITS
from finetune.errors import DataError, did_you_mean, quote


@dataclass(frozen=True)
class ClassFile:
    """A file and the class of its folder.

    Attributes:
        path: The file.
        label: Name of the folder of its class, relative to the folder of all classes.
        split: The split of its folder, if the folders are named after splits; else empty.
    """

    path: Path
    label: str
    split: str = ""


def find_files(folder: str | Path, endings: Sequence[str], what: str, example: str) -> list[ClassFile]:
    """Lists the files in folders of classes, sorted, hidden files left out.

    Args:
        folder: Holds a folder for each class; or folders named `train`, `test` and `validation`, of which each does.
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
    of_splits = [each for each in inside if each.name in SPLITS]
    if not any(each.name == "train" for each in of_splits):
        return _of_classes(folder, "", endings, what, example)
    if len(of_splits) < len(inside):
        others = [each.name for each in inside if each not in of_splits]
        raise DataError(
            f"Beside a folder `train` there may only be {quote(SPLITS[1:])}. `{folder}` also holds {quote(others)}."
            f"{did_you_mean(others[0], SPLITS)} Move them into `train`, or rename it."
        )
    return [file for each in of_splits for file in _of_classes(each, each.name, endings, what, example)]


def _of_classes(folder: Path, split: str, endings: Sequence[str], what: str, example: str) -> list[ClassFile]:
    classes = _subfolders(folder)
    if not classes:
        count = sum(path.suffix.lower() in endings for path in folder.iterdir())
        raise DataError(
            f"{what.capitalize()} lie in a folder for each class, such as `{folder / example}`. `{folder}` holds no "
            f"folders, and {count} {what}. Move the {what} of each class into a folder of its name, or name the files "
            "in a table: `data: {table: labels.csv}`."
        )
    files, empty = [], []
    for each in classes:
        paths = sorted(path for path in each.rglob("*") if _is_wanted(path, each, endings))
        files += [ClassFile(path, each.name, split) for path in paths]
        empty += [] if paths else [each.name]
    if empty:
        raise DataError(
            f"Every folder of a class must hold {what} ({', '.join(endings)}). {quote(empty)} in `{folder}` hold none. "
            "Remove the folders, or fill them."
        )
    return files


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_wanted(path: Path, folder: Path, endings: Sequence[str]) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in endings and not hidden and path.is_file()
