"""Recall and precision of each class."""

import keras
import numpy as np
import pytest

from finetune.data.examples import Examples
from finetune.training.class_results import results_of_classes, worst_classes
from finetune.training.predictions import predict_test_rows

# Each row holds the output for it: the network returns its input.
SCORES = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0], [0.1, 0.2, 0.7]], "float32")


def identity(width, loss):
    model = keras.Sequential([keras.Input((width,)), keras.layers.Activation("linear")])
    model.compile("sgd", loss)
    return model


def of(x, y, loss, **about):
    return answered(identity(x.shape[1], loss), Examples(x, y, x, y, **about))


def answered(model, examples):
    return results_of_classes(model, examples, predict_test_rows(model, examples))


@pytest.mark.parametrize("one_hot", [False, True])
def test_each_class_has_its_rows_recall_and_precision(one_hot):
    y = np.array([0, 0, 0, 1])
    loss = "categorical_crossentropy" if one_hot else "sparse_categorical_crossentropy"
    results = of(SCORES, np.eye(3)[y] if one_hot else y, loss, class_names=("cat", "dog", "owl"))
    assert results[""] == {
        "cat": {"rows": 3, "recall": 2 / 3, "precision": 1},
        "dog": {"rows": 1, "recall": 0, "precision": 0},
        "owl": {"rows": 0, "recall": None, "precision": 0},
    }
    assert list(worst_classes(results[""], 1)) == ["dog"]


@pytest.mark.parametrize("logits", [False, True])
def test_each_label_has_its_rows_recall_and_precision(logits):
    y = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]], "float32")
    x = np.log(SCORES.clip(1e-3, 0.999) / (1 - SCORES.clip(1e-3, 0.999))) if logits else SCORES
    results = of(x, y, keras.losses.BinaryCrossentropy(from_logits=logits))
    assert results[""]["0"] == {"rows": 3, "recall": 2 / 3, "precision": 1}
    assert results[""]["1"] == {"rows": 2, "recall": 0.5, "precision": 1}
    assert results[""]["2"] == {"rows": 0, "recall": None, "precision": 0}


def test_both_classes_of_a_single_output_have_results():
    x, y = np.array([[0.9], [0.4], [0.2], [0.8]], "float32"), np.array([1, 1, 0, 0], "float32")
    results = of(x, y, "binary_crossentropy", class_names=("no", "yes"))
    assert results[""]["yes"] == {"rows": 2, "recall": 0.5, "precision": 0.5}
    assert list(results[""]) == ["no", "yes"]


def test_an_only_label_has_a_single_row():
    x, y = np.array([[0.9], [0.4], [0.2], [0.8]], "float32"), np.array([[1], [1], [0], [0]], "float32")
    results = of(x, y, "binary_crossentropy", class_names=("red",))
    assert results == {"": {"red": {"rows": 2, "recall": 0.5, "precision": 0.5}}}


def test_numbers_have_no_classes():
    assert of(SCORES, SCORES, "mse") == {}


def test_each_output_has_its_own_classes():
    x = keras.Input((3,))
    model = keras.Model(x, [keras.layers.Activation("linear", name="kind")(x), keras.layers.Dense(1, name="size")(x)])
    model.compile("sgd", {"kind": "sparse_categorical_crossentropy", "size": "mse"})
    y = {"kind": np.array([0, 1, 0, 2]), "size": np.zeros(4, "float32")}
    about = {"kind": {"class_names": ["a", "b", "c"]}, "size": {}}
    results = answered(model, Examples(SCORES, y, SCORES, y, source={"target": about}))
    assert list(results) == ["kind"]
    assert results["kind"]["a"]["recall"] == 1
