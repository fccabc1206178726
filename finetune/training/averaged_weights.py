"""The mean of the weights of several moments of a training, taken where validation says that it is better."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np


class CollectWeights(keras.callbacks.Callback):
    """Remembers the weights of the last or the best evaluations of a training; see `greedy_average`.

    Args:
        count: How many, >= 2. Each takes the memory of the weights, also in a checkpoint.
        monitor: Name of the metric in the logs, such as `val_loss`.
        mode: `min`, `max`, or `auto`, which decides by the metric.
        newest: Whether the last are kept, of the ends of epochs; otherwise the best.

    Attributes:
        kept: Value of the metric, epoch (from 1), step (0 at the end of the epoch), and weights.
    """

    def __init__(self, count: int, monitor: str, mode: str = "auto", *, newest: bool = False):
        super().__init__()
        self.count, self.monitor, self.mode, self.newest = count, monitor, mode, newest
        self.kept: list[tuple[float, int, int, list[np.ndarray]]] = []
        self._order: Any = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._take(epoch, 0, logs or {})

    def on_evaluation(self, epoch: int, step: int, logs: dict[str, Any]) -> None:
        """Looks at the metrics of an evaluation within an epoch.

        Args:
            epoch: The epoch, from 0.
            step: Steps of the epoch that are made.
            logs: The metrics.
        """
        if not self.newest:
            self._take(epoch, step, logs)

    def is_better(self, value: float, than: float) -> bool:
        """Returns whether a value of the metric is better than another."""
        if self._order is None:  # Keras decides by the metric, when it first sees one
            order = keras.callbacks.EarlyStopping(self.monitor, patience=2**31, mode=self.mode)
            order.set_model(self.model)
            order.on_train_begin()
            order.on_epoch_end(0, {self.monitor: value})
            self._order = order
        return bool(self._order.monitor_op(value, than))

    def _take(self, epoch: int, step: int, logs: dict[str, Any]) -> None:
        if self.monitor not in logs:
            return
        value = float(logs[self.monitor])
        place = len(self.kept)
        if not self.newest:  # the best first; of equal ones the earlier
            place = next((n for n, kept in enumerate(self.kept) if self.is_better(value, kept[0])), place)
        if self.newest or place < self.count:
            model: Any = self.model
            self.kept.insert(place, (value, epoch + 1, step, model.get_weights()))
            self.kept = self.kept[-self.count :] if self.newest else self.kept[: self.count]


def greedy_average(
    model: keras.Model,
    collected: CollectWeights,
    evaluate: Callable[[], float],
    recalibrate: Callable[[], Any],
) -> dict[str, Any]:
    """Gives a model the mean of collected weights, if it is better on the validation rows than what the model has.

    The weights are tried from the best on; one is taken into the mean if it makes it no worse.

    Args:
        model: The model, with the weights that it has without averaging.
        collected: The weights.
        evaluate: Returns the metric of the model on the validation rows.
        recalibrate: Estimates the statistics of BatchNormalization again for the weights that the model has.

    Returns:
        What was tried and taken, as JSON has it: `taken`, the value `before` and of the mean, and the places in it.

    References:
        Wortsman et al. (2022), Model soups, section 2, https://arxiv.org/abs/2203.05482
    """
    own, before = model.get_weights(), evaluate()
    order: list[Any] = []
    for each in collected.kept:
        place = next((n for n, other in enumerate(order) if collected.is_better(each[0], other[0])), len(order))
        order.insert(place, each)
    taken, value = order[:1], None
    for each in order[1:]:
        model.set_weights(_mean([*taken, each]))
        recalibrate()
        tried = evaluate()
        reference = order[0][0] if value is None else value
        if not collected.is_better(reference, tried):
            taken, value = [*taken, each], tried
    result = {"monitor": collected.monitor, "before": before, "value": value, "taken": False, "of": []}
    if value is None or not collected.is_better(value, before):
        model.set_weights(own)
        return result
    model.set_weights(_mean(taken))
    recalibrate()
    return result | {"taken": True, "of": [{"epoch": epoch, "step": step} for _, epoch, step, _ in taken]}


def said_of(result: dict[str, Any]) -> str:
    """Returns a sentence about what `greedy_average` has done."""
    if not result["taken"]:
        return f"not averaged: no mean has a better {result['monitor']} than {result['before']:.4f}"
    places = [
        f"step {place['step']} of epoch {place['epoch']}" if place["step"] else f"epoch {place['epoch']}"
        for place in result["of"]
    ]
    values = f"a {result['monitor']} of {result['value']:.4f} in place of {result['before']:.4f}"
    return f"averaged: the weights after {', '.join(places)}, with {values}"


def _mean(taken: Sequence[Any]) -> list[np.ndarray]:
    """Returns the mean of each tensor; in float64, in which equal values have themselves as their mean."""
    of_tensors = zip(*(weights for *_, weights in taken), strict=True)
    return [
        np.mean(values, axis=0, dtype=np.float64).astype(values[0].dtype) if _is_float(values[0]) else values[0]
        for values in of_tensors
    ]


def _is_float(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" or values.dtype.name == "bfloat16"
