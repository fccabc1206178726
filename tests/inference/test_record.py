import subprocess
import sys
from dataclasses import replace

import pytest

from finetune.errors import DataError, FinetuneError
from finetune.inference.record import check_prediction, open_record


def test_a_record_says_what_each_input_is_made_of_and_what_each_output_means(run_of):
    record = open_record(run_of("table"))
    [features] = record.inputs
    assert (features.kind, features.columns) == ("features", ("age", "town"))
    assert features.fitted["town"]["categories"] == ["", "7", "Bonn", "Ulm"]
    kind, price = record.outputs
    assert (kind.name, kind.kind, kind.names, kind.columns, kind.logits) == (
        "kind",
        "classes",
        ("new", "old"),
        ("kind",),
        True,
    )
    assert (price.name, price.kind, price.names) == ("price", "numbers", ("price",))
    ids, size = open_record(run_of("labels")).inputs
    assert (ids.name, ids.kind, ids.columns, ids.fitted["length"]) == ("ids", "tokens", ("text",), 6)
    assert (size.name, size.kind) == ("size", "features")
    assert open_record(run_of("labels")).outputs[0].kind == "labels"
    assert open_record(run_of("images")).inputs[0].kind == "image"
    assert open_record(run_of("audio")).inputs[0].fitted["sample_rate"] == 100
    assert open_record(run_of("arrays")).outputs[0].kind == "classes"


def test_it_is_read_without_tensorflow(run_of):
    code = (
        "import sys; from finetune.inference.record import open_record; open_record(sys.argv[1]).outputs;"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, run_of("arrays")], check=True)


def test_a_damaged_file_of_a_run_is_named(run_of, tmp_path):
    import shutil

    shutil.copytree(run_of("arrays"), tmp_path / "run")
    (tmp_path / "run" / "data.json").write_text("[1")
    with pytest.raises(FinetuneError, match=r"`.*data\.json` cannot be: .*Copy the whole folder again"):
        open_record(tmp_path / "run")


def test_options_of_a_prediction_are_checked_before_anything_is_loaded(tmp_path):
    (tmp_path / "rows.csv").write_text("a\n1\n")
    rows = [str(tmp_path / "rows.csv")]
    with pytest.raises(
        FinetuneError, match=r"`--format` is one of `jsonl`, `csv`. Received: `cvs`. Did you mean `csv`"
    ):
        check_prediction(rows, None, "cvs", "stop")
    with pytest.raises(FinetuneError, match=r"`--on-error` is one of `stop`, `skip`. Received: `ignore`"):
        check_prediction(rows, None, None, "ignore")
    with pytest.raises(FinetuneError, match=r"`--out` is a file\. `.*` is a folder"):
        check_prediction(rows, tmp_path, None, "stop")
    with pytest.raises(FinetuneError, match=r"Predictions do not overwrite files\. .*`--overwrite`"):
        check_prediction(rows, tmp_path / "rows.csv", None, "stop")
    check_prediction(rows, tmp_path / "rows.csv", None, "stop", overwrite=True)
    check_prediction(["-"], None, None, "skip")
    with pytest.raises(DataError, match=r"`.*row\.csv` does not exist\. Did you mean `rows\.csv`"):
        check_prediction([str(tmp_path / "row.csv")], None, None, "stop")


def test_a_record_says_how_layers_compute_and_one_of_before_there_was_a_choice_is_exact(run_of):
    record = open_record(run_of("arrays"))
    assert record.kernels == "native"
    older = {name: value for name, value in record.recipe["train"].items() if name != "kernels"}
    assert replace(record, recipe={**record.recipe, "train": older}).kernels == "exact"
