"""From the columns of a table to what networks take: vectors of features, token ids, and targets.

What is fitted to the data (means, vocabularies, classes) is fitted to the training rows alone, and returned as plain
data beside the arrays.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.data.aligned_arrays import aligned_array
from finetune.data.labels import names_alike
from finetune.data.table_column import Column, cell_number
from finetune.errors import DataError, quote

VECTOR_KINDS = ("number", "category")
_MANY_ROWS = 50  # from which on categories that hardly occur twice are no accident
_MOST_CATEGORIES = 1000  # a column of more is text, an identifier, or needs a network with an embedding


def feature_vectors(
    columns: Sequence[Column], kinds: Mapping[str, str], splits: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Joins columns to one vector for each row: normalized numbers, and a 1 at the place of each category.

    A missing number becomes the mean, 0 after normalization. A missing category is a category of its own where
    training rows have missing values, too; all categories that no training row has share the first place.

    Args:
        columns: The columns. One is needed at a time, those of numbers twice, so that not all must lie in memory.
        kinds: `number` or `category` for the columns that are not what they look like, by name.
        splits: Indices of the rows of each split. Means and categories are fitted to those to `train`.

    Returns:
        Float32 of shape `(rows, features)` for each split, read only; and what was fitted, by the name of the column.

    Raises:
        DataError: A column is text or has too many categories.
    """
    fitted: dict[str, Any] = {}
    categories: list[np.ndarray | None] = []  # the place of each row's category, for each column
    widths: list[int] = []
    for column in columns:
        kind = kinds.get(column.name) or ("category" if column.kind == "text" else "number")
        _check_kind(column.name, kind)
        fit = _mean_and_variance if kind == "number" else _categories
        about: dict[str, Any] = fit(column, splits["train"])
        words = {"missing_words": list(column.missing_words)} if column.missing_words else {}
        fitted[column.name] = {"kind": kind, "missing": int(column.missing.sum())} | words | about
        widths.append(width_of(about))
        categories.append(None if kind == "number" else _places(column.texts().tolist(), about["categories"]))
    vectors = {name: aligned_array((len(rows), sum(widths)), np.float32) for name, rows in splits.items()}
    start = 0
    for number, (places, width) in enumerate(zip(categories, widths, strict=True)):
        values = _normalized(column := columns[number], fitted[column.name]) if places is None else places
        for name, rows in splits.items():
            if places is None:
                vectors[name][:, start] = values[rows]
            else:
                vectors[name][np.arange(len(rows)), start + values[rows]] = 1
        start += width
    for made in vectors.values():
        made.flags.writeable = False
    return vectors, fitted


def width_of(about: Mapping[str, Any]) -> int:
    """Returns how many values of the vector a column makes.

    Args:
        about: What `feature_vectors` has fitted to it.
    """
    return len(about["categories"]) + 1 if "categories" in about else 1


def _check_kind(name: str, kind: str) -> None:
    if kind not in VECTOR_KINDS:
        needs = "a `tokenizer`, or a network that takes text" if kind == "text" else f"a network that takes {kind}s"
        raise DataError(
            f"A vector is made of numbers and categories. `types` says that `{name}` is `{kind}`, which needs {needs}, "
            "and an input of its own. Remove the type, or name the column for another input."
        )


class VectorWidthError(DataError):
    """The columns make a vector of another length than the network takes.

    Attributes:
        fitted: What was fitted, by the name of the column.
    """

    fitted: Mapping[str, Mapping[str, Any]]


