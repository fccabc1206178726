"""Examples: what fits together, and what is said when it does not."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from finetune.data.examples import Examples, Split, check_examples, class_numbers, files_of_rows, make_examples, summary
from finetune.data.images import image_rows
from finetune.data.rows import Rows
from finetune.errors import DataError


def arrays(**changes):
    """Four training rows, two test rows, two validation rows."""
    rows = {"train": 4, "test": 2, "validation": 2}
    made = {f"x_{part}": np.ones((n, 3), np.float32) for part, n in rows.items()}
    return made | {f"y_{part}": np.arange(n) for part, n in rows.items()} | changes


def lazy(array):
    return Rows(len(array), lambda indices: tf.gather(array, indices))


def said(**changes):
    with pytest.raises(DataError) as caught:
        check_examples(Examples(**arrays(**changes)))
    return str(caught.value)


def test_checked_examples_come_back_as_they_are():
    examples = Examples(**arrays())
    assert check_examples(examples) is examples


def test_only_examples_are_examples():
    with pytest.raises(DataError, match=r"must be a `finetune\.Examples`; received `tuple`"):
        check_examples((1, 2))


def test_lists_are_not_arrays():
    with pytest.raises(DataError, match="`y_train` that is not a NumPy array but a `list`"):
        check_examples(replace(Examples(**arrays()), y_train=[0, 1, 2, 3]))


def test_an_array_of_python_objects_is_an_error():
    with pytest.raises(DataError, match="`x_train` of Python objects"):
        check_examples(replace(Examples(**arrays()), x_train=np.array([[None]] * 4)))


def test_five_problems_are_shown_at_most():
    empty = np.ones((0,))
    with pytest.raises(DataError) as caught:
        check_examples(Examples(empty, empty, empty, empty, empty, empty))
    assert str(caught.value).count("that is empty") == 5
    assert "1 more" in str(caught.value)


def test_examples_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Examples(**arrays()).x_train = np.ones(3)


def test_several_inputs_are_checked_by_name():
    both = {"a": np.ones((4, 2)), "b": np.ones((3, 2))}
    assert "`x_train/a` with 4 rows and `x_train/b` with 3" in said(x_train=both, x_test={"a": np.ones((2, 2))})
    fitting = {"a": np.ones((4, 2)), "b": np.ones((4, 5))}
    others = {"x_validation": None, "y_validation": None}
    assert "`x_test` with other names than `x_train`" in said(x_train=fitting, x_test={"a": np.ones((2, 2))}, **others)
    wrong = {"a": np.ones((2, 2)), "b": np.ones((2, 4))}
    assert "`x_test/b` of shape (4,) per row and `x_train/b` of (5,)" in said(x_train=fitting, x_test=wrong, **others)


def test_weights_must_be_as_many_as_the_rows():
    assert "`x_train` with 4 rows and `weights_train` with 3" in said(weights_train=np.ones(3))


def test_the_first_rows_are_taken_from_arrays_and_from_rows_that_are_read_when_needed():
    split = Split({"a": np.arange(5), "b": lazy(np.arange(5) * 2)}, lazy(np.arange(5) * 3))
    x, y = split.first(2)
    assert [x["a"].numpy().tolist(), x["b"].numpy().tolist(), y.numpy().tolist()] == [[0, 1], [0, 2], [0, 3]]
    assert len(split.first(9)[1]) == 5


def test_only_the_rows_that_are_needed_are_read():
    read = []

    def take(indices):
        read.extend(np.asarray(indices).tolist())
        return tf.gather(np.arange(1000), indices)

    Split(Rows(1000, take), np.arange(1000)).first(2)
    assert read == [0, 1]


@pytest.mark.parametrize("chosen", [slice(1, 3), np.array([3, 0])])
def test_chosen_rows_keep_inputs_targets_and_weights_together(chosen):
    numbers = np.arange(4)
    split = Split(lazy(numbers), numbers * 2, {"out": numbers * 3}).select(chosen)
    expected = numbers[chosen]
    (x, y, weights), *others = split.batches(8)
    assert not others
    assert [x.numpy().tolist(), y.numpy().tolist(), weights["out"].numpy().tolist()] == [
        expected.tolist(),
        (expected * 2).tolist(),
        (expected * 3).tolist(),
    ]


def test_chosen_rows_can_be_recognised_only_where_all_rows_can():
    rows = Rows(3, lambda indices: indices, "abc")
    first, other = (Split(rows, np.arange(3)).select(np.array(chosen)).x.fingerprint for chosen in ([0, 1], [0, 2]))
    assert len({first, other, rows.fingerprint}) == 3
    assert Split(lazy(np.arange(3)), np.arange(3)).select(slice(2)).x.fingerprint == ""


def test_examples_are_made_of_splits_and_give_them_back():
    train, test = Split(np.ones((4, 2)), np.arange(4), np.ones(4)), Split(np.ones((2, 2)), np.arange(2))
    examples = make_examples(train, test, class_names=("cat", "dog"))
    assert examples.validation is None
    assert examples.train.weights is train.weights
    assert examples.test.x is test.x
    assert examples.class_names == ("cat", "dog")
    assert len(examples.train) == 4


def test_classes_with_few_rows_are_in_the_summary():
    split = Split(np.ones((9, 2)), np.array([0] * 5 + [1] * 4))
    assert summary(make_examples(split, split, class_names=("a", "b"))) == (
        "9 rows to train on, 9 to test; 2 classes, 1 of them with fewer than 5 training rows"
    )
    assert summary(make_examples(split.select(slice(5)), split, class_names=("a",))).endswith("; 1 class")
    untested = make_examples(split, split.select(slice(5)), class_names=("a", "b"))
    assert summary(untested).endswith("fewer than 5 training rows, 1 of them without a row to test on: `b`")


def test_rows_that_were_skipped_are_in_the_summary():
    split = Split(np.ones((4, 2)), np.arange(4))
    assert summary(make_examples(split, split)) == "4 rows to train on, 4 to test"
    names = [f"a/{number}.png" for number in range(7)]
    said = summary(make_examples(split, split, source={"skipped": names}))
    assert said.endswith(
        "; 7 skipped that cannot be read: `a/0.png`, `a/1.png`, `a/2.png`, `a/3.png`, `a/4.png` and 2 more"
    )


@pytest.mark.parametrize(
    ("y", "classes", "numbers"),
    [
        (np.array([2, 0]), 3, [2, 0]),
        (np.array([[2], [0]]), 3, [2, 0]),
        (np.eye(3)[[2, 0]], 3, [2, 0]),
        (np.array([1.0, 0.0]), 2, [1, 0]),  # of a binary loss
        (np.array([True, False]), 0, [1, 0]),
        (np.array([[1.0, 1.0], [0.0, 1.0]]), 2, None),  # several labels a row
        (np.array([0.5, 1.0]), 2, None),
        (np.array([-1, 1]), 2, None),
        (np.zeros((2, 4, 4), int), 3, None),
        ({"a": np.array([1])}, 2, None),
    ],
)
def test_the_class_of_each_row_is_known_in_every_form_of_a_single_class(y, classes, numbers):
    of_rows = class_numbers(y, classes)
    assert (of_rows if of_rows is None else of_rows.tolist()) == numbers


def test_the_files_of_rows_are_those_of_the_rows_that_were_chosen(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / name)
    images = image_rows([tmp_path / name for name in ("a.png", "b.png", "c.png")], size=(4, 4))
    rows = Split({"photo": images, "numbers": np.zeros(3)}, np.zeros(3))
    examples = make_examples(rows.select(np.array([2])), rows.select(np.array([0])).select(np.array([0])))
    assert [path.name for path in files_of_rows(examples)] == ["c.png", "a.png"]


def test_at_a_prompt_the_rows_are_counted_whatever_they_are():
    assert repr(Examples(**arrays())) == "Examples(4 rows to train on, 2 to test, 2 to validate)"
    assert repr(Examples(None, None, None, None)) == repr(Examples([], [], [], [])) == "Examples(without rows)"
