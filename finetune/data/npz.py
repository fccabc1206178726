"""Reads examples from NumPy's `.npz` files."""

import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.examples import ARRAY_NAMES, Examples, Split, check_examples
from finetune.data.file_beginnings import BYTES, begins_as
from finetune.errors import DataError, FinetuneError, did_you_mean, quote
from finetune.files.npy_headers import check_arrays
from finetune.machine_failures import raise_machine_failure

MAPPED = 2**26  # bytes from which on an array stays in the file
_LOCAL_HEADER = 30  # bytes in front of a member's name in an archive
_REQUIRED = ARRAY_NAMES[:4]
_FIELDS = (*ARRAY_NAMES, "x", "y", "weights")
_ADVICE = "Write it with `numpy.savez`, arrays of numbers or text, not of Python objects."


def read_npz(path: str | Path) -> Examples:
    """Reads examples from a NumPy file, as `numpy.savez` writes it.

    Large arrays stay in the file, where it is not compressed, and are read when their rows are needed. Arrays whose
    names begin with neither `x_`, `y_` nor `weights_` are ignored, but for `class_names`.

    Args:
        path: File with the arrays `x_train`, `y_train`, `x_test`, `y_test` and, optionally, `x_validation`,
            `y_validation` and weights of the rows, `weights_train` and so on. A model with several inputs or outputs
            has an array for each, such as `x_train/token_ids` and `x_train/padding_mask`. Arrays of Python objects are
            not read: they could run code.

    Raises:
        DataError: The file cannot be read, or its arrays are missing, misnamed, empty or do not fit together.
    """
    splits, class_names = read_npz_splits(path)
    missing = [name for name in _REQUIRED if name.partition("_")[2] not in splits]
    if missing:
        raise _missing(path, missing, [f"x_{name}" if name else "x" for name in splits])
    arrays = {f"{part}_{name}": value for name, split in splits.items() for part, value in vars(split).items()}
    try:
        return check_examples(Examples(**arrays, class_names=class_names))
    except DataError as error:
        raise DataError(f"`{path}`: {error}") from None


