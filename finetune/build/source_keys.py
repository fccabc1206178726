"""Keys of `data` that mean the same whatever the source: `limit`, `class_names`, `split`; and what a network takes."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from finetune.data.splits import Indices, split_rows
from finetune.errors import DataError
from finetune.recipe.data import SplitSpec
from finetune.recipe.loader import resolve_path
from finetune.recipe.schema import Recipe


def network_inputs(network: Any) -> Mapping[str, Any]:
    """Returns the symbolic inputs of a network by name; the name of an only input is empty."""
    is_known = isinstance(network, keras.Function | keras.Sequential)
    tensors: list[Any] = list(getattr(network, "inputs", None) or ()) if is_known else []
    return {tensor.name: tensor for tensor in tensors} if len(tensors) > 1 else {"": tensors[0] if tensors else None}


def limited_rows(recipe: Recipe, rows: int) -> np.ndarray:
    """Returns the indices of the rows that `limit` leaves, taken evenly so that classes keep their shares."""
    limit = min(recipe.data.limit or rows, rows)
    return np.linspace(0, rows - 1, limit).round().astype(int)


def class_names_of(recipe: Recipe) -> tuple[str, ...]:
    """Returns the names of all classes in the order that the recipe or its file of names gives; empty without either.

    Raises:
        DataError: The file does not exist.
    """
    if not recipe.data.class_names_file:
        return recipe.data.class_names
    path = resolve_path(recipe, recipe.data.class_names_file)
    if not path.is_file():
        raise DataError(f"The file of class names `{path}` does not exist.")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def split_as_asked(recipe: Recipe, rows: int, labels: Any, keys: Any) -> Indices:
    """Splits rows as `data.split` says; without it, a fifth of them test.

    Args:
        recipe: The recipe.
        rows: Number of rows.
        labels: The class of each row; `None` where there are no classes.
        keys: The key of each row, for a split by `group` or `hash`; or `None`.

    Raises:
        DataError: A split would be empty, or the rows have no classes or keys to split them by.
    """
    split = recipe.data.split or SplitSpec()
    by = split.by or ("random" if labels is None else "stratified")
    if split.column and not split.by:
        by = "group"
    options: Any = {"test": split.test, "validation": split.validation, "by": by, "seed": recipe.seed}
    return split_rows(rows, **options, labels=labels, keys=keys)