def check_width(fitted: Mapping[str, Mapping[str, Any]], width: int, taken: int | None) -> None:
    """Checks that columns make a vector as long as a network takes.

    Args:
        fitted: What `feature_vectors` has fitted.
        width: Values of a row.
        taken: Values that the network takes; `None` where any will do.

    Raises:
        VectorWidthError: The lengths differ.
    """
    if taken in (None, width):
        return
    widths = {name: width_of(about) for name, about in fitted.items()}
    wide = ", ".join(f"`{name}` {of}" for name, of in widths.items() if of > 1)
    numbers = [name for name, of in widths.items() if of == 1]
    parts = [f"{len(numbers)} from the number{'s' if len(numbers) > 1 else ''} {quote(numbers)}"] if numbers else []
    parts += [f"of categories {wide}"] if wide else []
    error = VectorWidthError(
        f"The columns must make a vector as long as the network takes, {taken}. They make {width} values: "
        f"{'; '.join(parts)}. A number is a value; a category has a value for each name, and another for names that no "
        f"training row has. Choose other columns, or a network that takes {width} values."
    )
    error.fitted = fitted
    raise error


def _mean_and_variance(column: Column, train: np.ndarray) -> dict[str, float]:
    if column.kind != "number":
        wrong = [text for text in column.values.tolist() if text and not is_number(text)][:3]
        raise DataError(
            f"A column of numbers holds numbers. `{column.name}` also holds {quote(wrong)}. Correct them, or make it a "
            f"category: `types: {{{column.name}: category}}`."
        )
    known = column.values[train]
    known = known[~np.isnan(known)]
    # In float64, and cast at the end: float32 has 128 seconds to a step in today's time stamps.
    return (
        {"mean": float(known.mean()), "variance": float(known.var())} if len(known) else {"mean": 0.0, "variance": 0.0}
    )


def _normalized(column: Column, about: Mapping[str, Any]) -> np.ndarray:
    centred = np.where(column.missing, about["mean"], column.values) - about["mean"]
    # A column that is constant in the training rows says nothing: other values keep their distance to it.
    return (centred / (about["variance"] ** 0.5 or 1.0)).astype(np.float32)


def _categories(column: Column, train: np.ndarray) -> dict[str, Any]:
    categories = sorted(set(column.texts()[train].tolist()))
    if len(categories) > _MOST_CATEGORIES:
        raise DataError(
            f"A category column has at most {_MOST_CATEGORIES:,} different values. `{column.name}` has "
            f"{len(categories):,}. If it is text, name a `tokenizer` and a network that takes token ids; if it "
            "identifies rows, remove it."
        )
    about: dict[str, Any] = {"categories": categories}
    warnings = []
    if alike := names_alike(categories):
        warnings.append(
            f"Categories of `{column.name}` that differ by upper case, spaces, hyphens or underscores alone are "
            f"different ones: {alike}. If they are one, write them alike"
        )
    if len(train) >= _MANY_ROWS and len(categories) > len(train) / 2:
        warnings.append(
            f"`{column.name}` is a category with {len(categories):,} different values in {len(train):,} training "
            "rows. A value that no other row has says nothing of other rows: write numbers or fewer categories in its "
            "place, tokenize it, or leave it out"
        )
    return about | ({"warnings": warnings} if warnings else {})


def category_places(texts: Sequence[str], categories: Sequence[str]) -> np.ndarray:
    """Returns a 1 at the place of each row's category, float32 of shape `(rows, categories + 1)`.

    Args:
        texts: The category of each row; empty where it is missing. Where it is not among the categories, the number
            that it stands for is looked for: `1.0` is `1` in a column of numbers.
        categories: All categories in their order. The first place is that of any other.

    Returns:
        What `keras.layers.StringLookup(vocabulary=categories, output_mode="one_hot")` gives.
    """
    encoded = np.zeros((len(texts), len(categories) + 1), np.float32)
    encoded[np.arange(len(texts)), _places(texts, categories)] = 1
    return encoded


def _places(texts: Sequence[str], categories: Sequence[str]) -> np.ndarray:
    """Returns the place of the category of each row, as `category_places`; int32 of shape `(rows,)`."""
    places = {category: place for place, category in enumerate(categories, start=1)}

    def place(text: str) -> int:
        same = text if text in places or not is_number(text) else cell_number(float(text))
        return places.get(same, 0)

    of_texts = {text: place(text) for text in set(texts)}
    return np.fromiter(map(of_texts.__getitem__, texts), np.int32, len(texts))


def is_number(text: str) -> bool:
    """Returns whether a text is a finite number."""
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
