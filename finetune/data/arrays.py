"""Examples to train and test on, and how they are read from `.npz` files."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import DataError, did_you_mean, quote


@dataclass(frozen=True, eq=False)
class Examples:
    """Arrays to train, test and, optionally, validate on; the first axis counts the rows.

    Attributes:
        x_train: Inputs of the training rows, shape `(rows, ...)`.
        y_train: Their targets, shape `(rows,)` for integer labels.
        x_test: Inputs of the test rows, of the same shape per row as `x_train`.
        y_test: Their targets.
        x_validation: Inputs to choose settings by, or `None`.
        y_validation: Their targets; present exactly when `x_validation` is.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    x_validation: np.ndarray | None = None
    y_validation: np.ndarray | None = None


_NAMES = tuple(field.name for field in fields(Examples))
_REQUIRED = _NAMES[:4]
_ADVICE = "Write it with `numpy.savez`, arrays of numbers or text, not of Python objects."
_PARTS = ("train", "test", "validation")


def read_npz(path: str | Path) -> Examples:
    """Reads examples from a NumPy file, as `numpy.savez` writes it.

    Arrays whose names begin with neither `x_` nor `y_` are ignored.

    Args:
        path: File with the arrays `x_train`, `y_train`, `x_test`, `y_test` and, optionally, `x_validation` and
            `y_validation`. Arrays of Python objects are not read: they could run code.

    Raises:
        DataError: The file cannot be read, or its arrays are missing, misnamed, empty or do not fit together.
    """
    arrays = _read_arrays(Path(path))
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing:
        raise DataError(
            f"`{path}` must hold the arrays {quote(_REQUIRED)}; {quote(missing)} are missing. It holds "
            f"{quote(arrays) or 'no arrays'}. Write it with `numpy.savez(path, x_train=..., y_train=..., ...)`."
        )
    _check_names(path, arrays)
    try:
        return check_examples(Examples(**{name: arrays[name] for name in _NAMES if name in arrays}))
    except DataError as error:
        raise DataError(f"`{path}`: {error}") from None


def check_examples(examples: Any) -> Examples:
    """Returns `examples` unchanged when every array is filled, finite and fits the others.

    Raises:
        DataError: Names every array that breaks a rule.
    """
    if not isinstance(examples, Examples):
        raise DataError(
            f"Examples must be a `finetune.Examples`; received `{type(examples).__name__}`. Let the "
            "function that makes them return `Examples(x_train, y_train, x_test, y_test)`."
        )
    problems = _array_problems(examples) or _row_problems(examples) + _shape_problems(examples)
    if problems:
        shown = problems[:5] + ([f"{len(problems) - 5} more"] if len(problems) > 5 else [])
        raise DataError(f"Examples must be non-empty arrays that fit together; received {'; '.join(shown)}.")
    return examples


def with_text_as_objects(examples: Examples) -> Examples:
    """Returns the examples with text in the inputs as Python objects, the only way in which Keras takes it."""
    inputs = {name: getattr(examples, name) for name in _NAMES if name.startswith("x_")}
    is_text = {name: x for name, x in inputs.items() if x is not None and x.dtype.kind in "US"}
    return replace(examples, **{name: x.astype(object) for name, x in is_text.items()})


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        others = sorted(other.name for other in path.parent.glob("*.npz"))
        neighbours = f"`{path.parent}` holds {quote(others)}." if others else f"`{path.parent}` holds no `.npz` file."
        raise DataError(f"The data file `{path}` does not exist. {neighbours}{did_you_mean(path.name, others)}")
    try:
        with path.open("rb") as file:  # opened here because `numpy.load` leaves damaged files open
            loaded = np.load(file, allow_pickle=False)
            arrays = None if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise errors of many classes
        raise DataError(f"`{path}` must be a readable `.npz` file; reading it failed: {error}. {_ADVICE}") from error
    if arrays is None:
        raise DataError(f"`{path}` must be an `.npz` file of named arrays; received a single array. {_ADVICE}")
    return arrays


def _check_names(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    unknown = [name for name in arrays if name.startswith(("x_", "y_")) and name not in _NAMES]
    if unknown:
        raise DataError(
            f"Arrays named `x_...` or `y_...` must be among {quote(_NAMES, limit=6)}; `{path}` also holds "
            f"{quote(unknown)}.{did_you_mean(unknown[0], _NAMES)} Rename or remove them."
        )


def _array_problems(examples: Examples) -> list[str]:
    present = [(name, getattr(examples, name)) for name in _NAMES]
    checked = [(name, _array_problem(value)) for name, value in present if value is not None or name in _REQUIRED]
    problems = [f"`{name}` {problem}" for name, problem in checked if problem]
    if (examples.x_validation is None) != (examples.y_validation is None):
        problems.append("only one of `x_validation` and `y_validation`")
    return problems


def _array_problem(value: Any) -> str | None:
    if not isinstance(value, np.ndarray):
        return f"that is not a NumPy array but a `{type(value).__name__}`"
    if value.ndim == 0 or value.size == 0:
        return f"that is empty, shape {value.shape}"
    if value.dtype == object:
        return "of Python objects"
    if np.issubdtype(value.dtype, np.inexact) and not np.isfinite(value).all():
        return f"with {np.count_nonzero(~np.isfinite(value))} values that are not finite"
    return None


def _row_problems(examples: Examples) -> list[str]:
    pairs = {part: (getattr(examples, f"x_{part}"), getattr(examples, f"y_{part}")) for part in _PARTS}
    return [
        f"`x_{part}` with {len(x)} rows and `y_{part}` with {len(y)}"
        for part, (x, y) in pairs.items()
        if x is not None and len(x) != len(y)
    ]


def _shape_problems(examples: Examples) -> list[str]:
    problems = []
    for axis in "xy":
        rows = {f"{axis}_{part}": getattr(examples, f"{axis}_{part}") for part in _PARTS}
        train = rows.pop(f"{axis}_train")
        problems += [
            f"`{name}` of shape {value.shape[1:]} per row and `{axis}_train` of {train.shape[1:]}"
            for name, value in rows.items()
            if value is not None and value.shape[1:] != train.shape[1:]
        ]
    return problems
