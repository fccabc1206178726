import io
import json
from dataclasses import fields, replace

import pytest
from rich.console import Console

from finetune.commands.run_result import RunResult, print_class_results, write_result


@pytest.fixture
def result(tmp_path):
    every = dict.fromkeys(field.name for field in fields(RunResult))
    empty = {"not_opened": "", "left_out": (), "keras_loop": "", "warnings": (), "phases": (), "extended_from": ()}
    figures = {"folder": tmp_path, "metrics": {"loss": 0.5}, "classes": {}, "frozen_unchanged": True}
    return RunResult(**every | empty | figures)


def test_the_file_has_what_there_is_and_neither_the_folder_nor_the_model(result, tmp_path):
    write_result(result)
    written = json.loads((tmp_path / "result.json").read_text())
    assert {"format", "batch_size", "metrics", "classes", "frozen_unchanged", "seconds"} <= set(written)
    assert not {"folder", "model", "warnings", "kept", "skipped_steps", "phases"} & set(written)
    write_result(replace(result, warnings=("it diverged",), skipped_steps=0, kept={"value": 1.0}))
    written = json.loads((tmp_path / "result.json").read_text())
    assert (written["warnings"], written["skipped_steps"], written["kept"]) == (["it diverged"], 0, {"value": 1.0})


def test_of_many_classes_those_with_the_least_recall_are_shown():
    classes = {f"c{n}": {"rows": 2, "recall": n / 20, "precision": 1.0} for n in range(20)}
    console = Console(file=io.StringIO(), width=80)
    print_class_results(classes, "", console)
    shown = console.file.getvalue()
    assert "20 classes; shown are the 6 with the least recall" in shown
    assert " c5 " in shown
    assert " c6 " not in shown
    assert shown.split()[:2] == ["class", "test"]
    other = Console(file=io.StringIO(), width=80)
    print_class_results(classes, "", other, rows="rows")
    assert other.file.getvalue().split()[:2] == ["class", "rows"]
