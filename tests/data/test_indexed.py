"""Anything with a length and items by index gives rows, read when they are needed, each once."""

import re
import threading

import numpy as np
import pytest

from finetune.data.batches import training_batches
from finetune.data.indexed import ItemNames, has_items, indexed_rows, part_of
from finetune.errors import DataError

X, Y = np.arange(24.0).reshape(12, 2), np.arange(12) % 3


class Source:
    """Items by index, of which reading is recorded."""

    def __init__(self, items):
        self.items, self.read, self.inside, self.most = items, [], 0, 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.read.append(index)
        self.inside += 1
        self.most = max(self.most, self.inside)
        item = self.items[index]
        self.inside -= 1
        if isinstance(item, Exception):
            raise item
        return item


def test_pairs_give_inputs_by_index_and_targets_in_memory():
    split = indexed_rows(Source(list(zip(X, Y, strict=True)))).split
    assert split.y.tolist() == Y.tolist()
    x = split.select(np.array([5, 0])).first(2)[0]
    np.testing.assert_array_equal(x, X[[5, 0]].astype(np.float32))


def test_a_third_part_is_the_weight_of_the_row():
    split = indexed_rows(Source([(x, y, y / 2) for x, y in zip(X, Y, strict=True)])).split
    np.testing.assert_array_equal(split.weights, Y.astype(np.float32) / 2)


def test_parts_of_dicts_are_named():
    items = [{"deep": {"a": x, "b": str(y)}, "kind": f"k{y}", "who": y // 2} for x, y in zip(X, Y, strict=True)]
    names = ItemNames({"left": "deep/a", "right": "deep/b"}, ["kind"], "who")
    read = indexed_rows(Source(items), names)
    x, y = read.split.first(2)
    assert x["left"].numpy().tolist() == [[0, 1], [2, 3]]
    assert x["right"].numpy().tolist() == [b"0", b"1"]
    assert y.numpy().tolist() == [b"k0", b"k1"]
    assert read.column.tolist() == (Y // 2).tolist()


def test_several_targets_make_a_vector():
    names = ItemNames({"": "x"}, ["a", "b"])
    assert indexed_rows([{"x": 1.0, "a": 2, "b": 3}], names).split.y.tolist() == [[2, 3]]


def test_inputs_are_read_in_the_order_of_the_batches():
    source = Source(list(zip(X, Y, strict=True)))
    split = indexed_rows(source).split
    source.read.clear()
    batches = list(training_batches(split.x, split.y, batch_size=5, seed=1).take(3))
    arrays = list(training_batches(X, Y, batch_size=5, seed=1).take(3))
    for (x, y), (x_of_array, y_of_array) in zip(batches, arrays, strict=True):
        np.testing.assert_array_equal(x, x_of_array)
        np.testing.assert_array_equal(y, y_of_array)


def test_an_item_of_several_inputs_is_read_once_for_all_of_them():
    source = Source([((x, -x), y) for x, y in zip(X, Y, strict=True)])
    split = indexed_rows(source).split
    source.read.clear()
    split.first(12)
    assert max(map(source.read.count, range(12))) <= 1


def test_a_source_is_never_read_by_two_threads_at_once():
    source = Source(list(zip(X, Y, strict=True)))
    split = indexed_rows(source).split
    threads = [threading.Thread(target=lambda: split.first(12)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.most == 1


def test_large_targets_such_as_masks_are_read_when_they_are_needed():
    masks = [(np.zeros((40, 40, 3)), np.full((40, 40, 1), number)) for number in range(3)]
    source = Source(masks)
    split = indexed_rows(source).split
    assert set(source.read) == {0}
    assert split.first(3)[1][:, 0, 0, 0].numpy().tolist() == [0, 1, 2]


def test_items_that_cannot_be_read_are_named_or_skipped():
    items = [OSError("no 0.jpg"), *zip(X[1:], Y[1:], strict=True)]
    items[7] = ValueError("cut short")
    with pytest.raises(DataError, match=r"Every item must be readable\. item 0 is not: OSError: no 0\.jpg\. Replace"):
        indexed_rows(Source(items))
    read = indexed_rows(Source(items), skip=True)
    assert read.unreadable == {0: "OSError: no 0.jpg", 7: "ValueError: cut short"}
    assert read.split.y.tolist() == [1, 2, 0, 1, 2, 0, 2, 0, 1, 2]
    np.testing.assert_array_equal(read.split.first(10)[0], X[[1, 2, 3, 4, 5, 6, 8, 9, 10, 11]])


def test_targets_may_come_from_a_source_that_is_faster_to_read():
    source, cheap = Source([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]), [{"y": y} for y in Y]
    read = indexed_rows(source, ItemNames({"": "x"}, ["y"]), targets=cheap)
    assert source.read == [0]
    assert read.split.y.tolist() == Y.tolist()


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "A source of rows needs rows. `list` has none."),
        ([(1, 2, 3, 4)], "is `(inputs, target)`, `(inputs, target, weight)` or a dict. item 0 is a `tuple` of 4."),
        ([X[0]], "item 0 is a `ndarray`."),
        (
            [{"image": 1, "label": 2}],
            "Items are dicts of `image`, `label`: say which part is what, such as `inputs: image` and `target: label`.",
        ),
    ],
)
def test_items_of_another_form_are_refused(items, said):
    with pytest.raises(DataError) as caught:
        indexed_rows(items)
    assert said in str(caught.value)


def test_a_part_that_does_not_exist_is_answered_with_the_nearest():
    with pytest.raises(DataError, match=r"Items have no part `a/c`\. They have `a`, `a/b`\. Did you mean `a/b`\?"):
        part_of({"a": {"b": 1}}, "a/c")
    with pytest.raises(DataError, match=r"name parts of items that are dicts. item 0 is a `tuple`. Remove both"):
        indexed_rows([(1, 2)], ItemNames({"": "x"}, ["y"]))


@pytest.mark.parametrize(
    ("other", "said"),
    [(np.zeros(3), "item 1 has shape (3,), and item 0 has (2,)"), (np.array(["a", "b"]), "item 1 is of type <U1")],
)
def test_an_item_of_another_shape_or_type_is_named_when_it_is_read(other, said):
    split = indexed_rows([(X[0], 0), (other, 1)]).split
    with pytest.raises(ValueError, match=re.escape(said)):
        split.first(2)


def test_what_has_items():
    assert has_items([1])
    assert has_items(Source([1]))
    assert not has_items({"a": 1})
    assert not has_items("text")
    assert not has_items(iter([1]))
