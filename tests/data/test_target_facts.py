"""What is said about targets: counts of classes and labels, and figures of numbers."""

import numpy as np
import pytest

from finetune.data.examples import Examples
from finetune.data.rows import as_rows
from finetune.data.target_facts import describe, names_of_classes

X = np.zeros((4, 1), "float32")


def described(y, loss, y_test=None, **about):
    losses = loss if isinstance(loss, dict) else {"": loss}
    return describe(Examples(X, y, X, y if y_test is None else y_test, **about), losses)


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        ("sparse_categorical_crossentropy", np.array([0, 2, 2, 1])),
        ("sparse_categorical_crossentropy", np.array([[0], [2], [2], [1]])),
        ("sparse_categorical_crossentropy", np.array([0.0, 2.0, 2.0, 1.0], "float32")),
        ("categorical_crossentropy", np.eye(3)[[0, 2, 2, 1]]),
    ],
)
def test_rows_of_classes_are_counted_in_each_form_of_targets(loss, y):
    assert described(y, loss, y[:2])["rows_of_classes"] == {"train": [1, 1, 2], "test": [1, 0, 1]}
    assert described(y, loss)["class_names"] == ["0", "1", "2"]
    assert described(y, loss, class_names=("a", "b", "c"))["class_names"] == ["a", "b", "c"]


def test_rows_of_labels_are_counted_for_each_label():
    y = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0]], "float32")
    facts = described(y, "binary_crossentropy", class_names=("sea", "snow", "sun"))
    assert facts["rows_of_classes"]["train"] == [3, 2, 0]
    assert facts["class_names"] == ["sea", "snow", "sun"]


def test_two_classes_of_a_single_output_are_counted():
    y = np.array([0, 1, 1, 1], "float32")
    assert described(y, "binary_crossentropy", class_names=("no", "yes"))["rows_of_classes"]["train"] == [1, 3]


def test_numbers_have_mean_spread_and_range_of_the_training_rows():
    facts = described(
        np.array([1.0, 3.0, 1.0, 3.0]), "mse", np.full(4, 99.0), source={"target": {"columns": ["price"]}}
    )
    assert facts["numbers"] == {"price": {"mean": 2, "standard_deviation": 1, "least": 1, "greatest": 3}}
    assert "rows_of_classes" not in facts


def test_each_column_of_numbers_has_its_own_figures():
    facts = described(np.array([[1.0, 10.0]] * 4), "huber")
    assert {name: about["mean"] for name, about in facts["numbers"].items()} == {"0": 1, "1": 10}


def test_each_output_has_its_own_figures():
    y = {"kind": np.array([0, 1, 1, 1]), "size": np.array([1.0, 2.0, 3.0, 4.0])}
    about = {"kind": {"class_names": ["cat", "dog"]}, "size": {"columns": ["cm"], "class_names": []}}
    loss = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    outputs = described(y, loss, source={"target": about})["outputs"]
    assert outputs["kind"] == {"class_names": ["cat", "dog"], "rows_of_classes": {"train": [1, 3], "test": [1, 3]}}
    assert outputs["size"]["numbers"]["cm"]["mean"] == 2.5
    assert names_of_classes(Examples(X, y, X, y, source={"target": about}), "kind") == ("cat", "dog")


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        ("mse", as_rows(np.zeros((4, 8, 8, 1), "float32"))),
        ("mse", np.zeros((4, 8, 8, 1))),
        ("sparse_categorical_crossentropy", np.array(["a", "b", "a", "b"])),
    ],
)
def test_targets_that_have_no_figures_are_left_out(loss, y):
    assert described(y, loss).keys() == {"source", "rows"}


def test_labels_outside_of_the_classes_are_figures_and_no_counts():
    assert "rows_of_classes" not in described(np.array([-1, 0, 1, 10**9]), "sparse_categorical_crossentropy")
