"""What kind of data lies at a path, for `finetune new`: folders of classes, a table, arrays or records.

Looks at names, at heads and at a table's values; nothing is decoded but the sizes of a few images.
"""

import glob
import re
import statistics
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.column_survey import ColumnSurvey, is_placeholder, survey_of_column, with_repeated_texts
from finetune.data.file_endings import IMAGES, SOUNDS
from finetune.data.several_tables import read_tables
from finetune.data.split_names import is_split_name, split_folders, split_prefix, splits_of_names, with_rows_to_test
from finetune.data.table_bytes import ending_of
from finetune.data.table_column import Column
from finetune.data.table_files import Table
from finetune.data.table_head import ENDINGS as TABLES
from finetune.data.table_head import MISSING, table_paths
from finetune.errors import DataError, counted, did_you_mean, quote
from finetune.startup import start_tensorflow

_KNOWN = (
    "a folder with a folder of images or of WAV files for each class, a table "
    f"({', '.join(TABLES)}), arrays (.npz), or records (.tfrecord)"
)
_CONVERTED = {
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z"), "Unpack it, and name the folder"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save the sheet as CSV"),
    **dict.fromkeys((".mp3", ".ogg", ".flac", ".m4a"), "Convert the sounds to WAV, in a folder for each class"),
    **dict.fromkeys((".npy",), "Write inputs and targets into a .npz with `numpy.savez(path, x=..., y=...)`"),
    **dict.fromkeys((".h5", ".hdf5", ".mat"), "Write the arrays into a .npz with `numpy.savez(path, x=..., y=...)`"),
}
_NOTES = (".txt", ".json")  # which are tables where they are named, and often something else in a folder
_MOST_FILES = 100_000  # that are looked at in a folder
_LOOKED_AT = 20  # images whose sizes are read


@dataclass(frozen=True)
class DataSurvey:
    """What lies at a path.

    Attributes:
        kind: `images`, `audio`, `table`, `npz` or `tfrecord`, as the key of `data` in a recipe.
        source: The keys of `data` that name the files, with paths.
        said: What it is, as words.
        rows: How many rows there are, of which a few hundred are enough to know; 0 where that is unknown.
        is_split: Whether the files say which rows test.
        shape: Shape of a row: height, width and channels of images, samples of sounds, or that of an array.
        columns: The columns of a table, or the features of records.
        classes: Rows of each class by its name, where the folders say so.
        largest: The largest value in arrays, where it is known.
        sample_rate: Samples in a second of most sounds.
        has_validation: Whether the files say which rows validate.
        placeholders: Words that stand for missing numbers in a table, beside those that always do, by the first column
            of numbers that has them.
    """

    kind: str
    source: Mapping[str, Any]
    said: str
    rows: int
    is_split: bool = False
    shape: tuple[int, ...] = ()
    columns: tuple[ColumnSurvey, ...] = ()
    classes: Mapping[str, int] = field(default_factory=dict)
    largest: float | None = None
    sample_rate: int = 0
    has_validation: bool = False
    placeholders: Mapping[str, str] = field(default_factory=dict)


def survey(path: Path) -> DataSurvey:
    """Returns what kind of data lies at a path.

    Args:
        path: A file, a folder, or a pattern of tables or of record files.

    Raises:
        DataError: There is nothing, or nothing that a recipe can name, or several things.
    """
    if any(character in str(path) for character in "*?[") and not path.exists():
        return _survey_of_pattern(path)
    if not path.exists():
        names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, names) or (f" `{path.parent}` holds {quote(sorted(names))}." if names else "")
        raise DataError(f"There is nothing at `{path}`.{hint} Data are {_KNOWN}.")
    if path.is_dir():
        return _survey_of_folder(path)
    ending = path.suffix.lower()
    if ending_of(path) in TABLES:
        return survey_of_tables({"table": path})
    if ending == ".npz":
        return _survey_of_arrays(path)
    if _is_records(path):
        return _survey_of_records([path], str(path))
    if ending in (*IMAGES, *SOUNDS):
        raise DataError(
            f"`{path}` is a single file. Data are {_KNOWN}. Name the folder that holds the folders of the classes."
        )
    advice = _CONVERTED.get(ending, "Convert it to one of these")
    raise DataError(f"Data are {_KNOWN}. `{path}` is none of these. {advice}.")


# -- Folders ----------------------------------------------------------------------------------------------------------


