"""What a report reads of a run folder."""

import json

import pytest

from finetune.errors import FinetuneError
from finetune.results.report.run_files import read_run


def test_files_are_read_as_plain_data_and_what_is_no_number_is_left_open(folder):
    run = read_run(folder)
    assert run.epochs[1] == {
        "epoch": 2, "phase": 2, "loss": None, "val_loss": 0.5, "accuracy": 0.8, "learning_rate/head": None
    }  # fmt: skip
    assert run.result["frozen_tensors"] == 6
    assert run.steps == ()


def test_a_run_that_has_not_ended_is_read(folder):
    for name in ("result.json", "report.json", "metrics.csv", "environment.json"):
        (folder / name).unlink()
    (folder / "restore.json").write_text("null")
    run = read_run(folder)
    assert (run.result, run.report, run.restore, run.epochs) == ({}, {}, {}, ())


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FinetuneError, match=r"is no run folder: it has no `recipe.yaml` and `plan.txt`. Name the"):
        read_run(tmp_path)


def test_a_damaged_file_and_a_later_format_are_named(folder):
    (folder / "report.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(FinetuneError, match=r"report.json` has the format 99, and this version reads 1"):
        read_run(folder)
    (folder / "plan.json").write_text("{")
    with pytest.raises(FinetuneError, match=r"plan.json` cannot be: .* Restore it from a copy, or remove it"):
        read_run(folder)
