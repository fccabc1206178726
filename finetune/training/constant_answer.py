"""The score of the answer that is the same for every row: what a network must beat to have learned from its inputs."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import keras
import numpy as np

from finetune.data.examples import Examples
from finetune.data.loss_families import SPARSE, family_of
from finetune.models.output_names import by_output_name, output_names
from finetune.training.loss_advice import takes_logits

_AT_ONCE = 2**20  # values of the outputs
_LEAST = 1e-7  # a probability of 0 has no logarithm; Keras cuts off there, too


def score_of_constant(model: Any, examples: Examples) -> dict[str, float]:
    """Returns loss and metrics on the test rows of the mean of the training targets as the answer for every row.

    Of classes that mean is the share of each class.

    Args:
        model: A compiled model. Its metrics are reset.
        examples: The examples.

    Returns:
        Loss and metrics by their names; empty where targets are not in memory, or have values for each pixel or token.
    """
    kind = type(model)
    if kind.compute_loss is not keras.Model.compute_loss or kind.compute_metrics is not keras.Model.compute_metrics:
        return {}  # these may need more than targets and outputs
    x, _ = examples.train.first(1)
    outputs = model(x, training=False)
    answer = _constant(model, examples, outputs)
    if answer is None:
        return {}
    rows = max(1, _AT_ONCE // max(1, *(each.size for each in keras.tree.flatten(answer))))
    losses, counts = [], []
    model.reset_metrics()
    for start in range(0, len(examples.test), rows):
        chosen = slice(start, start + rows)
        y, weights = (_part(part, chosen) for part in (examples.y_test, examples.weights_test))
        count = len(keras.tree.flatten(y)[0])
        y_pred = keras.tree.map_structure(lambda each, count=count: np.repeat(each[np.newaxis], count, axis=0), answer)
        losses.append(float(model.compute_loss(None, y, y_pred, weights, training=False)))
        model.compute_metrics(None, y, y_pred, weights)
        counts.append(count)
    metrics = {name: value for name, value in model.get_metrics_result().items() if name != "loss"}
    model.reset_metrics()
    score = {"loss": float(np.average(losses, weights=counts))}
    score |= {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
    return score if all(map(isfinite, score.values())) else {}


def _part(arrays: Any, chosen: slice) -> Any:
    return (
        None
        if arrays is None
        else keras.tree.map_structure(lambda array: keras.ops.convert_to_tensor(array[chosen]), arrays)
    )


def _constant(model: Any, examples: Examples, outputs: Any) -> Any:
    """Returns the answer for a row in the structure of the outputs; `None` where there is none."""
    y, losses = by_output_name(model, examples.y_train), by_output_name(model, model.loss)
    is_in_memory = all(isinstance(each, np.ndarray) for each in keras.tree.flatten((examples.y_train, examples.y_test)))
    answers = {}
    for name, values in by_output_name(model, outputs).items():
        targets, loss = y.get(name), losses.get(name, losses.get(""))
        if not is_in_memory or targets is None or loss is None or len(values.shape) > 2:
            return None
        mean = _mean_target(targets, loss, tuple(values.shape[1:]))
        if mean is None:
            return None
        answers[name] = mean
    if isinstance(outputs, Mapping):
        return {name: answers[name] for name in outputs}
    return [answers[name] for name in output_names(model)] if isinstance(outputs, list | tuple) else answers[""]


def _mean_target(targets: np.ndarray, loss: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns the mean of some targets in the shape of an output for a row."""
    name = str(getattr(loss, "name", None) or getattr(loss, "__name__", loss))
    if targets.dtype.kind not in "biuf" or targets.ndim > 2:
        return None
    if family_of(name) == SPARSE and len(shape) == 1:
        labels = targets.reshape(-1).astype(np.int64)
        if labels.size != len(targets) or labels.min() < 0 or labels.max() >= shape[0]:
            return None
        mean = np.bincount(labels, minlength=shape[0]) / len(labels)
    else:
        mean = targets.mean(axis=0, dtype=np.float64)
        if mean.size != max(1, *shape, 1):
            return None
    if takes_logits(loss):
        inside = mean.clip(_LEAST, 1 - _LEAST)
        mean = np.log(inside) if shape and shape[0] > 1 and "binary" not in name else np.log(inside / (1 - inside))
    return mean.reshape(shape).astype(np.float32)
