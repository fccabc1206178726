"""What the same answer for every row is worth."""

import keras
import numpy as np
import pytest

from finetune.data.examples import Examples
from finetune.data.rows import as_rows
from finetune.training.constant_answer import score_of_constant

X = np.zeros((8, 2), "float32")
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2])


def score(loss, y, y_test, outputs, metrics=(), weights=None, activation=None):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(outputs, activation=activation)])
    model.compile("sgd", loss, metrics=list(metrics))
    examples = Examples(X, y, X[: len(y_test)], y_test, weights_test=weights)
    return score_of_constant(model, examples)


def test_numbers_are_answered_by_their_mean():
    y = np.arange(8.0, dtype="float32")
    of_mean = score("mse", y, y, 1, ["mean_absolute_error"])
    assert of_mean == pytest.approx({"loss": y.var(), "mean_absolute_error": 2.0})


def test_rows_count_by_their_weights_as_in_the_test_loss():
    y, weights = np.array([0, 0, 0, 0, 0, 0, 0, 8], "float32"), np.array([0, 0, 0, 0, 0, 0, 0, 1], "float32")
    assert score("mse", y, y, 1, weights=weights)["loss"] == pytest.approx(49 / 8)


@pytest.mark.parametrize(
    ("loss", "activation", "y"),
    [
        ("sparse_categorical_crossentropy", "softmax", LABELS),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), None, LABELS),
        ("categorical_crossentropy", "softmax", np.eye(3, dtype="float32")[LABELS]),
        (keras.losses.CategoricalCrossentropy(from_logits=True), None, np.eye(3, dtype="float32")[LABELS]),
    ],
)
def test_classes_are_answered_by_their_shares(loss, activation, y):
    share = np.bincount(LABELS) / 8
    of_shares = score(loss, y, y, 3, ["accuracy"], activation=activation)
    assert of_shares == pytest.approx({"loss": -(share * np.log(share)).sum(), "accuracy": 0.5}, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "activation"), [("binary_crossentropy", "sigmoid"), (keras.losses.BinaryCrossentropy(True), None)]
)
def test_labels_are_answered_by_their_shares(loss, activation):
    y = np.array([[1, 0], [1, 0], [1, 0], [0, 1]] * 2, "float32")
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert score(loss, y, y, 2, activation=activation)["loss"] == pytest.approx(entropy, rel=1e-4)


def test_each_output_has_its_own_answer():
    x = keras.Input((2,))
    model = keras.Model(x, [keras.layers.Dense(3, "softmax", name="kind")(x), keras.layers.Dense(1, name="size")(x)])
    model.compile("sgd", {"kind": "sparse_categorical_crossentropy", "size": "mse"}, metrics={"kind": ["accuracy"]})
    y = {"kind": LABELS, "size": np.arange(8.0, dtype="float32")}
    of_mean = score_of_constant(model, Examples(X, y, X, y))
    assert of_mean["kind_accuracy"] == 0.5
    share = np.bincount(LABELS) / 8
    assert of_mean["loss"] == pytest.approx(-(share * np.log(share)).sum() + 5.25, rel=1e-5)


def test_metrics_are_as_before():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    y = np.arange(8.0, dtype="float32")
    expected = model.evaluate(X, y, verbose=0)
    score_of_constant(model, Examples(X, y, X, y))
    assert model.evaluate(X, y, verbose=0) == expected


@pytest.mark.parametrize("y", [as_rows(np.zeros((8, 1), "float32")), np.zeros((8, 4, 1), "float32")])
def test_targets_that_are_not_in_memory_or_not_of_a_row_have_no_score(y):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    if isinstance(y, np.ndarray):
        model = keras.Sequential([keras.Input((2,)), keras.layers.RepeatVector(4)])
    model.compile("sgd", "mse")
    assert score_of_constant(model, Examples(X, y, X, y)) == {}


def test_a_loss_of_the_model_itself_has_no_score():
    class OwnLoss(keras.Sequential):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    model = OwnLoss([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    y = np.zeros(8, "float32")
    assert score_of_constant(model, Examples(X, y, X, y)) == {}
