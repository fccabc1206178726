"""Rows that are both trained and tested on are found without decoding anything."""

from dataclasses import replace

import numpy as np

from finetune.data.examples import Examples, Split, make_examples
from finetune.data.leaks import leaked_rows, warning_of_leaks
from finetune.data.rows import Rows, StoredRows

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


def raw_rows(contents, sizes=True):
    """Rows that are decoded from bytes, and the numbers of those that were read."""
    read = []
    stored = StoredRows(
        lambda row: read.append(row) or contents[row], np.array([*map(len, contents)]) if sizes else None
    )
    return Rows(len(contents), lambda at: at, take_row=lambda at: at, stored=stored), read


def test_of_rows_that_are_decoded_those_of_the_same_bytes_are_found_and_those_of_other_sizes_not_read():
    train, trained = raw_rows([b"abc", b"abd", b"long"])
    test, tested = raw_rows([b"xy", b"abc", b"abe"])
    examples = Examples(train, Y[:3], test, Y[:3], places={"train": ["0", "1", "2"], "test": ["t/0", "t/1", "t/2"]})
    assert leaked_rows(examples) == {"test": [1]}
    assert (trained, tested) == ([0, 1], [1, 2])
    assert "1 of 3 rows of `test` (`t/1`)" in warning_of_leaks({"test": [1]}, examples)


def test_of_rows_without_known_sizes_all_are_read_and_a_choice_of_rows_keeps_their_bytes(monkeypatch):
    rows, read = raw_rows([b"a", b"b", b"a", b"c"], sizes=False)
    parts = Split(rows, Y[:4]).select(np.array([1, 0])), Split(rows, Y[:4]).select(np.array([3, 2]))
    assert leaked_rows(make_examples(*parts)) == {"test": [1]}
    assert {*read} == {0, 1, 2, 3}
    monkeypatch.setattr("finetune.data.leaks._HASHED_BYTES", 3)
    assert leaked_rows(make_examples(*parts)) == {}


def test_rows_of_an_input_in_memory_and_another_in_files_are_compared_together():
    files, _ = raw_rows([b"a", b"a"])
    x = {"photo": files, "age": X[:2]}
    assert leaked_rows(Examples(x, Y[:2], x, Y[:2])) == {"test": [0, 1]}
    assert leaked_rows(Examples(x, Y[:2], {"photo": files, "age": X[[5, 1]]}, Y[:2])) == {"test": [1]}


def test_rows_that_can_only_be_decoded_and_very_large_arrays_are_left_to_the_deep_check(monkeypatch):
    rows = Rows(9, lambda at: at)
    assert leaked_rows(Examples(rows, Y, rows, Y)) == {}
    monkeypatch.setattr("finetune.data.leaks._HASHED_BYTES", 10)
    assert leaked_rows(Examples(X, Y, X, Y)) == {}