def _survey_of_folder(folder: Path) -> DataSurvey:
    inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files, folders = [path for path in inside if path.is_file()], [path for path in inside if path.is_dir()]
    if not inside:
        raise DataError(f"The folder `{folder}` is empty. Data are {_KNOWN}.")
    below = Counter(_kind_of(path) for path in islice(_files_below(folders), _MOST_FILES))
    tables = [path for path in files if ending_of(path) in TABLES and ending_of(path) not in _NOTES]
    arrays = [path for path in files if path.suffix.lower() == ".npz"]
    records = [path for path in files if _is_records(path)]
    kinds = {"images": below["images"], "sounds": below["sounds"]}
    present = [kind for kind, count in kinds.items() if count]
    if (tables and not arrays and not records) and (named := _with_files(tables, folder)):
        return named  # a table whose column names the images or the sounds
    several = [*present, *(kind for kind, of in (("tables", tables), ("arrays", arrays), ("records", records)) if of)]
    if len(several) > 1:
        raise DataError(
            f"The folder `{folder}` holds different things: {_counts(below, tables, arrays, records)}. Name what is "
            "meant: a file in it, or the folder with a folder for each class."
        )
    if present:
        return _survey_of_classes(folder, folders, present[0])
    if tables:
        return survey_of_tables(_splits_of(tables, folder))
    if arrays:
        if len(arrays) > 1:
            raise DataError(f"The folder `{folder}` holds several files of arrays: {quote(_names(arrays))}. Name one.")
        return _survey_of_arrays(arrays[0])
    if records:
        return _survey_of_records(records, str(folder / f"*{_common_ending(records)}"))
    flat = Counter(_kind_of(path) for path in files)
    for kind, example in (("images", "cat"), ("sounds", "dog")):
        if flat[kind]:
            raise DataError(
                f"{kind.capitalize()} lie in a folder for each class, such as `{folder / example}`. `{folder}` holds "
                f"{counted(flat[kind], kind.removesuffix('s'))}, and no such folders. Move those of each class into a "
                "folder of its name, or name the files in a table with a column of their classes."
            )
    shown = quote(_names(inside))
    raise DataError(f"Data are {_KNOWN}. The folder `{folder}` holds {shown}, and none of these.")


