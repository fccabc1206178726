"""The sections on the answers to test rows."""

from dataclasses import replace

import numpy as np

from finetune.results.report.output_facts import OutputRows, facts_of, worst_rows
from finetune.results.report.output_sections import answers_sections, cards_of
from finetune.results.report.run_files import read_run


def sections(folder, **outputs):
    return "".join(answers_sections(replace(read_run(folder), report={"outputs": outputs, "is_all": False})))


def test_classes_have_recall_confusion_calibration_and_their_worst_rows(folder):
    made = "".join(answers_sections(read_run(folder)))
    assert 'title="3 of dog taken for &lt;i&gt;owl&lt;/i&gt;"' in made
    assert "Expected calibration error 0.100" in made
    assert "a.csv:4" in made


def test_labels_have_thresholds_and_numbers_residuals(folder):
    labels = OutputRows("labels", ("a", "b"), np.eye(2, dtype=bool), np.array([[0.9, 0.1], [0.4, 0.3]]), True)
    numbers = OutputRows("numbers", ("",), np.array([[1.0], [2.0]]), np.array([[1.5], [2.0]]), False)
    outputs = {name: facts_of(rows) | {"worst": worst_rows(rows)} for name, rows in (("l", labels), ("n", numbers))}
    made = sections(folder, **outputs)
    assert "Labels of <code>l</code>" in made
    assert "best threshold" in made
    assert "mean absolute error" in made
    assert "Of 2 evenly spaced test rows." in made


def test_of_many_classes_the_worst_are_shown_and_the_pairs_that_are_confused(folder):
    targets = np.arange(400)
    scores = np.eye(400)[(targets + (targets > 390)) % 400]
    facts = facts_of(OutputRows("classes", tuple(map(str, targets)), targets, scores, True))
    made = sections(folder, **{"": facts})
    assert "The 100 with the least recall of 400" in made
    assert "Most often taken for another" in made


def test_a_row_without_inputs_or_place_is_named_by_its_number():
    assert "test row 7" in cards_of([{"row": 7, "actual": "1", "answer": "2"}])[0]