def read_npz_splits(path: str | Path) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Reads the splits that a NumPy file holds, as `read_npz` does.

    Args:
        path: File with the arrays `x_train`, `y_train` and so on; or with `x`, `y` and, optionally, `weights`, which
            are all rows, still to be split.

    Returns:
        The splits by name; all rows by an empty name. And the names of the classes, if the file holds them.

    Raises:
        DataError: The file cannot be read, or its arrays are missing or misnamed.
    """
    arrays = read_arrays(Path(path))
    _check_names(path, arrays)
    fields = _by_name(arrays)
    splits: dict[str, Split] = {}
    missing = []
    for name in ("train", "test", "validation", ""):
        x, y, weights = (fields.get(f"{part}_{name}".rstrip("_")) for part in ("x", "y", "weights"))
        if name == "" and splits:
            continue  # such files hold all kinds of arrays beside the splits
        if x is None and y is None:
            missing += [f"weights_{name}"] if weights is not None else []
            continue
        missing += [f"{part}_{name}".rstrip("_") for part, value in (("x", x), ("y", y)) if value is None]
        splits[name] = Split(x, y, weights)
    if not splits or missing:
        raise _missing(path, missing or _REQUIRED, arrays)
    return splits, tuple(str(name) for name in np.atleast_1d(arrays.get("class_names", ())))


def _missing(path: str | Path, missing: Sequence[str], names: Iterable[str]) -> DataError:
    return DataError(
        f"`{path}` must hold the arrays {quote(_REQUIRED)}, or `x` and `y`; {quote(missing)} are missing. It holds "
        f"{quote(names) or 'no arrays'}. Write it with `numpy.savez(path, x_train=..., y_train=..., ...)`."
    )


def _by_name(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the arrays by the name of their field; `x_train/a` becomes the entry `a` of the dict `x_train`."""
    examples: dict[str, Any] = {name: arrays[name] for name in _FIELDS if name in arrays}
    for name, array in arrays.items():
        field, slash, key = name.partition("/")
        if slash and field in _FIELDS:
            examples.setdefault(field, {})[key] = array
    return examples


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a NumPy file by name; large ones stay in the file where it is not compressed.

    Raises:
        DataError: The file cannot be read, or holds a single array.
    """
    if not path.exists():
        others = sorted(other.name for other in path.parent.glob("*.npz"))
        neighbours = f"`{path.parent}` holds {quote(others)}." if others else f"`{path.parent}` holds no `.npz` file."
        raise DataError(f"The data file `{path}` does not exist. {neighbours}{did_you_mean(path.name, others)}")
    try:
        check_arrays(path)
        with path.open("rb") as file:  # opened here because `numpy.load` leaves damaged files open
            loaded = np.load(file, allow_pickle=False)
            arrays: Any = None
            if not isinstance(loaded, np.ndarray):
                mapped = _mapped(path)
                arrays = {name: mapped[name] if name in mapped else loaded[name] for name in loaded.files}
    except FinetuneError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise errors of many classes
        raise_machine_failure(error, f"Reading `{path}`")
        raise DataError(f"`{path}` must be a readable `.npz` file; {_fault(path, error)}. {_ADVICE}") from error
    if arrays is None:
        raise DataError(f"`{path}` must be an `.npz` file of named arrays; received a single array. {_ADVICE}")
    return arrays


def read_array(path: Path) -> np.ndarray:
    """Returns the array in an `.npy` file, which stays in the file until its rows are read.

    Raises:
        DataError: The file cannot be read, or holds Python objects.
    """
    try:
        check_arrays(path)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FinetuneError:
        raise
    except Exception as error:  # NumPy's header parser raises errors of many classes
        raise_machine_failure(error, f"Reading `{path}`")
        raise DataError(f"`{path}` must be a readable `.npy` file; {_fault(path, error)}. {_ADVICE}") from error


def _fault(path: Path, error: Exception) -> str:
    """Returns why a file cannot be read; of one that is not NumPy's, `numpy.load` would say that it holds pickles."""
    if isinstance(error, OSError):
        return f"reading it failed: {error}"
    with path.open("rb") as file:
        head = file.read(BYTES)
    if head.startswith((b"PK", b"\x93NUMPY")):
        return f"reading it failed: {error}"
    return f"it is {begins_as(head) or 'no file of NumPy'}"


def _mapped(path: Path) -> dict[str, np.memmap]:
    """Returns the large arrays of a file that are not compressed, as they lie in it."""
    arrays = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            name, dot, ending = member.filename.rpartition(".")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size < MAPPED or f"{dot}{ending}" != ".npy":
                continue
            # A local header has 30 bytes, then a name and extra bytes, whose lengths are its last two numbers.
            file.seek(member.header_offset)
            head = file.read(_LOCAL_HEADER)
            file.seek(sum(struct.unpack("<HH", head[-4:])), 1)
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if not (fortran or dtype.hasobject or dtype.kind not in "biuf"):
                arrays[name] = np.memmap(path, dtype, "r", file.tell(), shape)
    return arrays


def _check_names(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    read = [name for name in arrays if name.startswith(("x_", "y_", "weights_"))]
    unknown = [name for name in read if name.partition("/")[0] not in ARRAY_NAMES]
    if unknown:
        raise DataError(
            f"Arrays named `x_...`, `y_...` or `weights_...` must be among {quote(ARRAY_NAMES, limit=9)}; `{path}` "
            f"also holds {quote(unknown)}.{did_you_mean(unknown[0], ARRAY_NAMES)} Rename or remove them."
        )
    both = [name for name in read if "/" in name and name.partition("/")[0] in arrays]
    if both:
        raise DataError(
            f"An array is either whole or has parts by name. `{path}` holds `{both[0].partition('/')[0]}` and "
            f"{quote(both)}. Remove or rename one of the two."
        )
