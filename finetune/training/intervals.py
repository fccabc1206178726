"""How far metrics are to be trusted: their intervals over other test rows that might have been drawn (the bootstrap).

Test rows are drawn again with replacement, and Keras' own loss and metrics are computed of them, whatever they are.

References:
    Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapters 6 and 13.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.training.predictions import Predictions

RESAMPLES = 200
_FEWEST_ROWS = 5  # of fewer rows an interval says nothing
_MOST_ROWS = 20_000
_MOST_VALUES = 2**20  # of the outputs of a resample


def intervals_of_metrics(model: Any, predictions: Predictions, *, seed: int) -> dict[str, list[float]]:
    """Returns the 95 % interval of loss and metrics over the test rows, by the name of each.

    Where there are many rows fewer are drawn, and the interval is narrowed by the square root of their share.

    Args:
        model: A compiled model. Its metrics are reset.
        predictions: What it answers to the test rows.
        seed: Seeds the draws, so that the same run has the same intervals.

    Returns:
        The lower and the upper end; empty where the loss needs more than targets and outputs, or rows are few.
    """
    kind, count = type(model), len(predictions.rows)
    is_own = (
        kind.compute_loss is not keras.Model.compute_loss or kind.compute_metrics is not keras.Model.compute_metrics
    )
    values = sum(leaf.size for leaf in keras.tree.flatten(predictions.outputs))
    drawn = min(count, _MOST_ROWS, _MOST_VALUES * count // max(values, 1))
    if is_own or drawn < _FEWEST_ROWS:
        return {}
    generator = np.random.default_rng(seed)
    draws = np.stack([generator.integers(0, count, drawn) for _ in range(RESAMPLES)])
    scores = _scores(_score_of(model, predictions), draws)
    model.reset_metrics()
    single = [name for name, values in scores.items() if values.ndim == 1]
    return {name: _interval(scores[name], (drawn / count) ** 0.5) for name in single}


def _scores(score: Callable[[tf.Tensor], dict[str, tf.Tensor]], draws: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what a function says of each draw: a loop in a graph, since 200 calls take longer than their results."""
    traced: Any = tf.function(score, autograph=False)
    one = traced.get_concrete_function(tf.TensorSpec(draws.shape[1:], tf.int64))
    kinds = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in one.structured_outputs.items()}

    @tf.function(autograph=False)
    def loop(draws: tf.Tensor) -> Any:
        return tf.map_fn(one, draws, fn_output_signature=kinds, parallel_iterations=1)  # they share the metrics

    return {name: values.numpy() for name, values in loop(tf.constant(draws)).items()}


def _score_of(model: Any, predictions: Predictions) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns the function that computes loss and metrics of the rows at some indices."""
    parts = [
        None if part is None else keras.tree.map_structure(tf.convert_to_tensor, part)
        for part in (predictions.targets, predictions.outputs, predictions.weights)
    ]

    def score(rows: tf.Tensor) -> dict[str, tf.Tensor]:
        y, outputs, weights = (
            None if part is None else keras.tree.map_structure(lambda each: tf.gather(each, rows), part)
            for part in parts
        )
        model.reset_metrics()
        loss = model.compute_loss(None, y, outputs, weights, training=False)
        model.compute_metrics(None, y, outputs, weights)
        return {name: tf.convert_to_tensor(value) for name, value in model.get_metrics_result().items()} | {
            "loss": tf.convert_to_tensor(loss)
        }

    return score


def _interval(values: np.ndarray, factor: float) -> list[float]:
    """Returns the range of 95 % of the values, narrowed towards their median by a factor <= 1."""
    low, middle, high = np.quantile(values, (0.025, 0.5, 0.975))
    return [float(middle + factor * (low - middle)), float(middle + factor * (high - middle))]