def _survey_of_classes(folder: Path, folders: Sequence[Path], what: str) -> DataSurvey:
    endings = IMAGES if what == "images" else SOUNDS
    of_splits = split_folders([each.name for each in folders])
    is_split = bool(of_splits)
    about: dict[str, Any] = {"has_validation": "validation" in of_splits.values()}
    if is_split:
        train = folder / next(name for name, split in of_splits.items() if split == "train")
        folders = [each for each in sorted(train.iterdir()) if each.is_dir() and each.name[0] != "."]
    files = {
        each.name: [path for path in _files_below([each]) if path.suffix.lower() in endings][:_MOST_FILES]
        for each in folders
    }
    empty = [name for name, of in files.items() if not of]
    if empty:
        raise DataError(
            f"Every folder of a class must hold {what}. {quote(empty)} in `{folder}` hold none. Remove the folders, "
            "or fill them."
        )
    if len(files) < 2:
        raise DataError(
            f"At least two classes are needed to learn to tell them apart. `{folder}` has {quote(files) or 'none'}. "
            "Name the folder that holds a folder for each class."
        )
    counts = {name: len(of) for name, of in files.items()}
    rows = sum(counts.values())
    words = what if what == "images" else "WAV files"
    said = f"{rows:,} {words} in {len(files)} folders of classes"
    spread = [path for of in files.values() for path in of[: max(1, _LOOKED_AT // len(files))]]
    if what == "images":
        source = {"images": folder}
        return DataSurvey("images", source, said, rows, is_split, _size_of(spread), classes=counts, **about)
    start_tensorflow()  # which takes seconds, only where there are sounds
    from finetune.data.audio import read_head

    heads = [read_head(path) for path in spread[:_LOOKED_AT]]
    rate = Counter(head.rate for head in heads).most_common(1)[0][0]
    length = round(statistics.median(head.length * rate / head.rate for head in heads))
    return DataSurvey(
        "audio", {"audio": folder}, said, rows, is_split, (length,), (), counts, sample_rate=rate, **about
    )


def _size_of(paths: Sequence[Path]) -> tuple[int, ...]:
    """Returns the median height and width of some images, and 3 channels; nothing where none can be read."""
    from PIL import Image

    sizes = []
    for path in paths[:_LOOKED_AT]:
        try:
            with Image.open(path) as image:
                sizes.append((image.height, image.width))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # `finetune check --deep` names those that cannot be read
    return (*(round(statistics.median(of)) for of in zip(*sizes, strict=True)), 3) if sizes else ()


def _files_below(folders: Sequence[Path]) -> Any:
    return (path for folder in folders for path in sorted(folder.rglob("[!.]*")) if path.is_file())


def _kind_of(path: Path) -> str:
    ending = path.suffix.lower()
    return "images" if ending in IMAGES else "sounds" if ending in SOUNDS else "others"


def _counts(below: Counter[str], *lists: Sequence[Path]) -> str:
    words = [f"{counted(below[f'{kind}s'], kind)} in folders" for kind in ("image", "sound") if below[f"{kind}s"]]
    return ", ".join([*words, *(quote(_names(paths)) for paths in lists if paths)])


def _names(paths: Sequence[Path]) -> list[str]:
    return [path.name for path in paths]


# -- Tables -----------------------------------------------------------------------------------------------------------


def survey_of_tables(source: Mapping[str, Path]) -> DataSurvey:
    """Returns what the columns of a table look like.

    Args:
        source: The keys of `data` that name the table, and those with test and validation rows: files or patterns.

    Raises:
        DataError: The table cannot be read.
    """
    paths = table_paths([source["table"]])
    table = read_tables(paths)
    placeholders = _placeholders(table)
    if placeholders:
        table = read_tables(paths, (*MISSING, *placeholders))
    rows = len(table)
    columns = with_repeated_texts([_survey_of_column(table, name) for name in table.columns])
    said = f"a table of {rows:,} rows and {counted(len(columns), 'column')}"
    images = [table.columns[column.name].values for column in columns if column.kind == "image"]
    folder = Path(source["table"]).parent
    shape = _size_of([folder / name for name in images[0].tolist()[:_LOOKED_AT] if name]) if images else ()
    about: dict[str, Any] = {"is_split": "test_table" in source, "has_validation": "validation_table" in source}
    about["placeholders"] = placeholders
    return DataSurvey("table", dict(source), said, rows, shape=shape, columns=columns, **about)


def _survey_of_column(table: Table, name: str) -> ColumnSurvey:
    column = table.columns[name]
    of = survey_of_column(column, len(table))
    if of.kind != "id" or not len(strays := table.strays(column)):
        return of
    words = quote(dict.fromkeys(column.values[strays].tolist()), limit=3)
    return replace(of, strays=f"{words} in {counted(len(strays), 'row')}, at {table.places_of(strays)}")


def _placeholders(table: Table) -> dict[str, str]:
    """Returns what stands for missing numbers in columns that hold nothing else but numbers, and the column."""
    words: dict[str, str] = {}
    for name in table.columns:
        column = table.columns[name]
        others = dict.fromkeys(column.values[table.strays(column)].tolist())
        if all(map(is_placeholder, others)):
            words = {**dict.fromkeys(others, name), **words}
    return words


def _splits_of(tables: Sequence[Path], folder: Path) -> dict[str, Path]:
    if len(tables) == 1:
        return {"table": tables[0]}
    keys = {"train": "table", "test": "test_table", "validation": "validation_table"}
    by_name = {path.stem: path for path in tables}
    if all(map(is_split_name, by_name)) and len(by_name) == len(tables):
        splits = with_rows_to_test(splits_of_names(by_name))
        if "train" in splits.values():
            return {keys[split]: by_name[name] for name, split in splits.items()}
    # `train-00000-of-00008.parquet`, as data sets of Hugging Face are stored
    rest = r"([-_.]).*?(\.[^.]+(?:\.(?:gz|bz2|xz))?)"
    shards = [
        (name, re.fullmatch(rest, path.name[len(name) :])) for path in tables if (name := split_prefix(path.name))
    ]
    patterns = {name: folder / f"{name}{match[1]}*{match[2]}" for name, match in shards if match}
    splits = with_rows_to_test(splits_of_names(patterns))
    if len([match for _, match in shards if match]) == len(tables) and "train" in splits.values():
        return {keys[split]: patterns[name] for name, split in splits.items()}
    raise DataError(
        f"The folder `{folder}` holds several tables: {quote(_names(tables))}. Name one of them; or all of them, if "
        f"they have the same columns, by `{folder / f'*{_common_ending(tables)}'}`; or call them `train`, `test` and "
        "`validation`."
    )


def _with_files(tables: Sequence[Path], folder: Path) -> DataSurvey | None:
    """Returns the survey of the only table of a folder, if one of its columns names images or sounds."""
    if len(tables) != 1:
        return None
    found = survey_of_tables({"table": tables[0]})
    return found if any(column.kind in ("image", "audio") for column in found.columns) else None


# -- Arrays and records -----------------------------------------------------------------------------------------------


def _survey_of_arrays(path: Path) -> DataSurvey:
    from finetune.files.npy_headers import check_arrays, read_npy_header
    from finetune.files.zip_archives import zip_archive

    try:
        check_arrays(path)
        shapes = {}
        with zip_archive(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    shapes[member.filename.removesuffix(".npy")] = read_npy_header(file, member.file_size, path.name)
            inputs = [name for name in shapes if name == "x" or name.split("/")[0] in ("x", "x_train")]
            first = np.load(path)[inputs[0]][:1000] if len(inputs) == 1 and not shapes[inputs[0]][1].hasobject else None
    except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"`{path}` cannot be read as a file of `numpy.savez`: {error}. Write it again.") from error
    if not inputs:
        raise DataError(
            f"Arrays are `x_train`, `y_train`, `x_test`, `y_test`, or `x` and `y`. `{path}` holds {quote(shapes)}. "
            "Rename them."
        )
    shape, rows = (tuple(map(int, shapes[inputs[0]][0][1:])), int(shapes[inputs[0]][0][0])) if shapes else ((), 0)
    said = f"arrays of {rows:,} rows of shape {shape}" if len(inputs) == 1 else f"arrays for {len(inputs)} inputs"
    largest = float(np.max(first)) if first is not None and first.size and first.dtype.kind in "fiu" else None
    is_split = any(name.startswith("x_test") for name in shapes)
    shape = shape if len(inputs) == 1 else ()
    target = next((name for name in ("y_train", "y") if name in shapes), "")
    columns = ()
    if target and len(shapes[target][0]) == 1 and not shapes[target][1].hasobject:
        y = np.load(path)[target]
        values = y.astype(float) if y.dtype.kind in "fiub" else y
        columns = (survey_of_column(Column("y", "number" if y.dtype.kind in "fiub" else "text", values), rows),)
    validates = any(name.startswith("x_validation") for name in shapes)
    return DataSurvey("npz", {"npz": path}, said, rows, is_split, shape, columns, {}, largest, 0, validates)


def _is_records(path: Path) -> bool:
    return any(part.startswith(("tfrecord", "tfrec")) for part in path.name.lower().split(".")[1:])


def _survey_of_pattern(path: Path) -> DataSurvey:
    files = [Path(name) for name in sorted(glob.glob(str(path)))]
    if not files:
        raise DataError(f"No file matches `{path}`. Data are {_KNOWN}.")
    if all(ending_of(file) in TABLES for file in files):
        return survey_of_tables({"table": path})
    if not all(map(_is_records, files)):
        raise DataError(
            "A pattern is for tables with the same columns, or for files of records (.tfrecord). "
            f"`{path}` matches {quote(_names(files))}. Name a single file, or the folder."
        )
    return _survey_of_records(files, str(path))


def _survey_of_records(files: Sequence[Path], pattern: str) -> DataSurvey:
    start_tensorflow()
    from finetune.data.record_features import Feature, look_at
    from finetune.data.tfrecord_files import read_index

    splits = with_rows_to_test(splits_of_names(dict.fromkeys(split_prefix(path.name) for path in files)))
    by_split = {split: name for name, split in splits.items()}
    is_split = "train" in by_split and "test" in by_split
    train = [path for path in files if path.name.startswith(by_split["train"])] if is_split else files
    records = read_index(train)
    looks = look_at([records[number] for number in range(min(len(records), 100))])
    columns = []
    for name, look in looks.items():
        if isinstance(look, Feature):
            kind = "image" if look.is_image else "number" if look.stored != "string" else "category"
            columns.append(ColumnSurvey(name, kind, is_whole=look.stored == "int64" and look.shape == ()))
    source: Any = pattern
    if is_split:
        source = {split: f"{Path(pattern).parent / name}*" for split, name in by_split.items()}
    said = f"{len(records):,} records in {counted(len(files), 'file')}"
    shapes = {name: look.shape for name, look in looks.items() if isinstance(look, Feature)}
    return DataSurvey(
        "tfrecord",
        {"tfrecord": source},
        said,
        len(records),
        is_split,
        columns=tuple(columns),
        shape=max(shapes.values(), key=len, default=()),
        has_validation=is_split and "validation" in by_split,
    )


def _common_ending(paths: Sequence[Path]) -> str:
    endings = {path.suffix for path in paths}
    return endings.pop() if len(endings) == 1 else ""
