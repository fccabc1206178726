"""The first lines of a report."""

import json
import shutil

import pytest

from finetune.results.report.run_files import read_run
from finetune.results.report.verdict import is_lower_better, main_metric, verdict_of


def verdict(folder, **changes):
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | changes))
    return verdict_of(read_run(folder))


def test_the_result_has_its_interval_and_what_it_is_compared_with(folder):
    assert verdict(folder).sentence == (
        "Accuracy 0.8 on 20 test rows (95 % interval 0.7 to 0.9), 0.3 before training; the same answer for every row "
        "gives 0.34; the weakest class is `dog`, of whose rows 0% are recognised."
    )


def test_classes_that_are_never_or_rarely_recognised_are_named(folder):
    of = verdict(folder)
    assert not of.good
    assert of.notes == (
        "1 of 3 classes is never recognised: `dog`.",
        "Fewer than half of the rows of these classes are recognised: `<i>owl</i>` (0.40).",
        "`a` warning",
    )


def test_a_run_against_which_nothing_speaks_is_good(folder):
    of = verdict(folder, classes={}, warnings=[])
    assert (of.good, of.notes) == (True, ())


@pytest.mark.parametrize(
    ("metrics", "note"),
    [
        ({"loss": 1.0, "accuracy": 0.34}, "does no better than the same answer for every row (accuracy 0.34)"),
        ({"loss": 1.0, "accuracy": 0.29}, "does no better"),
        ({"loss": 1.2}, "does no better than the same answer for every row (loss 1.1)"),
        ({"loss": None}, "loss is no number"),
    ],
)
def test_a_network_that_has_learned_nothing_is_told(folder, metrics, note):
    assert note in verdict(folder, classes={}, metrics=metrics).notes[0]


def test_training_that_has_made_it_worse_is_told(folder):
    of = verdict(folder, classes={}, metrics_before={"loss": 0.1, "accuracy": 0.95})
    assert of.notes[0] == "Training has made it worse: accuracy was 0.95 before."


def test_a_changed_frozen_tensor_and_an_unfinished_run_are_told(folder):
    assert (
        verdict(folder, frozen_unchanged=False).notes[0].startswith("Frozen tensors have changed: the run has failed")
    )
    (folder / "result.json").unlink()
    of = verdict_of(read_run(folder))
    assert of.sentence == "This run has not come to its end."
    assert of.notes == (f"2 epochs are finished. `finetune resume {folder}` goes on where it was stopped or killed.",)
    shutil.rmtree(folder / "plots")
    assert verdict_of(read_run(folder)) == of


def test_an_accuracy_comes_before_other_metrics_and_these_before_the_loss():
    assert main_metric({"loss": 1, "auc": 1, "kind_accuracy": 1}) == "kind_accuracy"
    assert main_metric({"loss": 1, "kind_loss": 1, "auc": 1}) == "auc"
    assert main_metric({"loss": 1}) == "loss"
    assert [is_lower_better(name) for name in ("mean_absolute_error", "auc", "kind_loss", "r2_score")] == [
        True,
        False,
        True,
        False,
    ]
