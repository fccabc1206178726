"""From the rows that a source gives to examples: limited, numbered, split, and without what cannot be read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from finetune.build.source_keys import (
    class_names_of,
    class_targets,
    has_classes,
    limited_rows,
    loss_names,
    named_by_splits,
    split_as_asked,
    split_said_by_column,
)
from finetune.data.class_folders import ClassFiles
from finetune.data.examples import SPLITS, Examples, Split, check_examples, leaves, make_examples
from finetune.data.file_names import RowPlaces
from finetune.data.loss_families import NUMBERS, family_of
from finetune.data.npz import read_npz, read_npz_splits
from finetune.data.row_checks import read_every_row
from finetune.data.splits import Indices
from finetune.data.targets import AUTO
from finetune.errors import DataError, quote
from finetune.recipe.loader import placed, resolve_path
from finetune.recipe.schema import Recipe


@dataclass(frozen=True, eq=False)
class SourceRows:
    """Rows as a source gives them: of a split, or of all splits together.

    Attributes:
        split: Inputs, targets and weights.
        column: The values of the column by which rows are split, where the recipe names it.
        places: Where each row is, such as `train.tfrecord:17`; empty where that says nothing.
        unreadable: Places of rows that were skipped because they cannot be read.
    """

    split: Split
    column: np.ndarray | None = None
    places: Sequence[str] = ()
    unreadable: Sequence[str] = ()

    def select(self, rows: np.ndarray) -> "SourceRows":
        """Returns the rows at some indices."""
        if len(rows) == len(self.split) and (rows == np.arange(len(rows))).all():
            return self  # an array in a file stays there
        column = None if self.column is None else self.column[rows]
        places = RowPlaces(self.places.__getitem__, rows) if self.places else ()
        return replace(self, split=self.split.select(rows), column=column, places=places)


def split_examples(
    recipe: Recipe,
    parts: Mapping[str, SourceRows],
    about: Mapping[str, Any],
    class_names: Sequence[str] = (),
    network: Any = None,
) -> Examples:
    """Makes examples of the rows of a source.

    Args:
        recipe: The recipe, with `limit`, `class_names`, `split` and `on_error`.
        parts: Rows by the name of their split; or all rows, by an empty name, which are split as the recipe says.
        about: What is known of the source, as plain data.
        class_names: Names of the classes, where the source knows them and the recipe gives none.
        network: The network, whose outputs decide with the loss what becomes of classes that are text.

    Raises:
        DataError: The splits cannot be made, or the rows of different splits do not fit together.
    """
    parts = named_by_splits(recipe, parts)
    for name, rows in parts.items():
        lengths = {leaf: len(array) for part in ("x", "y", "weights") for leaf, array in _arrays(rows.split, part)}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"`{leaf}` {length:,}" for leaf, length in lengths.items())
            raise DataError(f"Every row has inputs and a target. The rows{f' of `{name}`' if name else ''}: {shown}.")
    parts = _limited(recipe, parts)
    if recipe.data.on_error == "skip":
        parts = {name: _readable(rows) for name, rows in parts.items()}
    class_names = class_names_of(recipe) or tuple(class_names)
    parts, class_names, of_target = _numbered(recipe, parts, class_names, network)
    if "" in parts:
        rows = parts[""]
        parts = {name: rows.select(chosen) for name, chosen in _indices(recipe, rows, class_names).items()}
    elif recipe.data.split:  # of the training rows some validate; the source says which rows test
        rows = parts["train"]
        chosen = _indices(recipe, rows, class_names, has_test=True)
        parts |= {name: rows.select(chosen[name]) for name in ("train", "validation")}
    skipped = [place for rows in parts.values() for place in rows.unreadable]
    examples = make_examples(
        **{name: rows.split for name, rows in parts.items()},
        class_names=tuple(class_names),
        source={**about, **of_target, **({"skipped": list(dict.fromkeys(skipped))} if skipped else {})},
        places={name: rows.places for name, rows in parts.items() if rows.places},
    )
    return check_examples(examples)


def rows_of_class_files(x: Any, files: ClassFiles) -> dict[str, SourceRows]:
    """Returns the rows of files in folders of classes, by the split that their folders name.

    Args:
        x: Inputs, a row for each file.
        files: The files.
    """
    rows = SourceRows(Split(x, files.labels), places=files.paths.names)
    return {name: rows.select(np.flatnonzero(files.splits == name)) for name in dict.fromkeys(files.splits.tolist())}


def left_out(files: ClassFiles, endings: Sequence[str]) -> dict[str, Any]:
    """Returns what `data.json` says of files that were not taken for their ending; empty where all were."""
    return {"warnings": warnings} if (warnings := files.warnings(endings)) else {}


def examples_as_asked(recipe: Recipe, examples: Examples) -> Examples:
    """Returns examples that have splits already, limited and numbered as the recipe asks.

    Raises:
        DataError: The recipe splits them again, or they do not fit together.
    """
    checked = check_examples(examples)
    parts = {}
    for name in SPLITS:
        split = getattr(checked, name)
        if split is not None:
            parts[name] = SourceRows(split, places=examples.places.get(name, ()))
    return split_examples(recipe, parts, examples.source, examples.class_names)


def npz_examples(recipe: Recipe, file: str) -> Examples:
    """Makes examples of the arrays in a NumPy file.

    Raises:
        DataError: The file cannot be read, or its arrays do not fit together.
    """
    path = resolve_path(recipe, file)
    splits, class_names = read_npz_splits(path)
    if "" not in splits and not recipe.data.split:
        read_npz(path)  # names what is missing
    parts = {name: SourceRows(split) for name, split in splits.items()}
    try:
        return split_examples(recipe, parts, {}, class_names)
    except DataError as error:
        raise DataError(f"`{path}`: {error}") from None


def _arrays(split: Split, part: str) -> Iterator[tuple[str, Any]]:
    value = getattr(split, part)
    return leaves(part, value) if value is not None else iter(())


def _limited(recipe: Recipe, parts: Mapping[str, SourceRows]) -> dict[str, SourceRows]:
    ends = np.cumsum([len(rows.split) for rows in parts.values()])
    chosen = limited_rows(recipe, int(ends[-1]))
    limited = {}
    for (name, rows), end in zip(parts.items(), ends, strict=True):
        start = end - len(rows.split)
        limited[name] = rows.select(chosen[(chosen >= start) & (chosen < end)] - start)
    return limited


def _readable(rows: SourceRows) -> SourceRows:
    bad = read_every_row(Split(rows.split.x, None)).unreadable
    if len(bad) == len(rows.split):
        raise DataError(
            f"Rows that cannot be read are skipped, and none of {len(bad):,} can: {next(iter(bad.values()))}."
        )
    kept = np.array([row for row in range(len(rows.split)) if row not in bad], np.int64)
    names = [rows.places[row] if rows.places else f"row {row}" for row in bad]
    return replace(rows.select(kept), unreadable=[*rows.unreadable, *names])


def _numbered(
    recipe: Recipe, parts: dict[str, SourceRows], class_names: Sequence[str], network: Any
) -> tuple[dict[str, SourceRows], Sequence[str], dict[str, Any]]:
    """Numbers classes that are given by name, in the form that the loss takes; checks numbers against the names.

    Returns:
        The rows, the names of the classes, and what is known of a target that was text.
    """
    targets = {name: rows.split.y for name, rows in parts.items()}
    first = next(iter(targets.values()))
    if not isinstance(first, np.ndarray):
        return parts, class_names, {}
    if first.dtype.kind in "US":
        loss = loss_names(recipe).get("", AUTO)
        if family_of(loss) == NUMBERS:
            raise DataError(
                f"`{loss}` takes numbers, and the targets are text such as "
                f"{quote(first.ravel()[:2])}. Choose a loss of classes, such as `sparse_categorical_crossentropy`."
            )
        texts = [str(each) for y in targets.values() for each in np.asarray(y).ravel()]
        target = class_targets(recipe, texts, network, class_names)
        sizes = [np.asarray(y).size for y in targets.values()]
        for (name, y), encoded in zip(targets.items(), np.split(target.values, np.cumsum(sizes)[:-1]), strict=True):
            # Labels of the parts of a row, such as its tokens, keep their places.
            shape = np.asarray(y).shape if np.asarray(y).ndim > 1 and np.asarray(y).shape[1:] != (1,) else (len(y),)
            parts[name] = replace(
                parts[name], split=replace(parts[name].split, y=encoded.reshape(*shape, *encoded.shape[1:]))
            )
        return parts, target.class_names, {"target": target.about}
    highest = max((int(y.max()) for y in targets.values() if len(y) and y.dtype.kind in "iu"), default=-1)
    if class_names and highest >= len(class_names):
        raise DataError(
            f"`class_names` names a class for each number from 0. There are {len(class_names)} names, and the targets "
            f"go up to {highest}. Name all classes."
        )
    return parts, class_names, {}


def _indices(recipe: Recipe, rows: SourceRows, class_names: Sequence[str], *, has_test: bool = False) -> Indices:
    split, count, y = recipe.data.split, len(rows.split), rows.split.y
    if split and split.column and rows.column is None:
        with placed(recipe, "data", "split", "column"):
            raise DataError(
                f"`split.column` names a part of the rows, and these have no parts with names. Received: "
                f"`{split.column}`. Split them `random`, or give rows as dicts."
            )
    of_classes = isinstance(y, np.ndarray) and (class_names or has_classes(recipe, y))
    labels = None
    if of_classes and y.ndim == 1:
        labels = y
    elif of_classes and y.ndim == 2 and y.shape[1] == 1:
        labels = y[:, 0]
    elif of_classes and y.ndim == 2 and (y.sum(axis=1) == 1).all():  # a column for each class
        labels = y.argmax(axis=1)
    if split and split.column and not split.by:
        return split_said_by_column(recipe, [str(each) for each in np.asarray(rows.column).ravel()], labels)
    keys = rows.column if rows.column is not None else rows.places or [str(row) for row in range(count)]
    return split_as_asked(recipe, count, labels, keys, test=np.zeros(0, np.int64) if has_test else None)
