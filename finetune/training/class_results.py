"""Results for each class or label: a good mean may hide classes that are never recognised."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune.data.examples import Examples
from finetune.data.loss_families import BINARY, ONE_HOT, SPARSE, family_of
from finetune.data.target_facts import names_of_classes
from finetune.models.output_names import by_output_name
from finetune.training.loss_advice import takes_logits

_MOST_CLASSES = 1000
_MOST_VALUES = 2**28  # of outputs, which are in memory


def results_of_classes(model: Any, examples: Examples, batch_size: int = 32) -> dict[str, dict[str, Any]]:
    """Returns rows, recall and precision of each class on the test rows.

    Args:
        model: A compiled model.
        examples: The examples.
        batch_size: Rows in a batch, >= 1.

    Returns:
        For each output by its name, and for each class by its name: `rows`, the test rows of the class; `recall`, the
        share of them that the model recognises; `precision`, the share of the class among the rows that the model
        takes for it; `None` for a share of nothing. Outputs that are no classes of rows are left out.
    """
    losses, targets = by_output_name(model, model.loss), by_output_name(model, examples.y_test)
    families = {name: family_of(_name(losses.get(name, losses.get("")))) for name in targets}
    targets = {
        name: y
        for name, y in targets.items()
        if families[name] in (SPARSE, ONE_HOT, BINARY) and isinstance(y, np.ndarray) and y.ndim <= 2
    }
    first = by_output_name(model, model(examples.test.first(1)[0], training=False)) if targets else {}
    widths = {name: first[name].shape[-1] for name in targets if len(getattr(first.get(name), "shape", ())) == 2}
    if not widths or max(widths.values()) > _MOST_CLASSES or len(examples.test) * sum(widths.values()) > _MOST_VALUES:
        return {}
    rows = examples.test.batches(batch_size).map(lambda x, *others: x)
    outputs = by_output_name(model, model.predict(rows, verbose=0))
    results = {}
    for name in widths:
        loss = losses.get(name, losses.get(""))
        is_at_zero = takes_logits(loss) or "hinge" in _name(loss)
        actual, taken = _of_classes(targets[name], outputs[name], families[name], 0.0 if is_at_zero else 0.5)
        if actual is not None:
            results[name] = _shares(actual, taken, names_of_classes(examples, name))
    return results


def _name(loss: Any) -> str:
    return str(getattr(loss, "name", None) or getattr(loss, "__name__", loss))


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
