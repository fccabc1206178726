"""Examples to train, test and validate on: inputs, targets and weights of the rows of each split."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.augmentation import Augmentation
from finetune.data.batches import batches_in_order
from finetune.data.rows import Rows, rows_of, select, take
from finetune.data.split_names import SPLITS
from finetune.errors import DataError, counted, quote

_CHECKED_TOGETHER = 2**22  # values
FEW_ROWS = 5  # a class with fewer is reported


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one split. Each of its fields is an array or `Rows`, or a dict, tuple or list of them.

    Attributes:
        x: Inputs.
        y: Targets.
        weights: Weights of the rows, or `None`.
    """

    x: Any
    y: Any
    weights: Any = None

    def __len__(self) -> int:
        return len(next(leaf for _, leaf in leaves("", self.x)))

    def select(self, chosen: slice | np.ndarray) -> "Split":
        """Returns the chosen rows: a slice of them, or those at some indices."""
        return Split(select(self.x, chosen), select(self.y, chosen), select(self.weights, chosen))

    def first(self, count: int) -> tuple[Any, Any]:
        """Returns inputs and targets of the first rows, as tensors."""
        indices = tf.range(min(count, len(self)), dtype=tf.int64)
        return take(rows_of(select(self.x, slice(count))), indices), take(
            rows_of(select(self.y, slice(count))), indices
        )

    def batches(self, batch_size: int) -> tf.data.Dataset:
        """Returns every row once, in order, in batches of which the last may be smaller."""
        return batches_in_order(self.x, self.y, batch_size=batch_size, sample_weight=self.weights)


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows to train, test and, optionally, validate on.

    Inputs and targets are arrays whose first axis counts the rows, or dicts of them by the names of the model's inputs
    and outputs, or tuples or lists of them in their order. In place of an array there may be `finetune.data.rows.Rows`,
    whose values are read when they are needed.

    Attributes:
        x_train: Inputs of the training rows, shape `(rows, ...)`.
        y_train: Their targets, shape `(rows,)` for integer labels.
        x_test: Inputs of the test rows, of the same structure and shape per row as `x_train`.
        y_test: Their targets.
        x_validation: Inputs to choose settings by, or `None`.
        y_validation: Their targets; present exactly when `x_validation` is.
        weights_train: Weights of the training rows in the loss, shape `(rows,)`, or `None`.
        weights_test: Weights of the test rows.
        weights_validation: Weights of the validation rows.
        class_names: Name of the class of each label from 0 on, where they are known.
        source: Where the rows come from and how they were read, as plain data.
        places: Where each row of a split is, such as `reviews.csv:1042`, by the name of the split, where that is known.
        augmentation: How the training rows are changed in every epoch, if they are.
    """

    x_train: Any
    y_train: Any
    x_test: Any
    y_test: Any
    x_validation: Any = None
    y_validation: Any = None
    weights_train: Any = None
    weights_test: Any = None
    weights_validation: Any = None
    class_names: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)
    augmentation: Augmentation | None = None

    def __repr__(self) -> str:
        try:
            return f"Examples({summary(self)})"  # at a prompt; the fields are arrays
        except (TypeError, StopIteration):
            return "Examples(without rows)"  # which `check_examples` refuses

    @property
    def train(self) -> Split:
        """The training rows."""
        return Split(self.x_train, self.y_train, self.weights_train)

    @property
    def test(self) -> Split:
        """The test rows."""
        return Split(self.x_test, self.y_test, self.weights_test)

    @property
    def validation(self) -> Split | None:
        """The validation rows, if there are any."""
        return (
            None if self.x_validation is None else Split(self.x_validation, self.y_validation, self.weights_validation)
        )


ARRAY_NAMES = tuple(each.name for each in fields(Examples) if each.name.partition("_")[2] in SPLITS)


def make_examples(train: Split, test: Split, validation: Split | None = None, **about: Any) -> Examples:
    """Returns the examples that consist of these splits.

    Args:
        train: The training rows.
        test: The test rows.
        validation: The validation rows, if there are any.
        about: `class_names`, `source` and `places` of `Examples`, where they are known.
    """
    splits = {"train": train, "test": test} | ({"validation": validation} if validation else {})
    arrays = {f"x_{name}": split.x for name, split in splits.items()}
    arrays |= {f"y_{name}": split.y for name, split in splits.items()}
    arrays |= {f"weights_{name}": split.weights for name, split in splits.items()}
    return Examples(**arrays, **about)


def class_counts(y: Any, classes: int) -> list[int] | None:
    """Returns how many rows each class has, or each label where a row may have several.

    Args:
        y: Numbers of classes, shape `(rows,)` or `(rows, 1)`; or 0 and 1 for each class or label, `(rows, classes)`.
        classes: How many classes there are, >= 1.

    Returns:
        A count for each class; `None` where targets are in another form, or none of these classes.
    """
    if not isinstance(y, np.ndarray) or y.ndim not in (1, 2) or y.dtype.kind not in "biuf":
        return None
    if y.ndim == 2 and y.shape[1] > 1:
        is_counted = y.shape[1] == classes and bool(((y == 0) | (y == 1)).all())
        return y.sum(axis=0).astype(int).tolist() if is_counted else None
    labels = y.reshape(-1)
    if not ((labels >= 0) & (labels < classes) & (labels == np.rint(labels))).all():
        return None
    return np.bincount(labels.astype(np.int64), minlength=classes).tolist()


def class_numbers(y: Any, classes: int) -> np.ndarray | None:
    """Returns the number of the class of each row, int64 of shape `(rows,)`; `None` where rows have no single class.

    Args:
        y: Targets: numbers of classes, or a target for each class, of which one is 1.
        classes: How many classes there are; `0` where that is not known, and every whole number from 0 counts as one.
    """
    if not isinstance(y, np.ndarray) or y.dtype.kind not in "biuf" or not y.size:
        return None
    if y.ndim == 2 and y.shape[1] == classes > 1:
        is_one_hot = bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all())
        return y.argmax(axis=1) if is_one_hot else None
    flat = y.reshape(-1) if y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1) else None
    # A binary loss takes its labels as floats.
    if flat is None or flat.min() < 0 or (flat.dtype.kind == "f" and not ((flat == 0) | (flat == 1)).all()):
        return None
    return flat.astype(np.int64)


def rare_classes(examples: Examples) -> dict[str, int]:
    """Returns how many training rows each class or label has that has fewer than 5, by its name."""
    names = examples.class_names
    counts = class_counts(examples.y_train, len(names)) if names else None
    return {name: count for name, count in zip(names, counts or (), strict=False) if count < FEW_ROWS}


def untested_classes(examples: Examples) -> list[str]:
    """Returns the names of the classes or labels of which there are rows to train on and none to test on."""
    names = examples.class_names
    train, test = (class_counts(y, len(names)) if names else None for y in (examples.y_train, examples.y_test))
    of_each = zip(names, train or (), test or (), strict=False)
    return [name for name, trained, tested in of_each if trained and not tested]


def summary(examples: Examples) -> str:
    """Returns the number of rows of each split and of classes, and which rows were skipped, as a sentence."""
    rows = f"{counted(len(examples.train), 'row')} to train on, {len(examples.test):,} to test"
    rows += f", {len(examples.validation):,} to validate" if examples.validation else ""
    rows += f"; {counted(len(examples.class_names), 'class', 'classes')}" if examples.class_names else ""
    rows += f", {few} of them with fewer than {FEW_ROWS} training rows" if (few := len(rare_classes(examples))) else ""
    if untested := untested_classes(examples):
        rows += f", {len(untested)} of them without a row to test on: {quote(untested)}"
    if skipped := examples.source.get("skipped"):
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        rows += f"; {len(skipped)} skipped that cannot be read: {', '.join(f'`{name}`' for name in skipped[:5])}{more}"
    return rows


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


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the arrays of a structure with their names, such as `x_train/token_ids`."""
    is_list = isinstance(value, list | tuple) and all(isinstance(item, np.ndarray | Rows) for item in value)
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if is_list else ()
    if not items:
        yield name, value
    for key, item in items:
        yield from leaves(f"{name}/{key}" if name else str(key), item)


