import numpy as np
import pytest

from finetune.inference.answers import answers, class_labels, flat, probabilities_of
from finetune.inference.record import OutputRecord


def output(kind, names=(), loss="sparse_categorical_crossentropy", logits=False, thresholds=None):
    return OutputRecord("", kind, tuple(names), (), loss, logits, thresholds or {})


def test_probabilities_come_of_logits_of_single_outputs_and_of_hinges():
    logits = np.array([[0.0, np.log(3)]])
    np.testing.assert_allclose(probabilities_of(output("classes", logits=True), logits), [[0.25, 0.75]])
    np.testing.assert_allclose(probabilities_of(output("labels", logits=True), logits), [[0.5, 0.75]])
    np.testing.assert_allclose(probabilities_of(output("classes", logits=True), np.array([np.log(3)])), [[0.25, 0.75]])
    np.testing.assert_allclose(probabilities_of(output("classes"), np.array([[0.9]])), [[0.1, 0.9]])
    np.testing.assert_allclose(
        probabilities_of(output("classes", loss="hinge"), np.array([[-1.0], [3.0]])), [[1, 0], [0, 1]]
    )
    huge = probabilities_of(output("classes", logits=True), np.array([[1e4, -1e4]]))
    np.testing.assert_array_equal(huge, [[1, 0]])


def test_classes_are_listed_most_probable_first_and_those_without_a_name_by_their_number():
    [answer] = answers(output("classes", ["cat", "dog"]), np.array([[0.2, 0.3, 0.5]]), top=2)
    assert answer == {
        "label": "2",
        "probability": 0.5,
        "top": [{"label": "2", "probability": 0.5}, {"label": "dog", "probability": 0.3}],
    }
    assert class_labels(output("classes"), 2) == ["0", "1"]


def test_a_row_has_the_labels_whose_probability_reaches_their_threshold():
    values = np.array([[0.6, 0.3]])
    record = output("labels", ["a", "b"], thresholds={"a": 0.7, "b": 0.3})
    assert next(answers(record, values)) == {"labels": ["b"], "probabilities": {"a": 0.6, "b": 0.3}}
    assert next(answers(record, values, threshold=0.5))["labels"] == ["a"]


def test_numbers_keep_their_names_and_their_shape():
    assert list(answers(output("numbers"), np.array([[1.5], [2.0]]))) == [{"value": 1.5}, {"value": 2.0}]
    assert next(answers(output("numbers", ["x", "y"]), np.array([[1.0, 2.0]]))) == {"values": {"x": 1.0, "y": 2.0}}
    assert next(answers(output("numbers"), np.zeros((1, 2, 1)))) == {"values": [[0.0], [0.0]]}
    assert next(answers(output("classes"), np.zeros((1, 2, 2)))) == {"values": [[0.0, 0.0], [0.0, 0.0]]}  # of pixels


@pytest.mark.parametrize(
    ("answer", "cells"),
    [
        (
            {
                "label": "a",
                "probability": 0.7,
                "top": [{"label": "a", "probability": 0.7}, {"label": "b", "probability": 0.3}],
            },
            {"label": "a", "probability": 0.7, "label_2": "b", "probability_2": 0.3},
        ),
        ({"labels": ["a", "b"], "probabilities": {"a": 0.9}}, {"labels": "a|b", "probability/a": 0.9}),
        ({"values": {"x": 1.0}}, {"value/x": 1.0}),
        ({"value": 1.0}, {"value": 1.0}),
    ],
)
def test_the_cells_of_a_row_of_csv_have_the_same_names_in_every_row(answer, cells):
    assert flat(answer) == cells
    assert flat(answer, "y/") == {f"y/{name}": value for name, value in cells.items()}
