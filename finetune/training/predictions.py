"""What a network answers to the test rows: predicted once at the end of a run, for all that is said about them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.examples import Examples
from finetune.data.loss_families import BINARY, NUMBERS, ONE_HOT, SPARSE, family_of
from finetune.data.rows import rows_of, take
from finetune.data.target_facts import names_of_classes
from finetune.models.output_names import by_output_name
from finetune.results.report.output_facts import CLASSES, LABELS, QUANTITIES, OutputRows
from finetune.training.loss_advice import takes_logits

_MOST_VALUES = 2**28  # of outputs with a value for each class or label
_MOST_DENSE_VALUES = 2**24  # of others, such as a class for each pixel


@dataclass(frozen=True, eq=False)
class Predictions:
    """Targets and outputs of test rows.

    Attributes:
        rows: Indices of the rows in the test split, int64; all of them, or evenly spaced ones where they are too many.
        outputs: What the network gives, in its own structure; float arrays of shape `(rows, ...)`.
        targets: The targets of the rows, in the structure of the examples.
        weights: Their weights in the loss, or `None`.
        is_all: Whether these are all test rows.
    """

    rows: np.ndarray
    outputs: Any
    targets: Any
    weights: Any
    is_all: bool


def predict_test_rows(model: Any, examples: Examples, batch_size: int = 32) -> Predictions:
    """Predicts the test rows, or as many as outputs of bounded size leave.

    Args:
        model: A compiled model.
        examples: The examples.
        batch_size: Rows in a batch, >= 1.
    """
    count = len(examples.test)
    first = keras.tree.flatten(model(examples.test.first(1)[0], training=False))
    width = sum(int(np.prod(each.shape[1:])) for each in first)
    most = max(_MOST_VALUES if all(len(each.shape) <= 2 for each in first) else _MOST_DENSE_VALUES, width) // width
    rows = np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(np.int64)
    split = examples.test if count <= most else examples.test.select(rows)
    outputs = model.predict(split.batches(batch_size).map(lambda x, *others: x), verbose=0)
    y, weights = (None if part is None else _values(part, len(rows)) for part in (split.y, split.weights))
    return Predictions(rows, outputs, y, weights, count <= most)


def _values(arrays: Any, count: int) -> Any:
    """Returns arrays as they are, and the values of rows that are read when they are needed."""
    if all(isinstance(leaf, np.ndarray) for leaf in keras.tree.flatten(arrays)):
        return arrays
    return keras.tree.map_structure(np.asarray, take(rows_of(arrays), tf.range(count, dtype=tf.int64)))


def rows_of_outputs(model: Any, examples: Examples, predictions: Predictions) -> dict[str, OutputRows]:
    """Returns targets and answers of each output by its name; outputs that are none of the three kinds are left out.

    Args:
        model: The compiled model.
        examples: The examples, which know the names of classes.
        predictions: What `predict_test_rows` has returned.
    """
    losses, targets = by_output_name(model, model.loss), by_output_name(model, predictions.targets)
    outputs, kept = by_output_name(model, predictions.outputs), {}
    for name, y in targets.items():
        loss, scores = losses.get(name, losses.get("")), np.asarray(outputs.get(name, ()))
        is_plain = all(isinstance(each, np.ndarray) and 0 < each.ndim <= 2 for each in (y, scores))
        if is_plain and y.dtype.kind in "biuf" and len(y) == len(scores):
            columns = tuple(_columns(examples, name)) or ((name,) if name else ())
            scores = np.asarray(scores, np.float64).reshape(len(y), -1)
            if of := _output_rows(y, scores, loss, names_of_classes(examples, name), columns):
                kept[name] = of
    return kept


def name_of_loss(loss: Any) -> str:
    """Returns the name of a loss that is a name, a function or an object."""
    return str(getattr(loss, "name", None) or getattr(loss, "__name__", loss))


def threshold_of(loss: Any) -> float:
    """Returns the score from which on a network gives a row a label."""
    return 0.0 if takes_logits(loss) or "hinge" in name_of_loss(loss) else 0.5


def _columns(examples: Examples, output: str) -> Any:
    about = examples.source.get("target")
    about = about.get(output) if output and isinstance(about, Mapping) else about
    return about.get("columns", ()) if isinstance(about, Mapping) else ()


def _output_rows(
    y: np.ndarray, scores: np.ndarray, loss: Any, names: tuple[str, ...], columns: tuple[str, ...]
) -> OutputRows | None:
    family, width, is_logit = family_of(name_of_loss(loss)), scores.shape[1], bool(takes_logits(loss))
    if family == NUMBERS:
        values = y.reshape(len(y), -1).astype(np.float64)
        if values.shape != scores.shape:
            return None
        names = columns if len(columns) == width else tuple(map(str, range(width)))
        return OutputRows(QUANTITIES, names, values, scores, False)
    if family not in (SPARSE, ONE_HOT, BINARY):
        return None
    names_of_two = tuple(names) if len(names) == 2 else ("0", "1")
    names = tuple(names[:width]) + tuple(map(str, range(len(names), width)))
    is_hinge = "hinge" in name_of_loss(loss)
    if family == BINARY and width > 1:
        if y.shape != scores.shape:
            return None
        likely = _sigmoid(scores) if is_logit else scores
        return OutputRows(LABELS, names, y > 0.5, likely, not is_hinge, 0.0 if is_hinge else 0.5)
    if width == 1:
        labels, likely = (y.reshape(-1) > 0.5).astype(np.int64), _sigmoid(scores) if is_logit else scores
        both = np.hstack([-likely if is_hinge else 1 - likely, likely])
        return OutputRows(CLASSES, names_of_two, labels, both, not is_hinge)
    labels = y.argmax(axis=1) if y.shape == scores.shape else y.reshape(-1).astype(np.int64)
    if labels.shape != (len(scores),) or labels.min() < 0 or labels.max() >= width:
        return None
    return OutputRows(CLASSES, names, labels, _softmax(scores) if is_logit else scores, not is_hinge)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.clip(-500, 500)))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
