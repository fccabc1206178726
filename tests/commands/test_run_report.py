"""What a run leaves for its report, in one real run with its inputs and one without a report."""

import json
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

import finetune
from finetune.commands import run_report
from finetune.commands.report import write_report
from finetune.results.hashes import check_hashes

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def finished(tiny_files, tmp_path_factory):
    folder, told = tmp_path_factory.mktemp("reported") / "out", StringIO()
    result = finetune.run(tiny_files / "tiny.yaml", folder, console=Console(file=told, width=200))
    return result, told.getvalue()


def test_a_run_ends_with_a_page_a_card_and_predictions(finished):
    result, told = finished
    assert f"report: {result.folder / 'report.html'}" in told
    page = (result.folder / "report.html").read_text()
    assert "on 30 test rows (95 % interval" in page
    assert (result.folder / "model_card.md").read_text().startswith("# out\n")
    facts = json.loads((result.folder / "report.json").read_text())
    low, high = facts["intervals"]["accuracy"]
    assert low <= result.metrics["accuracy"] <= high
    assert facts["peak_bytes"] > 1e8
    with np.load(result.folder / "predictions.npz") as arrays:
        right = (arrays["scores"].argmax(1) == arrays["targets"]).mean()
    assert right == pytest.approx(result.metrics["accuracy"])
    recalls = {of["name"]: of["recall"] for of in facts["outputs"][""]["classes"]}
    assert recalls == {name: of["recall"] for name, of in result.classes[""].items()}


def test_the_page_can_be_written_again_from_the_files(finished):
    page = (finished[0].folder / "report.html").read_bytes()
    (finished[0].folder / "report.html").unlink()
    assert write_report(finished[0].folder).read_bytes() == page


def test_every_file_of_a_run_and_those_it_has_read_are_as_they_were_also_after_a_new_report(finished, tiny_files):
    folder = finished[0].folder
    (folder / "report.html").write_text("changed")
    assert check_hashes(folder).changed == ("report.html",)
    write_report(folder)
    assert check_hashes(folder).holds
    read = json.loads((folder / "hashes.json").read_text())["outside"]
    assert sorted(read) == [str(tiny_files / "rows.npz"), str(tiny_files / "tiny.keras")]


def test_the_environment_names_versions_and_devices(finished):
    of = json.loads((finished[0].folder / "environment.json").read_text())
    assert of["versions"]["keras"].startswith("3.")
    assert "CPU:0" in of["devices"]


def test_a_report_that_fails_is_told_and_fails_no_run_and_one_that_is_off_is_not_written(recipe, monkeypatch):
    def fails(*arguments):
        raise ValueError("no `predict`")

    told = StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(run_report, "predict_test_rows", fails)
        patched.setattr(run_report, "write_report", fails)
        finetune.run(recipe, "out", overrides=["train.epochs=1"], console=Console(file=told, width=300))
    assert (
        "warning: The results of classes and the report are without predictions. ValueError: no `predict`"
        in told.getvalue()
    )
    assert "warning: The report is not written. ValueError: no `predict`" in told.getvalue()
    assert "No intervals" in write_report("out").read_text()
    result = finetune.run(recipe, "off", overrides=["train.epochs=1", "report=off"])
    assert not {path.name for path in result.folder.iterdir()} & {
        "report.html",
        "report.json",
        "predictions.npz",
        "model_card.md",
    }
