import shutil

import numpy as np
import pytest

from finetune.data.rows import rows_of, take
from finetune.errors import DataError
from finetune.inference.labelled_rows import labelled_examples


def test_classes_are_those_of_the_run_whatever_the_folders_of_other_data_are(loaded, tmp_path):
    fine_tuned = loaded("images")  # blue, green, red
    photos = fine_tuned.record.folder.parent / "photos"
    shutil.copytree(photos / "red", tmp_path / "more" / "red")
    shutil.copytree(photos / "green", tmp_path / "more" / "green")
    examples = labelled_examples(fine_tuned, tmp_path / "more", [])
    assert set(examples.y_test.tolist()) == {1, 2}
    assert examples.places["test"][0] == "green/0.png"
    assert examples.x_test.take(np.array([0, 7])).shape == (2, 8, 8, 3)
    (tmp_path / "more" / "grene").mkdir()
    shutil.copy(photos / "red" / "0.png", tmp_path / "more" / "grene")
    with pytest.raises(DataError, match=r"also hold `grene` \(`grene/0\.png`\)\. Did you mean `green`"):
        labelled_examples(fine_tuned, tmp_path / "more", [])


def test_targets_of_a_table_are_found_by_name_in_any_order_of_the_columns(loaded, tmp_path):
    fine_tuned = loaded("table")
    (tmp_path / "more.csv").write_text("price,kind,town,age\n3,old,Ulm,1\n4.5,new,Rome,2\n")
    examples = labelled_examples(fine_tuned, tmp_path / "more.csv", [])
    assert examples.y_test["kind"].tolist() == [1, 0]
    assert examples.y_test["price"].tolist() == [3, 4.5]
    (tmp_path / "bad.csv").write_text("price,kind,town,age\n3,used,Ulm,1\n")
    with pytest.raises(DataError, match=r"knows the classes `new`, `old`\. The data also hold `used` \(`bad\.csv:2`\)"):
        labelled_examples(fine_tuned, tmp_path / "bad.csv", [])
    (tmp_path / "without.csv").write_text("prize,kind,town,age\n3,old,Ulm,1\n")
    with pytest.raises(DataError, match=r"need the target .*: `price`\. .*Did you mean `prize`"):
        labelled_examples(fine_tuned, tmp_path / "without.csv", [])


def test_rows_may_have_several_labels_and_several_inputs(loaded, tmp_path):
    (tmp_path / "more.jsonl").write_text(
        '{"text": "red", "size": 1, "colours": ["red", "blue"]}\n{"text": "box", "size": 2, "colours": "|"}\n'
    )
    examples = labelled_examples(loaded("labels"), tmp_path / "more.jsonl", [])
    assert examples.y_test.tolist() == [[1, 0, 1], [0, 0, 0]]
    batch = take(rows_of(examples.x_test), np.array([1, 0]))
    assert batch["ids"].numpy()[:, 0].tolist() == [5, 2]


def test_arrays_bring_their_own_targets(loaded):
    fine_tuned = loaded("arrays")
    examples = labelled_examples(fine_tuned, fine_tuned.record.folder.parent / "rows.npz", [])
    assert len(examples.test) == 8


def test_what_is_wrong_with_a_row_is_told_as_it_was_not_as_tensorflow_tells_it(loaded, tmp_path):
    fine_tuned = loaded("table")
    (tmp_path / "more.csv").write_text("price,kind,town,age\n3,old,Ulm,1\n4.5,new,Rome,young\n")
    with pytest.raises(DataError, match=r"^`age` holds numbers\. `more\.csv:3` has `young`\.$"):
        fine_tuned.evaluate(tmp_path / "more.csv")


def test_arrays_are_no_rows_of_a_run_that_made_its_inputs_of_columns_or_files(loaded, tmp_path):
    np.savez(tmp_path / "x.npz", x_test=np.zeros((3, 4), "f4"), y_test=np.zeros(3, "i4"))
    with pytest.raises(
        DataError,
        match=r"as `features`\. .*x\.npz` holds arrays\. Give a table with the columns `age`, `town`, `kind`, `price`",
    ):
        labelled_examples(loaded("table"), tmp_path / "x.npz", [])
    with pytest.raises(DataError, match=r"as `image`\. .*x\.npz` holds arrays\. Give a folder of classes\."):
        labelled_examples(loaded("images"), tmp_path / "x.npz", [])
