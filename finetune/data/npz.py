"""Reads examples from NumPy's `.npz` files."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.examples import ARRAY_NAMES, Examples, check_examples
from finetune.errors import DataError, FinetuneError, did_you_mean, quote
from finetune.files.size_limits import check_zip

_REQUIRED = ARRAY_NAMES[:4]
_ADVICE = "Write it with `numpy.savez`, arrays of numbers or text, not of Python objects."


def read_npz(path: str | Path) -> Examples:
    """Reads examples from a NumPy file, as `numpy.savez` writes it.

    Arrays whose names begin with neither `x_`, `y_` nor `weights_` are ignored, but for `class_names`.

    Args:
        path: File with the arrays `x_train`, `y_train`, `x_test`, `y_test` and, optionally, `x_validation`,
            `y_validation` and weights of the rows, `weights_train` and so on. A model with several inputs or outputs
            has an array for each, such as `x_train/token_ids` and `x_train/padding_mask`. Arrays of Python objects are
            not read: they could run code.

    Raises:
        DataError: The file cannot be read, or its arrays are missing, misnamed, empty or do not fit together.
    """
    arrays = _read_arrays(Path(path))
    _check_names(path, arrays)
    examples = _by_name(arrays)
    missing = [name for name in _REQUIRED if name not in examples]
    if missing:
        raise DataError(
            f"`{path}` must hold the arrays {quote(_REQUIRED)}; {quote(missing)} are missing. It holds "
            f"{quote(arrays) or 'no arrays'}. Write it with `numpy.savez(path, x_train=..., y_train=..., ...)`."
        )
    names = [str(name) for name in np.atleast_1d(arrays.get("class_names", ()))]
    try:
        return check_examples(Examples(**examples, class_names=tuple(names)))
    except DataError as error:
        raise DataError(f"`{path}`: {error}") from None


def _by_name(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the arrays by the name of their field; `x_train/a` becomes the entry `a` of the dict `x_train`."""
    examples: dict[str, Any] = {name: arrays[name] for name in ARRAY_NAMES if name in arrays}
    for name, array in arrays.items():
        field, slash, key = name.partition("/")
        if slash and field in ARRAY_NAMES:
            examples.setdefault(field, {})[key] = array
    return examples


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        others = sorted(other.name for other in path.parent.glob("*.npz"))
        neighbours = f"`{path.parent}` holds {quote(others)}." if others else f"`{path.parent}` holds no `.npz` file."
        raise DataError(f"The data file `{path}` does not exist. {neighbours}{did_you_mean(path.name, others)}")
    try:
        if zipfile.is_zipfile(path):
            check_zip(path)
        with path.open("rb") as file:  # opened here because `numpy.load` leaves damaged files open
            loaded = np.load(file, allow_pickle=False)
            arrays = None if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except FinetuneError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise errors of many classes
        raise DataError(f"`{path}` must be a readable `.npz` file; reading it failed: {error}. {_ADVICE}") from error
    if arrays is None:
        raise DataError(f"`{path}` must be an `.npz` file of named arrays; received a single array. {_ADVICE}")
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
