import re

import pytest

from finetune.data.split_names import note_on_names, split_folders, split_prefix, splits_of_names
from finetune.errors import DataError


def test_what_others_call_splits_is_known_in_any_case():
    assert splits_of_names(["Train", "DEV", "testing", "notes"]) == {
        "Train": "train",
        "DEV": "validation",
        "testing": "test",
    }


def test_rows_that_are_the_only_ones_beside_those_to_train_on_test_which_is_said():
    splits = split_folders(["train", "val"])
    assert splits == {"train": "train", "val": "test"}
    assert note_on_names(splits) == (
        "`val` is all there is beside `train`: its rows test. Where rows are to validate, `data.split: {validation: 0.1}` "
        "takes a share of the training rows"
    )
    assert note_on_names(split_folders(["train", "test"])) == note_on_names({}) == ""


def test_two_names_of_a_split_are_refused():
    with pytest.raises(DataError, match=re.escape("`val`, `dev` all stand for `validation`. Rename all but one.")):
        splits_of_names(["train", "val", "dev"])


@pytest.mark.parametrize(
    ("names", "is_split"),
    [
        (["train", "val"], True),
        (["train", "bus"], True),  # which `find_files` refuses
        (["Training", "Testing"], True),
        (["training", "resting"], False),
        (["Train", "Bus"], False),
        (["val", "test"], False),
        ([], False),
    ],
)
def test_folders_are_splits_where_all_are_called_so_or_one_is_train(names, is_split):
    assert bool(split_folders(names)) == is_split


def test_the_first_word_of_a_file_is_its_split():
    names = ("train-1", "training_1", "valid.csv", "Validation2", "x-train", "device-0", "")
    assert [split_prefix(name) for name in names] == ["train", "training", "valid", "Validation", "", "", ""]
