"""Datasets that come one batch after another are read once, and their rows kept."""

import numpy as np
import pytest
import tensorflow as tf

from finetune.data import streamed
from finetune.data.indexed import ItemNames
from finetune.data.rows import as_rows
from finetune.data.streamed import read_once
from finetune.errors import DataError

X, Y = np.arange(24.0).reshape(12, 2), np.arange(12) % 3
NONE = ItemNames()


def dataset(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays)


@pytest.mark.parametrize("batch", [0, 5])
def test_rows_and_batches_give_the_same_rows(batch):
    rows = dataset(X, Y, Y / 2)
    split = read_once(rows.batch(batch) if batch else rows, NONE, batched=bool(batch))
    for array, expected in ((split.x, X), (split.y, Y), (split.weights, Y / 2)):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype


def test_parts_of_dicts_are_named_and_text_stays_text():
    rows = tf.data.Dataset.from_tensor_slices({"a": X, "b": [f"ü{y}" for y in Y], "kind": [f"k{y}" for y in Y]})
    split = read_once(rows.batch(5), ItemNames({"left": "a", "right": "b"}, ["kind"]), batched=True)
    np.testing.assert_array_equal(split.x["left"], X)
    assert split.x["right"][:2].tolist() == ["ü0", "ü1"]
    assert split.y[:2].tolist() == ["k0", "k1"]


def test_large_rows_lie_in_a_file_without_a_name(monkeypatch):
    monkeypatch.setattr(streamed, "IN_MEMORY", 100)
    split = read_once(dataset(X, Y).batch(5), NONE, batched=True)
    assert isinstance(split.x, np.memmap)
    assert type(split.y) is np.ndarray
    np.testing.assert_array_equal(as_rows(split.x).take(tf.constant([3, 1])), X[[3, 1]])


def test_what_a_pipeline_draws_at_random_is_drawn_once():
    rows = dataset(X, Y).map(lambda x, y: (x + tf.random.uniform((), dtype=x.dtype), y))
    split = read_once(rows, NONE, batched=False)
    np.testing.assert_array_equal(split.first(2)[0], split.first(2)[0])


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ([], "A dataset needs rows. This one has none."),
        ([(X[:2], Y[:2]), (X[:2, :1], Y[:2])], "Those of element 1 have (1,), those before (2,). Pad, cut or resize"),
        (
            [X[:2]],
            "An element of a dataset is `(inputs, target)`, `(inputs, target, weight)` or a dict. Received: a `ndarray`.",
        ),
        (
            [{"a": X, "b": Y}],
            "Elements are dicts of `a`, `b`: say which part is what, such as `inputs: a` and `target: b`.",
        ),
        ([(X[:2], Y[:2]), (X[:2], Y[:2], Y[:2])], "All elements have the same parts. Element 0 has 2, and 1 has 3."),
        (
            [(tf.ragged.constant([[1], [2, 3]]), Y[:2])],
            "The dataset gives a `RaggedTensor`. Convert it there: `.to_tensor()`",
        ),
        ([(X[:2], np.int64(3))], "A batch has an axis that counts its rows, and an element holds a single number."),
    ],
)
def test_elements_of_another_form_are_refused(elements, said):
    with pytest.raises(DataError) as caught:
        read_once(elements, NONE, batched=True)
    assert said in str(caught.value)


def test_a_dataset_that_does_not_end_is_refused_before_the_disk_is_full(monkeypatch):
    monkeypatch.setattr(streamed, "_CHECK_ROWS", 10)
    monkeypatch.setattr(streamed, "_FREE_DISK", 2**80)
    with pytest.raises(DataError, match=r"did not end within 10 elements, and the disk is full\. Remove `repeat\(\)`"):
        read_once(iter(lambda: (X[:2], Y[:2]), None), NONE, batched=True)
