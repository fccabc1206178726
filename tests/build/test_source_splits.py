"""Rows of a source are limited, numbered and split as the recipe says."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.build.source_splits import (
    SourceRows,
    examples_as_asked,
    npz_examples,
    rows_of_class_files,
    split_examples,
)
from finetune.data.class_folders import ClassFiles
from finetune.data.examples import Examples, Split
from finetune.data.file_names import FilePaths, joined_texts
from finetune.data.rows import Rows, select
from finetune.errors import DataError
from finetune.recipe.loader import load_recipe, with_values

X, Y = np.arange(24.0).reshape(12, 2), np.arange(12) % 3


@pytest.fixture
def asked(recipe):
    """Loads a recipe whose data have some keys."""
    return lambda *keys: load_recipe(recipe, overrides=["data={npz: a.npz}", *[f"data.{key}" for key in keys]])


def test_places_follow_their_rows(asked):
    rows = SourceRows(Split(X, Y), places=[f"file:{number}" for number in range(12)])
    examples = split_examples(asked("split={test: 0.25}", "limit=8"), {"": rows}, {"kind": "test"})
    for split, name in ((examples.train, "train"), (examples.test, "test")):
        assert [f"file:{int(row[0] // 2)}" for row in split.x] == list(examples.places[name])
    assert len(examples.train) + len(examples.test) == 8


def test_a_split_by_hash_follows_the_places(asked):
    keys = "split={by: hash, test: 0.4}"
    places = [f"file:{number}" for number in range(12)]
    rows, reverse = SourceRows(Split(X, Y), places=places), SourceRows(Split(X[::-1], Y[::-1]), places=places[::-1])
    one, other = (split_examples(asked(keys), {"": each}, {}) for each in (rows, reverse))
    assert sorted(one.places["test"]) == sorted(other.places["test"])


@pytest.mark.parametrize("y", [Y, Y[:, np.newaxis], np.eye(3)[Y], np.array(["a", "b", "c"])[Y]])
def test_classes_keep_their_shares_in_whatever_form_they_are(asked, y):
    examples = split_examples(asked("split={test: 0.25}"), {"": SourceRows(Split(X, y))}, {})
    assert sorted(int(row[0] // 2) % 3 for row in examples.x_test) == [0, 1, 2]


def test_text_is_numbered_alike_in_all_splits(asked):
    parts = {
        "train": SourceRows(Split(X, np.array(list("abc") * 4))),
        "test": SourceRows(Split(X[:2], np.array(["c", "a"]))),
    }
    examples = split_examples(asked(), parts, {})
    assert examples.y_test.tolist() == [2, 0]
    assert examples.class_names == ("a", "b", "c")


def test_text_labels_of_the_parts_of_a_row_keep_their_places(asked):
    tags = np.array(list("abcb" * 9)).reshape(12, 3)
    parts = {"train": SourceRows(Split(X, tags)), "test": SourceRows(Split(X[:2], tags[5:7]))}
    examples = split_examples(asked(), parts, {})
    assert examples.y_test.tolist() == np.char.translate(tags[5:7], str.maketrans("abc", "012")).astype(int).tolist()
    assert examples.class_names == ("a", "b", "c")


def test_what_a_text_target_is_follows_the_outputs_of_the_network_and_is_kept(asked):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    loaded = with_values(asked("split={test: 0.25}"), {("train", "loss"): "auto"})
    rows = {"": SourceRows(Split(X, np.array(["no", "yes"])[Y % 2]))}
    examples = split_examples(loaded, rows, {}, network=network)
    assert examples.y_train.dtype == np.float32  # as the binary loss of a single output takes them
    assert examples.source["target"] == {"kind": "classes", "reason": "2 classes"}
    with pytest.raises(DataError, match=r"A network with a single output tells two classes apart\. The target has 3"):
        split_examples(loaded, {"": SourceRows(Split(X, np.array(["a", "b", "c"])[Y]))}, {}, network=network)


def test_files_of_classes_are_rows_of_the_split_of_their_folder():
    paths = [("train", "cat", 1), ("train", "dog", 2), ("test", "cat", 3)]
    names = joined_texts("{}/{}/{}.png".format(*each) for each in paths)
    splits, labels, _ = map(np.array, zip(*paths, strict=True))
    parts = rows_of_class_files(X[:3], ClassFiles(FilePaths(Path("/p"), names), labels, splits))
    assert {name: rows.places for name, rows in parts.items()} == {
        "train": ["train/cat/1.png", "train/dog/2.png"],
        "test": ["test/cat/3.png"],
    }
    assert parts["test"].split.x.tolist() == X[2:3].tolist()
    assert parts["train"].split.y.tolist() == ["cat", "dog"]


def test_rows_that_cannot_be_read_are_skipped_where_the_recipe_says(recipe):
    def read(index):
        tf.debugging.assert_none_equal(index, tf.constant(3, tf.int64), message="row 3 is broken")
        return tf.gather(tf.constant(X, tf.float32), index)

    rows = Rows(12, lambda indices: tf.map_fn(read, indices, fn_output_signature=tf.float32), take_row=read)
    loaded = load_recipe(recipe, overrides=["data={builder: my.module:make, on_error: skip}"])
    examples = split_examples(loaded, {"": SourceRows(Split(rows, Y), places=[f"f{n}" for n in range(12)])}, {})
    assert examples.source["skipped"] == ["f3"]
    assert len(examples.train) + len(examples.test) == 11


def test_examples_that_have_splits_keep_them(asked):
    examples = Examples(X[:8], Y[:8], X[8:], Y[8:], class_names=("a", "b", "c"), source={"kind": "npz"})
    kept = examples_as_asked(asked(), examples)
    assert kept.x_train is examples.x_train  # what lies in a file stays there
    assert kept.class_names == ("a", "b", "c")
    assert len(examples_as_asked(asked("limit=6"), examples).train) == 4
    for split, said in (
        ("{test: 0.5}", r"`data\.split\.test` has nothing to do"),
        ("{by: random}", r"`\{validation: 0\.2\}`"),
    ):
        with pytest.raises(DataError, match=said):
            examples_as_asked(asked(f"split={split}"), examples)


def test_where_the_data_say_which_rows_test_a_share_of_the_others_validates(asked):
    """Of each class, as the rows of folders come class by class: the end of them would be one class."""
    y = np.repeat([0, 1, 2], [8, 8, 8])
    examples = Examples(np.arange(24), y, np.arange(6), np.arange(6) % 3)
    made = examples_as_asked(asked("split={validation: 0.25}"), examples)
    assert made.x_test.tolist() == examples.x_test.tolist()
    assert np.bincount(made.y_validation).tolist() == [2, 2, 2]
    assert sorted([*made.x_train, *made.x_validation]) == list(range(24))
    assert (made.y_train == y[made.x_train]).all()
    validated = replace(examples, x_validation=examples.x_test, y_validation=examples.y_test)
    with pytest.raises(DataError, match=r"`data\.split` has nothing to do, since the data say which rows test and val"):
        examples_as_asked(asked("split={validation: 0.25}"), validated)


def test_a_limit_that_leaves_a_split_empty_is_refused(asked):
    with pytest.raises(DataError, match="`x_test` that is empty"):
        examples_as_asked(asked("limit=1"), Examples(X[:8], Y[:8], X[8:], Y[8:]))


def test_rows_of_which_none_can_be_read_are_an_error(recipe):
    def read(index):
        raise ValueError("nothing there")

    rows = Rows(3, lambda indices: tf.numpy_function(read, [indices], tf.float32))
    loaded = load_recipe(recipe, overrides=["data={builder: my.module:make, on_error: skip}"])
    with pytest.raises(DataError, match=r"none of 3 can: .*nothing there"):
        split_examples(loaded, {"": SourceRows(Split(rows, Y[:3]))}, {})


def test_arrays_of_a_file_are_in_splits_or_are_split_as_the_recipe_says(asked, tmp_path):
    np.savez(tmp_path / "all.npz", x=X, y=Y, class_names=["a", "b", "c"])
    np.savez(tmp_path / "train.npz", x_train=X, y_train=Y)
    examples = npz_examples(asked("split={test: 0.25, validation: 0.25}"), str(tmp_path / "all.npz"))
    assert [len(split) for split in (examples.train, examples.test, examples.validation)] == [6, 3, 3]
    assert examples.class_names == ("a", "b", "c")
    assert len(npz_examples(asked("split={test: 0.5}"), str(tmp_path / "train.npz")).test) == 6
    with pytest.raises(DataError, match="`x_test`, `y_test` are missing"):
        npz_examples(asked(), str(tmp_path / "train.npz"))


def test_rows_of_a_large_array_in_a_file_are_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.data.rows._COPIED", 10)
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    mapped[:] = X
    chosen = np.array([7, 2, 5])
    rows = select(mapped, chosen)
    assert isinstance(rows, Rows)
    np.testing.assert_array_equal(rows.take(tf.constant([0, 2])), X[[7, 5]].astype(np.float32))
    assert rows.fingerprint == select(mapped, chosen).fingerprint != ""
