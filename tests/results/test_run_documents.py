"""A file of a run folder that was changed is named with the value that is wrong, whoever reads it."""

import copy
import json

import pytest

from finetune.errors import FinetuneError
from finetune.results.run_documents import (
    RECIPE,
    fault,
    fault_in_fitted,
    fault_in_run,
    read_of_run,
    read_recipe_of_run,
    read_rows_of_run,
)

CLASSES = {
    "kind": "classes",
    "rows": 3,
    "classes": [{"name": name, "rows": 1, "recall": 0.5, "precision": None} for name in "ab"],
    "confusion": [[1, 0], [1, 1]],
    "calibration": {"error": 0.1, "bins": [{"confidence": 0.5, "share": 0.5, "rows": 3}]},
    "worst": [{"row": 1, "actual": "a", "answer": "b", "score": 0.5, "inputs": {"": {"curve": [[0.0, 1.0]]}}}],
}
NUMBERS = {
    "kind": "numbers",
    "rows": 3,
    "columns": [
        {"name": "y", "mean_absolute_error": 1.0, "root_mean_squared_error": 1.0, "bias": None, "r2": None}
        | {"histogram": {"counts": [1], "edges": [0.0, 1.0]}, "points": [[1.0, None]]}
    ],
}
WEIGHT = {"group": "a", "learning_rate": [0.1], "weight_decay": None, "optimizer": "SGD", "parameters": 3}
SOUND = {
    "result.json": {"metrics": {"loss": None}, "seconds": {"train": 1.5}, "thresholds": {"": {"a": 0.5}}},
    "report.json": {"format": 1, "intervals": {"loss": [0.1, None]}, "outputs": {"": CLASSES, "n": NUMBERS}},
    "plan.json": {"groups": ["a"], "weights": [WEIGHT | {"restored_from": None}], "advice": []},
    "restore.json": {"path": "w.h5", "restored": [], "excluded": {}},
    "data.json": {"rows": {"test": 3}, "class_names": ["a", "b"], "rows_of_classes": {"test": [1, 2]}},
    "environment.json": {"versions": {"keras": "3"}, "devices": []},
    "lr_range.json": {"curves": {"all": {"rates": [0.1], "smoothed": [None]}}, "verdicts": {"all": {}}},
    "hashes.json": {"format": 1, "options": {}, "files": {"a": "0"}, "outside": {}},
}


@pytest.mark.parametrize("name", SOUND)
def test_what_a_run_writes_has_no_fault(name, tmp_path):
    assert fault_in_run(name, SOUND[name]) == ""
    (tmp_path / name).write_text(json.dumps(SOUND[name]))
    assert read_of_run(tmp_path / name) == SOUND[name]


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("result.json", ("metrics",), None, "`metrics` must be a mapping, and is null"),
        ("result.json", ("metrics", "loss"), "x", "`metrics.loss` must be a finite number or null"),
        ("result.json", ("seconds", "train"), None, "`seconds.train` must be a finite number"),
        ("result.json", ("thresholds", "", "a"), [], "`thresholds..a` must be a finite number"),
        ("result.json", ("warnings",), [1], "`warnings.0` must be a text"),
        ("report.json", ("intervals", "loss"), [1], "`intervals.loss` must be a list of 2 values"),
        ("report.json", ("outputs", "", "confusion"), [[1]], "must have a row and a column for each of the 2 classes"),
        ("report.json", ("outputs", "", "calibration", "bins"), [], "`outputs..calibration.bins` must not be empty"),
        ("report.json", ("outputs", "", "calibration", "bins", 0, "rows"), 0, "must be a whole number from 1 on"),
        ("report.json", ("outputs", "", "kind"), "numbers", "`outputs..columns` is missing"),
        ("report.json", ("outputs", "n", "columns", 0, "histogram", "edges"), [0.0], "one edge more than counts"),
        ("plan.json", ("weights", 0, "learning_rate"), 0.1, "`weights.0.learning_rate` must be a list or null"),
        ("plan.json", ("weights", 0, "parameters"), 1e400, "`weights.0.parameters` must be a whole number from 0 on"),
        ("restore.json", ("restored",), 3, "`restored` must be a list, and is 3"),
        ("data.json", ("rows", "test"), -1, "`rows.test` must be a whole number from 0 on, and is -1"),
        ("data.json", ("rows_of_classes", "test"), [1], "has 1 numbers, and there are 2 classes"),
        ("environment.json", ("versions",), 3, "`versions` must be a mapping or a list, and is 3"),
        ("lr_range.json", ("curves", "all", "rates"), [0.0], "`curves.all.rates.0` must be a finite number above 0"),
        ("hashes.json", ("files", "a"), 1, "`files.a` must be a text, and is 1"),
    ],
)
def test_a_value_that_was_changed_is_named_with_its_file(name, path, value, message, tmp_path):
    document = copy.deepcopy(SOUND[name])
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / name).write_text(json.dumps(document))
    with pytest.raises(FinetuneError) as caught:
        read_of_run(tmp_path / name)
    assert f"`{tmp_path / name}` cannot be: " in str(caught.value)
    assert message in str(caught.value)
    assert str(caught.value).endswith("Copy the whole folder again.")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"1" * 5000, b"[]"])
