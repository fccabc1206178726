"""What a `FineTuner` takes as data, and what it makes of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import finetune
from finetune.data.rows import tensor_rows
from finetune.errors import DataError
from finetune.training.tuner_data import tuner_data

X, Y = np.arange(20, dtype="float32").reshape(10, 2), np.arange(10) % 2


def test_arrays_come_in_any_of_their_forms():
    weights = np.ones(10)
    for data in (tuner_data(X, Y), tuner_data((X, Y)), tuner_data([X, Y])):
        assert data.x is X
        assert data.y is Y
        assert data.weights is None
        assert data.batch_size == 32
    assert tuner_data((X, Y, weights)).weights is weights
    lists = tuner_data(X.tolist(), Y.tolist())
    assert np.array_equal(lists.x, X)
    assert np.array_equal(lists.y, Y)


def test_a_pair_of_datasets_is_one_to_train_and_one_to_validate_on():
    train, validation = (tf.data.Dataset.from_tensor_slices((X, Y)).batch(size) for size in (2, 5))
    data = tuner_data([train, validation])
    assert data.x is train
    assert data.validation is validation
    assert data.y is data.batch_size is None
    with pytest.raises(DataError, match="Pass the first of the pair"):
        tuner_data([train, validation], validation_data=(X, Y))


def test_examples_in_memory_are_arrays_and_bring_all_their_splits():
    data = tuner_data(finetune.Examples(X, Y, X[:3], Y[:3], X[:2], Y[:2], class_names=("a", "b")))
    assert data.x is X
    assert len(data.test[0]) == 3
    assert len(data.validation[0]) == 2
    assert data.class_names == ("a", "b")


def test_rows_that_are_read_when_they_are_needed_have_another_order_in_every_epoch():
    rows = tensor_rows(tf.constant(X))
    data = tuner_data(finetune.Examples(rows, Y, X[:3], Y[:3]), batch_size=4, seed=3)
    assert data.is_split
    assert data.steps == 3
    stream = data.inputs(0)
    epochs = [[next(stream)[0].numpy()[:, 0].tolist() for _ in range(3)] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(row for batch in epochs[0] for row in batch) == X[:, 0].tolist()
    again = data.inputs(1)
    assert [next(again)[0].numpy()[:, 0].tolist() for _ in range(3)] == epochs[1]  # a later call goes on


@pytest.mark.parametrize(
    ("data", "y", "message"),
    [
        (
            "photos/",
            None,
            r"image_dataset_from_directory\('photos/'\)`; for everything else `finetune new --data photos/`",
        ),
        (None, None, "Received `NoneType`"),
        (X, None, "Received `ndarray`"),
        ({"a": X}, None, "Received `dict of a`"),
        (tf.data.Dataset.range(3).batch(2), Y, "yields inputs with their targets. Received `y`"),
        (finetune.Examples(X, Y, X, Y), Y, "hold targets and validation rows themselves. Received `y`"),
    ],
)
def test_other_data_are_refused_with_what_to_write(data, y, message):
    with pytest.raises(DataError, match=message):
        tuner_data(data, y)


def test_rows_to_test_on_are_no_examples():
    with pytest.raises(DataError, match=r"Rows to validate or test on are `\(x, y\)` or a dataset"):
        tuner_data(X, Y, test_data=finetune.Examples(X, Y, X, Y))


def test_a_dataset_of_keras_has_no_batch_size():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 5

    assert tuner_data(Batches()).batch_size is None