def files_of_rows(examples: Examples) -> Iterator[Path]:
    """Yields the files that rows are decoded from, where each row has its own."""
    for name in ARRAY_NAMES:
        for _, array in leaves(name, getattr(examples, name)):
            if isinstance(array, Rows) and array.stored:
                yield from array.stored.files or ()


def _array_problems(examples: Examples) -> list[str]:
    required = ARRAY_NAMES[:4]
    present = [(name, getattr(examples, name)) for name in ARRAY_NAMES]
    present = [(name, value) for name, value in present if value is not None or name in required]
    arrays = [leaf for name, value in present for leaf in leaves(name, value)]
    problems = [f"`{name}` {problem}" for name, array in arrays if (problem := _array_problem(array))]
    if (examples.x_validation is None) != (examples.y_validation is None):
        problems.append("only one of `x_validation` and `y_validation`")
    return problems


def _array_problem(value: Any) -> str | None:
    if isinstance(value, Rows):  # its values are checked when they are read
        return None if len(value) else "without rows"
    if not isinstance(value, np.ndarray):
        return f"that is not a NumPy array but a `{type(value).__name__}`"
    if value.ndim == 0 or value.size == 0:
        return f"that is empty, shape {value.shape}"
    if value.dtype == object:
        return "of Python objects"
    if np.issubdtype(value.dtype, np.inexact):
        at_once = max(1, _CHECKED_TOGETHER // max(1, value[0].size))  # an array in a file need not fit into memory
        starts = range(0, len(value), at_once)
        count = sum(int(np.count_nonzero(~np.isfinite(value[start : start + at_once]))) for start in starts)
        return f"with {count} values that are not finite" if count else None
    return None


def _row_problems(examples: Examples) -> list[str]:
    """Checks that all arrays of a split have as many rows as the first array of its inputs."""
    problems = []
    for split in SPLITS:
        inputs = list(leaves(f"x_{split}", getattr(examples, f"x_{split}")))
        others = [name for name in (f"y_{split}", f"weights_{split}") if getattr(examples, name) is not None]
        arrays = inputs + [leaf for name in others for leaf in leaves(name, getattr(examples, name))]
        first, x = arrays[0]
        problems += [
            f"`{first}` with {len(x)} rows and `{name}` with {len(array)}"
            for name, array in arrays[1:]
            if len(array) != len(x)
        ]
    return problems


def _shape_problems(examples: Examples) -> list[str]:
    """Checks that the arrays of other splits have the names and the shapes per row of those of the training rows."""
    problems = []
    for axis in "xy":
        train = dict(leaves(axis, getattr(examples, f"{axis}_train")))
        for split in SPLITS[1:]:
            value = getattr(examples, f"{axis}_{split}")
            arrays = {} if value is None else dict(leaves(axis, value))
            if arrays and arrays.keys() != train.keys():
                problems.append(f"`{axis}_{split}` with other names than `{axis}_train`")
                continue
            for name, array in arrays.items():
                shape, expected = getattr(array, "shape", None), getattr(train[name], "shape", None)  # `Rows` have none
                if shape and expected and shape[1:] != expected[1:]:
                    problems.append(
                        f"`{axis}_{split}{name[1:]}` of shape {shape[1:]} per row and `{axis}_train{name[1:]}` of "
                        f"{expected[1:]}"
                    )
    return problems
