import numpy as np
import pytest

from finetune.inference.exports.scores import score, targets_of
from finetune.inference.record import OutputRecord

CLASSES = OutputRecord("", "classes", ("a", "b"), (), "", False, {})
LABELS = OutputRecord("", "labels", ("a", "b"), (), "", False, {"a": 0.9})
NUMBERS = OutputRecord("", "numbers", (), (), "mse", False, {})
ANSWERS = np.array([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]])


@pytest.mark.parametrize(
    ("record", "targets", "expected"),
    [
        (CLASSES, np.array([0, 1, 1, 1]), 0.75),
        (CLASSES, np.array([[0.0], [1.0], [1.0], [1.0]]), 0.75),
        (CLASSES, np.array([[1, 0], [0, 1], [0, 1], [0, 1]]), 0.75),
        (CLASSES, np.array([-1, 1, 1, 1]), 0.75),  # of a hinge
        (LABELS, np.array([[0, 0], [0, 1], [0, 0], [1, 1]]), 0.875),
    ],
)
def test_the_accuracy_is_the_share_of_right_answers_whatever_the_form_of_targets(record, targets, expected):
    assert score(record, ANSWERS, targets) == {"accuracy": expected}


def test_numbers_have_a_mean_absolute_error():
    assert score(NUMBERS, np.array([[1.0], [4.0]]), np.array([2.0, 2.0])) == {"mean_absolute_error": 1.5}


def test_targets_are_those_of_the_output(loaded):
    fine_tuned = loaded("table")
    y = {"kind": np.array([1]), "price": np.array([2.5])}
    assert [targets_of(fine_tuned, each, y).tolist() for each in fine_tuned.record.outputs] == [[1], [2.5]]
