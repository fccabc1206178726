"""What the targets of a data set are, in figures: rows of each class or label; mean, spread and range of numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.data.examples import SPLITS, Examples, class_counts, leaves
from finetune.data.loss_families import BINARY, ONE_HOT, SPARSE, family_of

_MOST_COUNTED = 100_000  # classes


def describe(examples: Examples, losses: Mapping[str, str]) -> dict[str, Any]:
    """Returns what is known about examples, as plain data: `data.json` of a run.

    Args:
        examples: The examples.
        losses: Name of the loss of each output by its name; the name of an only output is empty.
    """
    rows = {name: len(split) for name in SPLITS if (split := getattr(examples, name))}
    facts = {name: of for name in losses if (of := _facts(examples, name, losses[name]))}
    described = {"source": dict(examples.source), "rows": rows}
    described |= {"class_names": list(examples.class_names)} if examples.class_names else {}
    return described | (facts.get("", {}) if list(losses) == [""] else {"outputs": facts})


def names_of_classes(examples: Examples, output: str = "") -> tuple[str, ...]:
    """Returns the names of the classes or labels of an output in the order of their numbers; empty where unknown.

    Args:
        examples: The examples.
        output: Name of the output; empty for the only one.
    """
    about = examples.source.get("target")
    about = about.get(output) if output and isinstance(about, Mapping) else None
    return tuple(about.get("class_names", ())) if isinstance(about, Mapping) else examples.class_names


def _facts(examples: Examples, output: str, loss: str) -> dict[str, Any]:
    splits = {name: split for name in SPLITS if (split := getattr(examples, name))}
    targets = {name: dict(leaves("", split.y)).get(output) for name, split in splits.items()}
    y = {name: array for name, array in targets.items() if isinstance(array, np.ndarray) and array.dtype.kind in "biuf"}
    if y.keys() != targets.keys() or any(array.ndim > 2 for array in y.values()):
        return {}  # read when they are needed, or values for each pixel
    names, family = names_of_classes(examples, output), family_of(loss)
    classes = max(len(names), _classes(list(y.values())))
    if (family in (SPARSE, ONE_HOT, BINARY) or names) and 0 < classes <= _MOST_COUNTED:
        counts = {name: class_counts(array, classes) for name, array in y.items()}
        if all(of is not None for of in counts.values()):
            known = names or [str(number) for number in range(len(next(iter(counts.values())) or ()))]
            return {"class_names": list(known), "rows_of_classes": counts}
    train = y["train"].reshape(len(y["train"]), -1)
    return {"numbers": dict(zip(_columns(examples, output, train.shape[1]), map(_spread, train.T), strict=True))}


def _classes(arrays: Sequence[np.ndarray]) -> int:
    """Returns how many classes there are at least: numbers of classes begin at 0."""
    return max(array.shape[1] if array.ndim > 1 and array.shape[1] > 1 else int(array.max()) + 1 for array in arrays)


def _columns(examples: Examples, output: str, width: int) -> Sequence[str]:
    about = examples.source.get("target") or {}
    about = about.get(output) if output and isinstance(about, Mapping) else about
    columns = about.get("columns", ()) if isinstance(about, Mapping) else ()
    return columns if len(columns) == width else [output] if width == 1 else [str(number) for number in range(width)]


def _spread(values: np.ndarray) -> dict[str, float]:
    values = values.astype(np.float64)
    figures = {
        "mean": values.mean(),
        "standard_deviation": values.std(),
        "least": values.min(),
        "greatest": values.max(),
    }
    return {name: float(value) for name, value in figures.items()}
