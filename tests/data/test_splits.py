"""Splits: every row in exactly one, in the shares that were asked for, reproducible, and without leaks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.splits import split_by_column, split_rows
from finetune.errors import DataError


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(20, 300),
    test=st.floats(0.1, 0.5),
    validation=st.floats(0.1, 0.4),
    by=st.sampled_from(["random", "stratified", "group", "hash"]),
    seed=st.integers(0, 2**40),
)
def test_every_row_is_in_exactly_one_split_and_the_same_seed_chooses_the_same(rows, test, validation, by, seed):
    options = {"test": test, "validation": validation, "by": by, "seed": seed}
    options |= {"labels": np.arange(rows) % 3, "keys": np.arange(rows) // 2}
    try:
        splits = split_rows(rows, **options)
    except DataError:  # a hash can leave a small split empty
        assert by == "hash"
        return
    assert list(splits) == ["train", "test", "validation"]
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(rows))
    again = split_rows(rows, **options)
    assert all(np.array_equal(splits[name], again[name]) for name in splits)


@pytest.mark.parametrize("by", ["random", "stratified"])
def test_shares_are_met_to_the_row(by):
    splits = split_rows(1000, test=0.2, validation=0.1, by=by, labels=np.arange(1000) % 7)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 700, "test": 200, "validation": 100}


def test_another_seed_chooses_other_rows():
    first, other = (split_rows(100, test=0.2, seed=seed)["test"].tolist() for seed in (1, 2))
    assert first != other


def test_without_a_share_there_are_no_validation_rows():
    assert list(split_rows(10, test=0.2)) == ["train", "test"]


def test_each_class_is_split_in_the_same_shares():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    splits = split_rows(1000, test=0.2, validation=0.1, by="stratified", labels=labels)
    assert np.bincount(labels[splits["test"]]).tolist() == [180, 18, 2]
    assert np.bincount(labels[splits["validation"]]).tolist() == [90, 9, 1]


def test_many_classes_of_few_rows_still_give_the_shares():
    labels = np.repeat(np.arange(50), 3)  # a fifth of 3 rows is less than one row
    splits = split_rows(150, test=0.2, by="stratified", labels=labels)
    assert len(splits["test"]) == 30
    assert np.bincount(labels[splits["test"]]).max() == 1


def test_rows_of_a_group_stay_together():
    keys = np.random.default_rng(0).integers(0, 40, 400).astype(str)
    splits = split_rows(400, test=0.25, by="group", keys=keys)
    assert not {*keys[splits["train"]]} & {*keys[splits["test"]]}
    assert abs(len(splits["test"]) - 100) < 20


def test_a_split_by_hash_stays_when_rows_are_added():
    keys = [f"row {number}" for number in range(1000)]
    before = split_rows(500, test=0.2, validation=0.2, by="hash", keys=keys[:500])
    after = split_rows(1000, test=0.2, validation=0.2, by="hash", keys=keys)
    for name, rows in before.items():
        assert set(rows) == {row for row in after[name] if row < 500}
    assert abs(len(after["test"]) - 200) < 50


def test_a_split_without_rows_is_an_error():
    with pytest.raises(DataError, match=r"2 rows split 0\.1 test / 0\.9 train by `random` leave none for `test`"):
        split_rows(2, test=0.1)


def test_what_a_split_needs_is_said():
    with pytest.raises(DataError, match="A split by `stratified` needs classes"):
        split_rows(9, test=0.3, by="stratified")
    with pytest.raises(DataError, match="needs a column of keys: name it with `column`"):
        split_rows(9, test=0.3, by="group")


def test_a_column_can_say_the_split():
    splits = split_by_column(["train", "test", "train", "validation"], "part")
    assert {name: rows.tolist() for name, rows in splits.items()} == {"train": [0, 2], "test": [1], "validation": [3]}


def test_a_column_may_call_splits_as_others_do():
    splits = split_by_column(["Train", "Test", "Train", "val"], "part")
    assert {name: rows.tolist() for name, rows in splits.items()} == {"train": [0, 2], "test": [1], "validation": [3]}
    with pytest.raises(DataError, match="`part` has none of `test`"):
        split_by_column(["train", "val"], "part")
    with pytest.raises(DataError, match="`dev`, `val` all stand for `validation`"):
        split_by_column(["train", "val", "dev"], "part")


def test_a_column_with_other_values_is_an_error():
    with pytest.raises(DataError, match=r"`part` also holds `tset`\. Did you mean `test`"):
        split_by_column(["train", "tset"], "part")
    with pytest.raises(DataError, match="`part` has none of `test`"):
        split_by_column(["train", "train"], "part")
