"""Labels: names of classes become numbers, and weights make up for classes of unequal size."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from finetune.data.examples import SPLITS, Examples
from finetune.data.loss_families import BINARY, NUMBERS, ONE_HOT, SPARSE, UNKNOWN, family_of
from finetune.errors import DataError, did_you_mean, printable, quote

_BETWEEN_WORDS = re.compile(r"(?<=\w)[\s_-]+(?=\w)|_")


def number_labels(values: Sequence[str], class_names: Sequence[str] = ()) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers the classes of some rows.

    Args:
        values: Name of the class of each row.
        class_names: All names, in the order of their numbers; by default those that occur, sorted.

    Returns:
        The number of each row's class, int64 of shape `(rows,)`, and all names in the order of their numbers.

    Raises:
        DataError: A row has a class that is not among `class_names`.
    """
    names = tuple(class_names) or tuple(sorted(set(values)))
    numbers = {name: number for number, name in enumerate(names)}
    unknown = sorted({value for value in values if value not in numbers})
    if unknown:
        raise DataError(
            f"Every row must be of a class in `class_names`: {quote(names)}. The data also hold {quote(unknown)}."
            f"{did_you_mean(unknown[0], names)}"
        )
    return np.array([numbers[value] for value in values], np.int64), names


def names_alike(names: Iterable[str]) -> str:
    """Quotes names that differ by upper case, spaces, hyphens and underscores alone; empty where there are none.

    Letters by themselves, such as `a` and `A`, are not alike: classes of handwriting are called so.

    >>> names_alike(["Road bike", "road-bike", "tram", "a", "A", "A-"])
    '`Road bike` and `road-bike`'
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_BETWEEN_WORDS.sub(" ", name.casefold()).strip(), []).append(name)
    pairs = [
        " and ".join(f"`{printable(name)}`" for name in each[:3])
        for key, each in alike.items()
        if len(key) > 1 and len(each) > 1
    ]
    return "; ".join(pairs[:3]) + (f"; and {len(pairs) - 3} more" if len(pairs) > 3 else "")


def encode_classes(
    values: Sequence[str], loss: str, class_names: Sequence[str] = (), *, ordered: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers classes in the form that a loss takes.

    Args:
        values: Name of the class of each row; or several names, separated by `|`, for a binary loss.
        loss: Name of the loss. A binary loss of two classes takes 0 and 1, of several labels a column for each label; a
            sparse loss takes numbers, other losses of classes a column for each class.
        class_names: Names of all classes in the order of their numbers; by default those that occur, sorted.
        ordered: Whether the names are whole numbers, and sorted as such.

    Returns:
        The targets, shape `(rows,)` or `(rows, classes)`, and the names of the classes.

    Raises:
        DataError: A row has a class that is not among `class_names`, or the loss takes numbers.
    """
    family = family_of(loss)
    if family == NUMBERS:
        raise DataError(
            f"The loss `{loss}` takes numbers. The targets are names of classes, such as "
            f"{quote(dict.fromkeys(values), limit=3)}. Take the loss `sparse_categorical_crossentropy`, or `auto`."
        )
    if ordered and not class_names:
        class_names = tuple(sorted(set(values), key=int))
    if family == BINARY and ("|" in "".join(values) or len(set(class_names or values)) > 2):
        labels = [[label for each in value.split("|") if (label := each.strip())] for value in values]
        numbers, names = number_labels([label for row in labels for label in row], class_names)
        matrix, rows = (
            np.zeros((len(values), len(names)), np.float32),
            np.repeat(np.arange(len(values)), [*map(len, labels)]),
        )
        matrix[rows, numbers] = 1
        return matrix, names
    numbers, names = number_labels(values, class_names)
    if family == BINARY:
        return numbers.astype(np.float32), names
    return (numbers, names) if family in (SPARSE, UNKNOWN) else (np.eye(len(names), dtype=np.float32)[numbers], names)


