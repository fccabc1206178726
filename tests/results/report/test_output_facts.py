"""What is said of answers to test rows, against figures worked out by hand or by scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, r2_score

from finetune.results.report.output_facts import OutputRows, errors_of_rows, facts_of, worst_rows

RANDOM = np.random.default_rng(0)


def classes(targets, scores, names=("cat", "dog", "owl"), are_probabilities=True):
    return OutputRows("classes", names, np.array(targets), np.array(scores, float), are_probabilities)


def test_recall_precision_and_confusion_of_classes_are_those_of_scikit_learn():
    targets, scores = RANDOM.integers(0, 3, 50), RANDOM.dirichlet(np.ones(3), 50)
    facts = facts_of(classes(targets, scores))
    expected = confusion_matrix(targets, scores.argmax(1), labels=[0, 1, 2])
    assert facts["confusion"] == expected.tolist()
    assert [of["recall"] for of in facts["classes"]] == pytest.approx(np.diag(expected) / expected.sum(1))
    assert facts["confused"][0][2] == (expected - np.diag(np.diag(expected))).max()


def test_a_class_without_rows_has_no_recall_and_one_that_is_never_answered_no_precision():
    facts = facts_of(classes([0, 0], [[0.9, 0.1, 0], [0.8, 0.2, 0]]))
    assert facts["classes"][1] == {"name": "dog", "rows": 0, "recall": None, "precision": None}


def test_calibration_compares_the_probability_given_with_the_share_that_is_right():
    # Four rows called 0.95 sure of which three are right, one called 0.55 that is right.
    scores = [[0.95, 0.05, 0]] * 4 + [[0.55, 0.45, 0]]
    of = facts_of(classes([0, 0, 0, 1, 0], scores))["calibration"]
    assert of["bins"] == [
        {"confidence": pytest.approx(0.55), "share": 1.0, "rows": 1},
        {"confidence": pytest.approx(0.95), "share": 0.75, "rows": 4},
    ]
    assert of["error"] == pytest.approx((0.45 * 1 + 0.2 * 4) / 5)


def test_scores_that_are_no_probabilities_have_no_calibration():
    assert "calibration" not in facts_of(classes([0, 1], [[2.0, -1, 0], [0, 3, 1]], are_probabilities=False))


def test_the_worst_rows_are_wrong_and_the_least_likely_target_comes_first():
    rows = classes([0, 1, 2, 0], [[0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.6, 0.39, 0.01], [0.4, 0.5, 0.1]])
    assert [each["row"] for each in worst_rows(rows)] == [2, 0, 3]
    assert worst_rows(rows, limit=1) == [{"row": 2, "actual": "owl", "answer": "cat", "score": 0.6}]


def test_the_best_threshold_of_a_label_has_the_highest_f1():
    scores, targets = RANDOM.random((60, 2)).round(2), RANDOM.random((60, 2)) < 0.4
    rows = OutputRows("labels", ("a", "b"), targets, scores, True)
    for place, of in enumerate(facts_of(rows)["classes"]):
        f1 = [f1_score(targets[:, place], scores[:, place] > t) for t in np.unique(scores) - 0.005]
        assert of["best_f1"] == pytest.approx(max(f1))
        assert f1_score(targets[:, place], scores[:, place] > of["best_threshold"]) == pytest.approx(max(f1))


def test_a_row_without_labels_is_said_to_have_none():
    rows = OutputRows("labels", ("a", "b"), np.array([[False, False]]), np.array([[0.9, 0.2]]), True)
    assert worst_rows(rows) == [{"row": 0, "actual": "none", "answer": "a"}]


def test_residuals_of_numbers_are_those_of_scikit_learn():
    y = RANDOM.normal(size=(40, 2))
    answers = y + RANDOM.normal(scale=0.3, size=y.shape) + 0.5
    facts = facts_of(OutputRows("numbers", ("a", "b"), y, answers, False))
    for place, of in enumerate(facts["columns"]):
        assert of["r2"] == pytest.approx(r2_score(y[:, place], answers[:, place]))
        assert of["bias"] == pytest.approx((answers - y)[:, place].mean())
        assert sum(of["histogram"]["counts"]) == 40


def test_targets_that_are_all_equal_have_no_r2():
    rows = OutputRows("numbers", ("",), np.ones((3, 1)), np.zeros((3, 1)), False)
    assert facts_of(rows)["columns"][0]["r2"] is None
    assert errors_of_rows(rows).tolist() == [1, 1, 1]
    assert worst_rows(rows)[0] == {"row": 0, "actual": "1", "answer": "0"}
