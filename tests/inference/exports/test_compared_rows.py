import csv

import numpy as np
import pytest

from finetune.errors import DataError, FinetuneError
from finetune.inference.evaluation import own_examples
from finetune.inference.exports.compared_rows import arrays_for, compared_rows_of, plain_arrays
from finetune.inference.exports.raw_graph import raw_graph


def test_the_rows_are_raw_and_those_of_the_test_split(loaded):
    fine_tuned = loaded("table")
    examples = own_examples(fine_tuned, "test")
    compared = compared_rows_of(fine_tuned, examples, [])
    assert compared.name == "rows of the test split"
    assert sorted(compared.rows.places) == sorted(examples.places["test"])
    with open(fine_tuned.record.source["file"], newline="") as file:
        lines = list(csv.DictReader(file))
    numbers = [int(place.rpartition(":")[2]) - 2 for place in compared.rows.places]
    assert list(compared.rows.columns["age"]) == [lines[number]["age"] for number in numbers]


def test_files_are_found_where_the_run_found_them(loaded, run_of):
    fine_tuned = loaded("images")
    compared = compared_rows_of(fine_tuned, own_examples(fine_tuned, "test"), [])
    assert all(path.is_file() for path in compared.rows.columns[""])
    assert len(compared.rows) == 6


def test_rows_of_arrays_go_in_as_they_are(loaded):
    fine_tuned = loaded("arrays")
    compared = compared_rows_of(fine_tuned, own_examples(fine_tuned, "test"), [])
    graph = raw_graph(fine_tuned.record, fine_tuned.model)
    [array] = arrays_for(graph.inputs, fine_tuned, compared.rows).values()
    assert array.shape == (8, 4)


def test_rows_that_the_user_names_count_more_and_need_no_targets(loaded, tmp_path):
    (tmp_path / "new.csv").write_text("town,age\nBonn,4\n")
    compared = compared_rows_of(loaded("table"), None, [tmp_path / "new.csv"])
    assert (compared.name, len(compared.rows)) == (str(tmp_path / "new.csv"), 1)


def test_rows_that_do_not_fit_are_told_as_when_they_are_predicted(loaded, tmp_path):
    (tmp_path / "new.csv").write_text("city\nBonn\n")
    with pytest.raises(DataError, match=r"`.*new.csv:2` has columns `city`; `age`, `town` are missing"):
        compared_rows_of(loaded("table"), None, [tmp_path / "new.csv"])


def test_without_rows_an_export_cannot_be_compared(loaded):
    with pytest.raises(
        FinetuneError, match=r"whose files are not here. Name some with `--data`; no targets are needed."
    ):
        compared_rows_of(loaded("table"), None, [])


def test_texts_and_bytes_are_written_without_pickling_and_keep_zeros_at_their_end(tmp_path):
    arrays = {"a": np.array([b"x\0", "é"], object), "b": np.ones(2)}
    plain = plain_arrays(arrays)
    np.savez(tmp_path / "a.npz", **plain)
    assert plain["base64:a"].tolist() == ["eAA=", "w6k="]
    assert set(np.load(tmp_path / "a.npz")) == {"base64:a", "b"}
