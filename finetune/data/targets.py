"""Targets: what kind they are, and the form in which a loss takes them.

A loss decides the form. Where the loss is `auto` the values decide, by rules that `kind_of_numbers` and `read_target`
state, and `loss_for` names the loss of each kind. What was decided is kept in `Target.about`, and shown.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from finetune.data.examples import SPLITS, Examples, leaves
from finetune.data.labels import encode_classes
from finetune.data.loss_families import BINARY, NUMBERS, ONE_HOT, SPARSE, UNKNOWN, family_of
from finetune.data.table_column import Column
from finetune.data.table_files import Table
from finetune.errors import DataError, quote

AUTO = "auto"
CLASSES, LABELS = "classes", "labels"  # beside `one_hot` and `numbers`, which are named as the losses that take them
MOST_WHOLE_CLASSES = 20
_FORMS = {SPARSE: CLASSES, ONE_HOT: ONE_HOT, BINARY: CLASSES, UNKNOWN: CLASSES}


@dataclass(frozen=True, eq=False)
class Target:
    """The targets of an output.

    Attributes:
        values: Shape `(rows,)` or `(rows, outputs)`.
        class_names: Names of the classes or labels in the order of their numbers; empty for numbers.
        about: How they were read, as plain data: `columns`, and `kind`, which is `classes` (their numbers), `one_hot`,
            `labels` (several a row) or `numbers`; and `reason`, where the values decided.
    """

    values: np.ndarray
    class_names: tuple[str, ...]
    about: dict[str, Any]


def read_target(
    table: Table,
    names: Sequence[str],
    loss: str,
    class_names: Sequence[str] = (),
    *,
    types: Mapping[str, str] | None = None,
    outputs: int | None = None,
) -> Target:
    """Turns target columns into what a loss takes.

    Args:
        table: The table.
        names: The columns: one of classes, of labels separated by `|`, or of numbers; or several, of numbers.
        loss: Name of the loss, which decides between classes and numbers. With `auto` text is classes, text with `|`
            several labels, and numbers are what `kind_of_numbers` says.
        class_names: Names of all classes in the order of their numbers; by default those that occur, sorted.
        types: `number` or `category` for columns that are not what they look like, by name.
        outputs: How many values the network gives for a row, where that is known.

    Raises:
        DataError: A target is missing, or the values are not what the loss takes.
    """
    columns = [table.column(name) for name in names]
    _check_types(columns, types or {})
    _check_present(columns, table)
    table.check_numbers(() if class_names else names, types or {})
    for column in () if class_names else columns:
        _check_lists(column)
    about: dict[str, Any] = {"columns": list(names)}
    written = (types or {}).get(names[0]) if len(names) == 1 else None
    if loss == AUTO:
        kind, about["reason"] = _kind_of_columns(columns, class_names, written, outputs)
        loss = loss_for(kind, outputs)
    family = family_of(loss)
    if len(columns) > 1:
        matrix = np.stack([_numbers(column, loss) for column in columns], axis=1)
        is_labels = family == BINARY
        return Target(matrix, tuple(names) if is_labels else (), about | {"kind": LABELS if is_labels else NUMBERS})
    [column] = columns
    of_classes = family in (SPARSE, ONE_HOT, BINARY) or class_names or written == "category"
    if written == "number" or not of_classes or _is_probability(column, family, written):
        return Target(_numbers(column, loss), (), about | {"kind": NUMBERS})
    if not class_names and written != "category" and _has_fractions(column):
        count = len(np.unique(column.values))
        raise DataError(
            f"The loss `{loss}` takes classes. The target `{column.name}` has numbers with fractions, {count:,} "
            f"different, such as `{column.values[np.flatnonzero(column.values % 1)[0]]:g}`. For numbers take "
            f"`mean_squared_error`; if they are names of classes, set `types: {{{column.name}: category}}`."
        )
    return class_target(column.texts().tolist(), loss, class_names, ordered=column.whole, about=about, outputs=outputs)


def _check_lists(column: Column) -> None:
    """Refuses lists of quantities, as JSON may hold them, which would be taken for labels such as `1.5`."""
    lists = [text for text in column.values.tolist() if "|" in text] if column.kind == "text" else []
    if lists and all(re.fullmatch(r"[-+.\de|]+", text) for text in lists) and any("." in text for text in lists):
        raise DataError(
            f"A list in a target holds labels. Those of `{column.name}` hold numbers with fractions, such as "
            f"`{lists[0][:60]}`. Write each number into a column of its own, and name them: `target: [y1, y2]`."
        )


def _has_fractions(column: Column) -> bool:
    return column.kind == "number" and bool((column.values % 1 != 0).any())


def _is_probability(column: Column, family: str, written: str | None) -> bool:
    """Whether targets of a binary loss lie between its two classes, as labels that several people voted on do."""
    is_within = _has_fractions(column) and column.values.min() >= 0 and column.values.max() <= 1
    return family == BINARY and written is None and is_within


def class_target(
    values: Sequence[str],
    loss: str,
    class_names: Sequence[str] = (),
    *,
    ordered: bool = False,
    about: Mapping[str, Any] | None = None,
    outputs: int | None = None,
) -> Target:
    """Turns names of classes into what a loss takes.

    Args:
        values: Name of the class of each row, or several names, separated by `|`, for a binary loss.
        loss: Name of the loss; `auto` takes the numbers of the classes.
        class_names: Names of all classes in the order of their numbers; by default those that occur, sorted.
        ordered: Whether the names are whole numbers, and sorted as such.
        about: How they were read.
        outputs: How many values the network gives for a row, where that is known.

    Raises:
        DataError: A row has a class that is not among `class_names`, or the loss takes numbers.
    """
    about = dict(about or {})
    if loss == AUTO:
        count = len(set(class_names) or set(values))
        about.setdefault("reason", f"{count} classes")
        loss = loss_for(CLASSES, outputs)
    encoded, names = encode_classes(values, loss, class_names, ordered=ordered)
    if outputs == 1 and family_of(loss) == BINARY and encoded.ndim > 1 and "reason" in about:
        raise DataError(
            f"A network with a single output tells two classes apart. The target has {len(names)}: {quote(names)}. "
            "Give the head as many outputs, with `head: {classes: auto}`."
        )
    kind = LABELS if encoded.ndim > 1 and family_of(loss) == BINARY else _FORMS[family_of(loss)]
    return Target(encoded, names, about | {"kind": kind})


def loss_for(kind: str, outputs: int | None) -> str:
    """Returns the loss that `auto` stands for.

    Args:
        kind: `classes`, `one_hot`, `labels` or `numbers`.
        outputs: How many values the network gives for a row, where that is known.
    """
    if kind == NUMBERS:
        return "mean_squared_error"
    if kind == ONE_HOT:
        return "categorical_crossentropy"
    return "binary_crossentropy" if kind == LABELS or outputs == 1 else "sparse_categorical_crossentropy"


def metrics_for(kind: str) -> tuple[Any, ...]:
    """Returns the metrics that `auto` stands for, as a recipe spells them.

    Args:
        kind: As for `loss_for`.
    """
    if kind == NUMBERS:
        return ("mean_absolute_error",)
    if kind == LABELS:
        return ("binary_accuracy", {"name": "f1_score", "average": "macro", "threshold": 0.5})
    return ("accuracy",)


def kind_of_numbers(values: np.ndarray, outputs: int | None) -> tuple[str, str]:
    """Decides whether numbers are classes or quantities, by what they are and by the width of the network's output.

    Fractions are quantities. Whole numbers are classes for a network with several outputs; for a network with one,
    where there are two of them; and where the width is yet to be chosen, if there are at most 20 different.

    Args:
        values: The numbers, a target for each row.
        outputs: How many values the network gives for a row, where that is known.

    Returns:
        `classes` or `numbers`, and the reason.
    """
    different = np.unique(values)
    if (different != np.rint(different)).any():
        return NUMBERS, "numbers with fractions"
    reason = f"{len(different):,} different whole numbers"
    if outputs is None:
        return (CLASSES if len(different) <= MOST_WHOLE_CLASSES else NUMBERS), reason
    reason += f", and a network with {outputs} output{'s' if outputs > 1 else ''}"
    return (CLASSES if outputs > 1 or len(different) <= 2 else NUMBERS), reason


def kind_of_array(y: Any, outputs: int | None) -> tuple[str, str]:
    """Decides what the targets in an array are.

    Args:
        y: The targets, shape `(rows, ...)`.
        outputs: Size of the last axis of the network's output, where that is known.

    Returns:
        `classes`, `one_hot`, `labels` or `numbers`, and the reason.

    Raises:
        DataError: The targets are not an array of numbers, so nothing can be decided.
    """
    if not isinstance(y, np.ndarray) or y.dtype.kind not in "biuf":
        raise DataError(
            "`loss: auto` looks at all targets, an array of numbers in memory. There is a "
            f"`{getattr(y, 'dtype', type(y).__name__)}`. Write the name of the loss, such as "
            "`sparse_categorical_crossentropy`."
        )
    if y.ndim == 1 or y.shape[-1] == 1 or (y.dtype.kind in "biu" and y.ndim > 2):
        if y.dtype.kind == "b":
            return CLASSES, "`true` and `false`"
        low, high = y.min(), y.max()
        if outputs == 1 and not (low >= 0 and high <= 1):
            return NUMBERS, f"numbers from {low:g} to {high:g}, and a network with 1 output"
        if low < 0:
            return NUMBERS, "numbers below 0"
        if outputs is None and y.dtype.kind == "f" and high > 1:
            return NUMBERS, "numbers that are not of a type of whole numbers"
        return kind_of_numbers(y, outputs)
    if not (y.min() >= 0 and y.max() <= 1):
        return NUMBERS, f"{y.shape[-1]} numbers a row"
    if np.allclose(y.sum(axis=-1, dtype=np.float64), 1, atol=1e-3):
        return ONE_HOT, f"{y.shape[-1]} values a row that add up to 1"
    if (y == np.rint(y)).all():
        return LABELS, f"{y.shape[-1]} values of 0 or 1 a row"
    return NUMBERS, f"{y.shape[-1]} numbers a row"


def number_text_targets(examples: Examples, losses: Mapping[str, str]) -> Examples:
    """Numbers the classes of targets that are text, in the same order in every split.

    Args:
        examples: The examples.
        losses: Name of the loss of each output; the name of an only output is empty.

    Raises:
        DataError: The loss takes numbers.
    """
    splits = [name for name in SPLITS if getattr(examples, name)]
    changed, class_names = {name: getattr(examples, f"y_{name}") for name in splits}, examples.class_names
    for output, array in list(leaves("", examples.y_train)):
        if getattr(getattr(array, "dtype", None), "kind", "") not in ("U", "S"):
            continue
        columns = {name: np.char.strip(_part(changed[name], output).astype(np.str_)) for name in splits}
        together = np.concatenate([column.reshape(-1) for column in columns.values()]).tolist()
        loss = losses.get(output, losses.get("", AUTO))
        target = class_target(together, loss, examples.class_names)
        class_names, start = (class_names if output else target.class_names), 0
        for name, column in columns.items():
            numbered = target.values[start : start + column.size]
            start += column.size
            changed[name] = {**changed[name], output: numbered} if output else numbered
    arrays = {f"y_{name}": value for name, value in changed.items()}
    return replace(examples, **arrays, class_names=class_names)


def _part(y: Any, output: str) -> np.ndarray:
    return y[output] if output else y


def _check_types(columns: Sequence[Column], types: Mapping[str, str]) -> None:
    for column in columns:
        if types.get(column.name, "number") not in ("number", "category"):
            raise DataError(
                f"A target is classes, labels or numbers. `types` says that `{column.name}` is `{types[column.name]}`. "
                "Write `number` or `category`. Masks and other pictures as targets come from a `builder`."
            )


def _check_present(columns: Sequence[Column], table: Table) -> None:
    for column in columns:
        if column.missing.any():
            rows = np.flatnonzero(column.missing)
            words = (
                f" {quote(column.missing_words)} counts as missing; `missing: []` keeps it as a class."
                if column.missing_words
                else ""
            )
            several = any("|" in text for text in column.texts().tolist())
            advice = " A row that has none of the labels is written `|`." if several else ""
            raise DataError(
                f"Every row needs a target. `{column.name}` is missing in {len(rows):,} of {len(table):,} rows: "
                f"{table.places_of(rows)}. Remove these rows, or fill them in.{words}{advice}"
            )


def _kind_of_columns(
    columns: Sequence[Column], class_names: Sequence[str], written: str | None, outputs: int | None
) -> tuple[str, str]:
    if len(columns) > 1:
        is_labels = all(column.kind == "number" and set(column.values.tolist()) <= {0.0, 1.0} for column in columns)
        return (LABELS, f"{len(columns)} columns of 0 and 1") if is_labels else (NUMBERS, f"{len(columns)} columns")
    [column] = columns
    if written == "number":
        return NUMBERS, "`types` says so"
    if column.kind == "number" and not class_names and written is None:
        return kind_of_numbers(column.values, outputs)
    texts = column.texts()
    if any("|" in text for text in texts.tolist()):
        return LABELS, "labels separated by `|`"
    different = len(set(texts.tolist()))
    if different > max(MOST_WHOLE_CLASSES, len(texts) / 2) and not (class_names or written):
        raise DataError(
            f"A class has several rows. The target `{column.name}` has {different:,} different values in "
            f"{len(texts):,} rows, such as {quote(dict.fromkeys(texts[:50].tolist()), limit=3)}. Name the column "
            "that holds the classes, or a loss."
        )
    return CLASSES, f"{different} classes" + (", as `types` says" if written else "")


def _numbers(column: Column, loss: str) -> np.ndarray:
    if column.kind != "number":
        raise DataError(
            f"The loss `{loss}` takes numbers. The target `{column.name}` is text, such as "
            f"{quote(dict.fromkeys(column.values.tolist()), limit=3)}. For classes take the loss "
            "`sparse_categorical_crossentropy`."
        )
    return column.values.astype(np.float32)
