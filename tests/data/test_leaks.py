"""Rows that are both trained and tested on are found without decoding anything."""

from dataclasses import replace

import numpy as np
import pytest

from finetune.data.examples import Examples
from finetune.data.leaks import leaked_rows, warning_of_leaks
from finetune.data.rows import Rows

X = np.random.default_rng(0).normal(size=(9, 4)).astype("float32")
Y = np.zeros(9)


def test_copies_of_training_rows_in_other_splits_are_found():
    validation = np.concatenate([X[:1] + 1, X[8:]])
    examples = Examples(X, Y, np.concatenate([X[3:5], X[:2] * 2]), Y[:4], validation, Y[:2])
    leaked = leaked_rows(examples)
    assert leaked == {"test": [0, 1], "validation": [1]}
    assert warning_of_leaks(leaked, examples) == (
        "warning: training rows have the same inputs as 2 of 4 rows of `test` (`row 0`, `row 1`) and 1 of 2 rows of "
        "`validation` (`row 1`), so these figures are too good. Remove the copies"
    )
    of_table = replace(examples, source={"kind": "table"})  # whose columns may say which rows belong together
    assert warning_of_leaks(leaked, of_table).endswith("Remove the copies, or split with `by: group`")


def test_rows_of_several_inputs_are_the_same_where_all_inputs_are():
    train, test = {"a": X, "b": X + 1}, {"a": X[:2], "b": X[:2] + [[1.0], [2.0]]}
    assert leaked_rows(Examples(train, Y, {k: v.astype("float32") for k, v in test.items()}, Y[:2])) == {"test": [0]}


def test_without_copies_nothing_is_said():
    examples = Examples(X, Y, X * 2, Y)
    assert leaked_rows(examples) == {}
    assert warning_of_leaks({}, examples) == ""


@pytest.mark.parametrize("kind", ["images", "audio"])
@pytest.mark.parametrize("same_size", [True, False])
def test_files_of_the_same_bytes_are_found(tmp_path, same_size, kind):
    contents = {"0.png": b"abc", "1.png": b"abd", "2.png": b"abc", "3.png": b"abe" if same_size else b"longer"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    rows = Rows(2, lambda at: at, take_row=lambda at: at)
    places = {"train": ["0.png", "1.png"], "test": ["2.png", "3.png"]}
    source = {"kind": kind, "folder": str(tmp_path)}
    examples = Examples(rows, Y[:2], rows, Y[:2], places=places, source=source)
    assert leaked_rows(examples) == {"test": [0]}
    assert "1 of 2 rows of `test` (`2.png`)" in warning_of_leaks(leaked_rows(examples), examples)


def test_rows_that_can_only_be_decoded_and_very_large_arrays_are_left_to_the_deep_check(monkeypatch):
    rows = Rows(9, lambda at: at)
    assert leaked_rows(Examples(rows, Y, rows, Y)) == {}
    monkeypatch.setattr("finetune.data.leaks._HASHED_BYTES", 10)
    assert leaked_rows(Examples(X, Y, X, Y)) == {}
