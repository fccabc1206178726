"""Code that reads batches itself reads those of `model.fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import DataError
from finetune.training.fit_data import fit_batches, without_optionals

X, Y = np.arange(10.0).reshape(5, 2), np.array([0, 1, 0, 1, 1])


def dense(part):
    return part.to_tensor().numpy() if isinstance(part, tf.RaggedTensor) else np.asarray(part)


class Recorder(keras.Model):
    """Keeps the batches that `fit` trains on."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def train_step(self, data):
        self.batches.append(tf.nest.map_structure(dense, without_optionals(data)))
        return {"loss": 0.0}


class Pairs(keras.utils.PyDataset):
    """Two batches with targets."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], Y[2 * index : 2 * index + 2]


def pairs():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)


@pytest.mark.parametrize(
    ("x", "more"),
    [
        (lambda: X, {"y": Y, "batch_size": 2}),
        (lambda: X, {"y": Y, "sample_weight": Y + 1.0}),
        (lambda: X, {"y": Y, "class_weight": {0: 1.0, 1: 5.0}}),
        (lambda: [X, X[:, :1]], {"y": {"a": Y, "b": Y}, "sample_weight": {"a": Y, "b": Y * 2}}),
        (lambda: {"p": tf.constant(X), "q": X}, {}),
        (pairs, {}),
        (pairs, {"class_weight": {0: 1.0, 1: 5.0}}),
        (Pairs, {"class_weight": {1: 3.0}}),
        (lambda: ((X[n : n + 1], Y[n : n + 1]) for n in range(3)), {}),
        (lambda: tf.ragged.constant([[1.0], [2.0, 3.0]]), {"y": np.array([0, 1])}),
    ],
)
@pytest.mark.filterwarnings("ignore:Your input ran out of data", "ignore:`shuffle=True` was passed")
def test_the_batches_are_those_that_fit_trains_on(x, more):
    model = Recorder()
    model.compile(run_eagerly=True)
    model.fit(x(), shuffle=False, verbose=0, **more)
    read = [keras.tree.flatten(without_optionals(batch)) for batch in fit_batches(x(), **more)]
    trained = [keras.tree.flatten(batch) for batch in model.batches]
    assert len(read) == len(trained) > 0
    for batch, expected in zip(read, trained, strict=True):
        for part, other in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(dense(part), other)


def test_a_dataset_is_passed_on_and_not_copied():
    dataset = pairs()
    assert fit_batches(dataset) is dataset


def test_what_fit_would_not_take_is_an_error():
    with pytest.raises(DataError, match=r"^Data are what `model.fit` takes\. ValueError: .*`y` should not be passed"):
        fit_batches(pairs(), Y)
    with pytest.raises(DataError, match=r"Pass arrays with `y`, or a `tf.data.Dataset`"):
        fit_batches("rows.csv")


def test_parts_that_are_missing_become_none():
    assert without_optionals((1, tf.experimental.Optional.empty(None))) == (1, None)