def with_one_hot_targets(examples: Examples, outputs: Mapping[str, int | None]) -> Examples:
    """Gives the classes of some outputs a target each, in every split.

    Args:
        examples: The examples, whose targets of these outputs are numbers of classes, shape `(rows,)` or `(rows, 1)`.
        outputs: How many values the network gives, by the name of the output; `None` where that is not known yet.
    """
    changed: dict[str, Any] = {}
    for output, width in outputs.items():
        targets = {split: getattr(examples, f"y_{split}") for split in SPLITS if getattr(examples, split)}
        numbers = {split: np.asarray(y[output] if output else y) for split, y in targets.items()}
        highest = max(int(y.max()) for y in numbers.values())
        classes = max(width or 0, 0 if output else len(examples.class_names), highest + 1)
        for split, y in numbers.items():
            one_hot = np.eye(classes, dtype=np.float32)[y.reshape(-1).astype(np.int64)]
            before = changed.get(f"y_{split}", targets[split])
            changed[f"y_{split}"] = {**before, output: one_hot} if output else one_hot
    if not changed:
        return examples
    about = examples.source.get("target")
    if isinstance(about, Mapping):  # what `data.json` says of the form
        of = {name: {**about.get(name, {}), "kind": ONE_HOT} for name in outputs if name}
        about = {**about, **(of or {"kind": ONE_HOT})}
        changed["source"] = {**examples.source, "target": about}
    return replace(examples, **changed)


def class_weights(labels: np.ndarray, weights: str | Mapping[str, float], class_names: Sequence[str]) -> np.ndarray:
    """Returns the weight of each row by its class, as Keras' `class_weight` applies it.

    Args:
        labels: Number of the class of each row, shape `(rows,)`; or a target for each class, of which one is 1.
        weights: `balanced`, which gives every class the same sum, and all rows the mean 1; or the weight of each class
            by its name, or by its number where classes have no names. Classes that are not named have weight 1.
        class_names: Name of each class by its number; may be empty.

    Returns:
        Float32 of shape `(rows,)`.

    Raises:
        DataError: The labels are not numbers of classes, or a class is not known.
    """
    shape, dtype = labels.shape, labels.dtype
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    elif labels.ndim == 2 and set(np.unique(labels).tolist()) <= {0, 1} and (labels.sum(axis=1) == 1).all():
        labels = labels.argmax(axis=1)  # a target for each class, as Keras takes it, too
    # A binary loss takes its labels 0 and 1 as floats.
    labels = labels.astype(np.int64) if labels.ndim == 1 and set(np.unique(labels).tolist()) <= {0, 1} else labels
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise DataError(
            "`class_weight` needs a class for each row: whole numbers of shape (rows,). The targets have type "
            f"`{dtype}` and shape {shape}. Remove `class_weight`, or give the rows weights."
        )
    count = max(int(labels.max()) + 1, len(class_names))
    if isinstance(weights, str):  # n / (classes that occur * rows of the class), as scikit-learn has it
        rows = np.bincount(labels, minlength=count)
        of_class = len(labels) / ((rows > 0).sum() * np.maximum(rows, 1))
    else:
        names = [str(name) for name in class_names] or [str(number) for number in range(count)]
        unknown = [str(name) for name in weights if str(name) not in names]
        if unknown:
            raise DataError(
                f"`class_weight` names classes: {quote(names)}. Received: {quote(unknown)}."
                f"{did_you_mean(unknown[0], names)}"
            )
        of_class = np.ones(count)
        for name, weight in weights.items():
            of_class[names.index(str(name))] = weight
    return of_class[labels].astype(np.float32)


def count_outputs(examples: Examples | None, loss: str) -> int:
    """Returns how many outputs a network needs for the targets of some examples.

    Args:
        examples: The examples; `None` where there are none.
        loss: Name of the loss. A binary loss of labels 0 and 1 needs a single output, others one for each class.

    Raises:
        DataError: There are no examples, or their targets are not a single array.
    """
    y = examples.y_train if examples else None
    if not examples or not isinstance(y, np.ndarray):
        raise DataError(
            "`classes: auto` takes the width of the head from the targets of the training rows, a single array. There "
            f"is {'none' if y is None else f'a `{type(y).__name__}`'}. Write the number of classes."
        )
    if y.ndim > 1:
        return y.shape[-1]
    if y.dtype.kind not in "iub" or family_of(loss) == BINARY:
        return 1
    return max(len(examples.class_names), int(y.max()) + 1)
