import json
import shutil

import numpy as np
import pytest

from finetune.errors import FinetuneError
from finetune.inference.fine_tuned import load


@pytest.mark.parametrize("kind", ["images", "table", "labels"])
def test_the_figures_on_the_test_rows_are_those_that_the_run_printed(kind, run_of):
    result = load(run_of(kind)).evaluate()
    printed = json.loads((run_of(kind) / "result.json").read_text())
    assert result.metrics == pytest.approx(printed["metrics"], abs=1e-6)
    assert result.classes == printed["classes"]
    assert (result.data, result.rows) == ("test", json.loads((run_of(kind) / "data.json").read_text())["rows"]["test"])


def test_intervals_confusion_and_calibration_are_those_of_the_report_of_the_run(run_of):
    for kind in ("images", "table", "labels"):
        result, report = load(run_of(kind)).evaluate(), json.loads((run_of(kind) / "report.json").read_text())
        assert {name: pytest.approx(of) for name, of in result.intervals.items()} == report["intervals"]
        assert set(result.outputs) == set(report["outputs"])
        for name, facts in result.outputs.items():
            of_run = {key: value for key, value in report["outputs"][name].items() if key != "worst"}
            assert json.loads(json.dumps(facts)) == of_run
    counts = np.array(load(run_of("images")).evaluate(split="train").outputs[""]["confusion"])
    assert counts.sum(axis=1).tolist() == [4, 4, 4]


def test_other_data_and_other_metrics_give_their_own_figures(run_of):
    fine_tuned = load(run_of("images"))
    photos = run_of("images").parent / "photos"
    result = fine_tuned.evaluate(photos, metrics=["accuracy,f1_score"])
    assert list(result.metrics) == ["loss", "accuracy", "f1_score"]
    assert (result.rows, result.data) == (18, str(photos))
    assert result.metrics["accuracy"] == fine_tuned.evaluate(photos).metrics["accuracy"]
    assert fine_tuned.evaluate(split="train").rows == 12


def test_a_split_that_is_not_there_is_refused(run_of):
    with pytest.raises(FinetuneError, match=r"have no validation rows. Evaluate `test` or `train`"):
        load(run_of("images")).evaluate(split="validation")
    with pytest.raises(FinetuneError, match=r"A split is one of `train`, `test`, `validation`. Received: `tset`"):
        load(run_of("images")).evaluate(split="tset")


def test_where_the_rows_of_the_recipe_are_gone_others_can_be_named(run_of, tmp_path):
    shutil.copytree(run_of("arrays"), tmp_path / "run")
    recipe, rows = tmp_path / "run" / "recipe.yaml", run_of("arrays").parent / "rows.npz"
    recipe.write_text(recipe.read_text().replace(str(rows), str(tmp_path / "gone.npz")))
    fine_tuned = load(tmp_path / "run")
    with pytest.raises(FinetuneError, match=r"gone\.npz.* Other rows can be named with `--data`\."):
        fine_tuned.evaluate()
    assert fine_tuned.evaluate(rows).rows == 8