def test_a_file_that_is_no_json_is_named(content, tmp_path):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(FinetuneError, match=r"result.json` cannot be: .*\. Remove it"):
        read_of_run(tmp_path / "result.json", advice="Remove it.")


def test_a_file_that_is_missing_or_says_nothing_is_empty(tmp_path):
    assert read_of_run(tmp_path / "plan.json") == {}
    (tmp_path / "restore.json").write_text("null")
    assert read_of_run(tmp_path / "restore.json") == {}


def test_a_report_of_a_later_format_is_left_to_who_reads_it():
    assert fault_in_run("report.json", {"format": 2, "outputs": 3}) == ""


NUMBER = {"kind": "number", "mean": 0.0, "variance": 1.0}
PICTURES = {"size": [8, 8], "channels": 3, "resize": "pad", "value_range": [0.0, 255.0]}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, ""),
        ({"kind": "builder"}, ""),
        ({"kind": "table", "inputs": {"": {"a": NUMBER}}, "target": {"kind": "classes", "columns": ["y"]}}, ""),
        ({"kind": "table", "inputs": {}, "target": {"kind": {"kind": "numbers"}, "b": {"class_names": ["x"]}}}, ""),
        ({"kind": "table", "inputs": {}, "target": ["y"]}, ""),
        ({"kind": "images", "folder": "f", **PICTURES}, ""),
        (
            {"kind": "images", "folder": "f", **PICTURES, "size": [0, 8]},
            "`source.size.0` must be a whole number from 1",
        ),
        ({"kind": "audio", "folder": "f", "length": 3}, "`source.sample_rate` is missing"),
        ({"kind": "table"}, "`source.inputs` is missing"),
        (
            {"kind": "table", "inputs": {"": {"a": {"kind": "x"}}}},
            "`source.inputs..a.kind` must be `audio` or `category`",
        ),
        ({"kind": "table", "inputs": {"": {"a": {"kind": "number"}}}}, "`source.inputs..a.mean` is missing"),
        (
            {"kind": "table", "inputs": {"": {"a": NUMBER | {"variance": -1.0}}}},
            "variance` must be 0 or more, and is -1",
        ),
        (
            {"kind": "table", "inputs": {}, "target": {"kind": "x"}},
            "`source.target.kind` must be `classes` or `labels`",
        ),
        ({"kind": "table", "inputs": {}, "target": {"y": {"kind": "x"}}}, "`source.target.y.kind` must be"),
    ],
)
def test_what_new_rows_are_read_by_is_looked_at(source, message):
    said = fault_in_fitted({"source": source})
    assert said == message or (message and message in said)


def test_a_recipe_and_a_table_of_a_run_are_read_as_plain_data(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {npz: a.npz}\ntrain: {loss: {a: mse, b: {name: mse}}}\n")
    assert fault(read_recipe_of_run(path), RECIPE) == ""
    assert "`train.loss` must be" in fault({"data": {}, "train": {"loss": 3}}, RECIPE)
    for content in (b"a: [", b"", b"\xff", b"- 1", b"a: &a [*a, *a]"):
        path.write_bytes(content)
        with pytest.raises(FinetuneError, match=r"recipe.yaml` cannot be: "):
            read_recipe_of_run(path)
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,0.5\n")
    assert read_rows_of_run(tmp_path / "metrics.csv") == [{"epoch": "1", "loss": "0.5"}]
    assert read_rows_of_run(tmp_path / "steps.csv") == []
    (tmp_path / "metrics.csv").write_text(f"epoch\n{'9' * 200_000}\n")
    with pytest.raises(FinetuneError, match=r"metrics.csv` cannot be: field larger than field limit"):
        read_rows_of_run(tmp_path / "metrics.csv")
