"""Reading every row: what is wrong with it is said, with its place."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from finetune.data.examples import Examples, Split, make_examples
from finetune.data.images import image_rows
from finetune.data.row_checks import problems_of, read_every_row, unreadable_rows_named
from finetune.data.rows import Rows, select
from finetune.errors import DataError, MachineError, TrainingError


@pytest.fixture
def photos(tmp_path):
    """Two hundred images, of which two end in the middle: their heads are sound."""
    paths = []
    for number in range(200):
        paths.append(tmp_path / f"{number}.jpg")
        Image.new("RGB", (64, 64), (number, number, number)).save(paths[-1], quality=100, subsampling=0)
    for number in (3, 150):
        paths[number].write_bytes(paths[number].read_bytes()[:-100])
    return image_rows(paths, size=(4, 4))


def examples_of(x, **about):
    y = np.zeros(len(x), np.int64)
    return make_examples(Split(x, y).select(slice(0, 100)), Split(x, y).select(slice(100, None)), **about)


def test_rows_that_cannot_be_read_are_found_among_those_that_can(photos):
    counts = []
    facts = read_every_row(Split(photos, None), counts.append)
    assert sorted(facts.unreadable) == [3, 150]
    assert len(facts.digests) == 198
    assert sum(counts) == 200
    assert facts.ranges[""] == pytest.approx((0, 199), abs=0.01)


def test_the_places_of_rows_that_cannot_be_read_are_named(photos):
    places = {"train": [f"a/{n}.jpg" for n in range(100)], "test": [f"a/{n}.jpg" for n in range(100, 200)]}
    problems = problems_of(examples_of(photos, places=places)).problems
    assert problems[0].startswith("1 row of `train` that cannot be read: `a/3.jpg` (")
    assert problems[1].startswith("1 row of `test` that cannot be read: `a/150.jpg` (")


def test_an_error_that_comes_from_a_row_names_it(photos):
    examples = examples_of(photos)
    said = r"Every row must be readable\. These are not: `train` row 3; `test` row 50 \("
    with pytest.raises(DataError, match=said), unreadable_rows_named(examples):
        list(examples.train.batches(50))


def test_other_errors_pass(photos):
    good = select(photos, np.arange(10, 60))
    for error in (ZeroDivisionError("a"), TrainingError("b")):
        with pytest.raises(type(error), match=str(error)), unreadable_rows_named(examples_of(good)):
            raise error


def test_values_that_are_not_finite_are_found_in_rows_that_are_computed():
    x = np.ones((100, 3), np.float32)
    x[[7, 90], 1] = np.nan, np.inf
    computed = Split(read_when_needed(x), np.zeros(100))
    assert read_every_row(computed).not_finite == [7, 90]


def read_when_needed(x):
    return Rows(len(x), lambda indices: tf.gather(x, indices))


def test_rows_that_train_and_test_are_a_leak():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    x[15], x[4] = x[2], x[1]
    labels = np.zeros(20, np.int64)
    findings = problems_of(Examples(x[:10], labels[:10], x[10:], labels[10:]))
    problems, ranges = findings.problems, findings.ranges
    assert problems == [
        "1 row of `train` with the same inputs as another: `train` row 1",
        "1 row of `test` among the training rows, too: `test` row 5. Its figures are too good",
    ]
    assert ranges[""] == (x.min(), x.max())


def test_inputs_of_one_name_are_no_copies_of_another():
    x = np.zeros((2, 1), np.float32)
    both = Split({"a": np.array([[0], [1]], np.float32), "b": np.array([[1], [0]], np.float32)}, x)
    assert len(set(read_every_row(both).digests.values())) == 2


def test_text_is_read_too():
    facts = read_every_row(Split(np.array(["a b", "a b", "c"]), None))
    assert len(set(facts.digests.values())) == 2
    assert facts.ranges == {}


def test_targets_that_are_read_with_their_rows_are_looked_at_too():
    x, masks = np.arange(3, dtype="float32")[:, np.newaxis], np.array([[0, 4], [2, 1], [3, np.nan]], np.float32)
    examples = Examples(x, read_when_needed(masks), x[:2] + 9, read_when_needed(masks[:2]))
    findings = problems_of(examples)
    assert findings.target_ranges == {"train": {"": (0.0, 4.0)}, "test": {"": (0.0, 4.0)}}
    assert findings.problems == ["1 row of `train` with values that are not finite: `train` row 2"]
    assert problems_of(Examples(x, x, x + 9, x)).target_ranges == {}  # in memory, and checked before


def test_a_row_that_is_not_finite_in_two_inputs_counts_once():
    x = np.array([[1], [np.nan], [3]], np.float32)
    both = Split({"a": read_when_needed(x), "b": read_when_needed(x)}, np.zeros(3))
    assert read_every_row(both).not_finite == [1]


@pytest.mark.parametrize("error", [MemoryError(), tf.errors.ResourceExhaustedError(None, None, "out of memory")])
def test_a_machine_without_memory_does_not_make_a_row_unreadable(error):
    def take(indices):
        raise error

    with pytest.raises(MachineError, match="Reading the rows failed because there is not enough memory"):
        read_every_row(Split(Rows(3, take), np.zeros(3)))
