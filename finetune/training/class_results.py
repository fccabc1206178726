"""Results for each class or label: a good mean may hide classes that are never recognised."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune.data.examples import Examples
from finetune.data.loss_families import BINARY, ONE_HOT, SPARSE, family_of
from finetune.data.target_facts import names_of_classes
from finetune.models.output_names import by_output_name
from finetune.training.predictions import Predictions, name_of_loss, threshold_of

_MOST_CLASSES = 1000


def results_of_classes(model: Any, examples: Examples, predictions: Predictions) -> dict[str, dict[str, Any]]:
    """Returns rows, recall and precision of each class on the test rows.

    Args:
        model: A compiled model.
        examples: The examples.
        predictions: What it answers to the test rows.

    Returns:
        For each output by its name, and for each class by its name: `rows`, the test rows of the class; `recall`, the
        share of them that the model recognises; `precision`, the share of the class among the rows that the model
        takes for it; `None` for a share of nothing. Outputs that are no classes of rows are left out.
    """
    losses, targets = by_output_name(model, model.loss), by_output_name(model, predictions.targets)
    outputs, results = by_output_name(model, predictions.outputs), {}
    for name, y in targets.items() if predictions.is_all else ():
        loss, scores = losses.get(name, losses.get("")), np.asarray(outputs.get(name, ()))
        family = family_of(name_of_loss(loss))
        is_plain = isinstance(y, np.ndarray) and y.ndim <= 2 and scores.ndim == 2
        if family in (SPARSE, ONE_HOT, BINARY) and is_plain and scores.shape[1] <= _MOST_CLASSES:
            actual, taken = _of_classes(y, scores, family, threshold_of(loss))
            names = names_of_classes(examples, name)
            if actual is not None and len(names) == 1 and actual.shape[1] == 2:  # a label that rows have or not
                actual, taken = actual[:, 1:], taken[:, 1:]
            if actual is not None:
                results[name] = _shares(actual, taken, names)
    return results


def _of_classes(y: np.ndarray, outputs: np.ndarray, family: str, threshold: float) -> tuple[Any, Any]:
    """Returns of which classes rows are, and for which a model takes them: booleans of shape `(rows, classes)`."""
    width = outputs.shape[1]
    if family == BINARY and width > 1:
        return (y > 0.5, outputs > threshold) if y.shape == outputs.shape else (None, None)
    if width == 1:
        labels, answers, width = y.reshape(-1) > 0.5, outputs[:, 0] > threshold, 2
    else:
        labels, answers = (
            y.argmax(axis=1) if y.ndim == 2 and y.shape[1] == width else y.reshape(-1),
            outputs.argmax(axis=1),
        )
    if labels.size != len(outputs) or labels.min() < 0 or labels.max() >= width:
        return None, None
    classes = np.eye(width, dtype=bool)
    return classes[labels.astype(np.int64)], classes[answers.astype(np.int64)]


def _shares(actual: np.ndarray, taken: np.ndarray, names: Any) -> dict[str, Any]:
    hits, rows, answers = (actual & taken).sum(0), actual.sum(0), taken.sum(0)
    known = [*names, *map(str, range(len(names), len(rows)))]
    return {
        name: {
            "rows": int(rows[number]),
            "recall": float(hits[number] / rows[number]) if rows[number] else None,
            "precision": float(hits[number] / answers[number]) if answers[number] else None,
        }
        for number, name in enumerate(known[: len(rows)])
    }


def worst_classes(results: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Returns the classes with the least recall, worst first, `limit` at most; those without test rows are left out."""
    known = [name for name, of in results.items() if of["recall"] is not None]
    return {name: results[name] for name in sorted(known, key=lambda name: results[name]["recall"])[:limit]}
