"""From the columns of a table to what networks take: vectors of features, token ids, and targets.

What is fitted to the data (means, vocabularies, classes) is fitted to the training rows alone, and returned as plain
data beside the arrays.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.data.table_column import Column, cell_number
from finetune.errors import DataError, quote

VECTOR_KINDS = ("number", "category")
_MANY_ROWS = 50  # from which on categories that hardly occur twice are no accident
_MOST_CATEGORIES = 1000  # a column of more is text, an identifier, or needs a network with an embedding


def feature_vectors(
    columns: Sequence[Column], kinds: Mapping[str, str], train: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Joins columns to one vector for each row: normalized numbers, and a 1 at the place of each category.

    A missing number becomes the mean, 0 after normalization. A missing category is a category of its own where
    training rows have missing values, too; all categories that no training row has share the first place.

    Args:
        columns: The columns.
        kinds: `number` or `category` for the columns that are not what they look like, by name.
        train: Indices of the training rows, to which means and categories are fitted.

    Returns:
        Float32 of shape `(rows, features)`, and what was fitted, by the name of the column.

    Raises:
        DataError: A column is text or has too many categories.
    """
    files = {column.name: kind for column in columns if (kind := kinds.get(column.name, "number")) not in VECTOR_KINDS}
    if files:
        name, kind = next(iter(files.items()))
        needs = "a `tokenizer`, or a network that takes text" if kind == "text" else f"a network that takes {kind}s"
        raise DataError(
            f"A vector is made of numbers and categories. `types` says that `{name}` is `{kind}`, which needs {needs}, "
            "and an input of its own. Remove the type, or name the column for another input."
        )
    parts, fitted = [], {}
    for column in columns:
        kind = kinds.get(column.name) or ("category" if column.kind == "text" else "number")
        if kind == "number":
            part, about = _normalized(column, train)
        else:
            part, about = _one_hot(column, train)
        parts.append(part)
        words = {"missing_words": list(column.missing_words)} if column.missing_words else {}
        fitted[column.name] = {"kind": kind, "missing": int(column.missing.sum())} | words | about
    return np.concatenate(parts, axis=1).astype(np.float32), fitted


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
    widths = {name: len(about["categories"]) + 1 if "categories" in about else 1 for name, about in fitted.items()}
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


def _normalized(column: Column, train: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    if column.kind != "number":
        wrong = [text for text in column.values.tolist() if text and not is_number(text)][:3]
        raise DataError(
            f"A column of numbers holds numbers. `{column.name}` also holds {quote(wrong)}. Correct them, or make it a "
            f"category: `types: {{{column.name}: category}}`."
        )
    known = column.values[train][~np.isnan(column.values[train])]
    # In float64, and cast at the end: float32 has 128 seconds to a step in today's time stamps.
    mean, variance = (float(known.mean()), float(known.var())) if len(known) else (0.0, 0.0)
    values = np.where(np.isnan(column.values), mean, column.values) - mean
    # A column that is constant in the training rows says nothing: other values keep their distance to it.
    normalized = values / (variance**0.5 or 1.0)
    return normalized[:, np.newaxis].astype(np.float32), {"mean": mean, "variance": variance}


def _one_hot(column: Column, train: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    texts = column.texts()
    categories = sorted(set(texts[train].tolist()))
    if len(categories) > _MOST_CATEGORIES:
        raise DataError(
            f"A category column has at most {_MOST_CATEGORIES:,} different values. `{column.name}` has "
            f"{len(categories):,}. If it is text, name a `tokenizer` and a network that takes token ids; if it "
            "identifies rows, remove it."
        )
    about: dict[str, Any] = {"categories": categories}
    if len(train) >= _MANY_ROWS and len(categories) > len(train) / 2:
        about["warnings"] = [
            f"`{column.name}` is a category with {len(categories):,} different values in {len(train):,} training "
            "rows. A value that no other row has says nothing of other rows: write numbers or fewer categories in its "
            "place, tokenize it, or leave it out"
        ]
    return category_places(texts.tolist(), categories), about


def category_places(texts: Sequence[str], categories: Sequence[str]) -> np.ndarray:
    """Returns a 1 at the place of each row's category, float32 of shape `(rows, categories + 1)`.

    Args:
        texts: The category of each row; empty where it is missing. Where it is not among the categories, the number
            that it stands for is looked for: `1.0` is `1` in a column of numbers.
        categories: All categories in their order. The first place is that of any other.

    Returns:
        What `keras.layers.StringLookup(vocabulary=categories, output_mode="one_hot")` gives.
    """
    places = {category: place for place, category in enumerate(categories, start=1)}
    encoded = np.zeros((len(texts), len(places) + 1), np.float32)
    for row, text in enumerate(texts):
        same = text if text in places or not is_number(text) else cell_number(float(text))
        encoded[row, places.get(same, 0)] = 1
    return encoded


def is_number(text: str) -> bool:
    """Returns whether a text is a finite number."""
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
