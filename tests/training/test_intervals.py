"""Intervals of metrics by the bootstrap."""

import keras
import numpy as np
import pytest

from finetune.training.intervals import intervals_of_metrics
from finetune.training.predictions import Predictions


def of(count, share, metrics=("accuracy",), model_class=keras.Sequential, weights=None):
    """Returns the intervals of a model that is right about so many of the rows."""
    model = model_class([keras.Input((2,)), keras.layers.Activation("linear")])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=list(metrics))
    right = np.arange(count) < share * count
    outputs = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]]).astype("float32")
    model.evaluate(outputs[:4], np.zeros(4), verbose=0)
    return intervals_of_metrics(
        model, Predictions(np.arange(count), outputs, np.zeros(count, int), weights, True), seed=1
    )


def test_the_interval_of_an_accuracy_is_that_of_the_binomial_distribution():
    low, high = of(400, 0.8)["accuracy"]
    error = 1.96 * (0.8 * 0.2 / 400) ** 0.5
    assert (low, high) == (pytest.approx(0.8 - error, abs=0.015), pytest.approx(0.8 + error, abs=0.015))


def test_many_rows_have_an_interval_as_narrow_as_they_deserve():
    low, high = of(80_000, 0.8)["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * (0.8 * 0.2 / 80_000) ** 0.5, rel=0.25)


def test_every_metric_has_an_interval_and_the_same_seed_gives_the_same():
    first = of(50, 0.6, ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="top")])
    assert first.keys() == {"loss", "accuracy", "top"}
    assert first["top"] == [1, 1]
    assert of(50, 0.6)["accuracy"] == first["accuracy"]


def test_few_rows_and_a_loss_of_the_models_own_have_none():
    class Own(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return super().compute_loss(x, y, y_pred, sample_weight)

    assert of(4, 0.5) == {}
    assert of(50, 0.5, model_class=Own) == {}


def test_weights_of_rows_count():
    weights = np.where(np.arange(50) < 25, 1.0, 0.0).astype("float32")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Activation("linear")])
    model.compile("sgd", "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    outputs = np.where(np.arange(50)[:, None] < 25, [[0.9, 0.1]], [[0.1, 0.9]]).astype("float32")
    model.evaluate(outputs[:4], np.zeros(4), sample_weight=np.ones(4), verbose=0)
    predictions = Predictions(np.arange(50), outputs, np.zeros(50, int), weights, True)
    assert intervals_of_metrics(model, predictions, seed=1)["accuracy"] == [1, 1]
