"""Rows: arrays in memory, arrays in files, and values that are computed when they are taken."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.data.batches import training_batches
from finetune.data.rows import as_rows, file_rows
from finetune.errors import DataError

X = np.random.default_rng(0).normal(size=(11, 3)).astype("float32")
Y = np.arange(11)


def test_text_comes_as_text():
    words = np.array(["one", "two", "three"], dtype=object)
    batches = list(training_batches(words, np.arange(3), batch_size=2).take(2))
    assert len(batches) == 2
    for x, y in batches:
        assert [word.decode() for word in x.numpy()] == words[y.numpy()].tolist()


def test_types_that_are_no_floats_are_kept():
    x, _ = next(iter(training_batches(np.zeros((3, 2), "uint8"), np.zeros((3, 1), bool), batch_size=2)))
    assert x.dtype == tf.uint8


def test_a_memory_mapped_file_is_read_batch_by_batch(tmp_path):
    np.save(tmp_path / "x.npy", X.astype("float64"))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    batches = training_batches(mapped, Y, batch_size=4)
    assert batches.element_spec[0] == tf.TensorSpec((None, 3), tf.float32)
    for x, y in batches.take(3):
        np.testing.assert_array_equal(x, X[y])


@pytest.mark.parametrize("how", ["numpy", "tensorflow"])
def test_a_file_larger_than_memory_is_trained_on_and_is_no_constant_of_the_graph(tmp_path, how):
    path, shape = tmp_path / "x.bin", (2**20, 2**16)
    with path.open("wb") as file:
        file.truncate(2**36)  # 64 GB of zeros that take no room
    mapped = np.memmap(path, "uint8", mode="r", shape=shape)
    x = mapped if how == "numpy" else file_rows(path, tf.uint8, shape)
    model = keras.Sequential([keras.Input(shape[1:]), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    batches = training_batches(x, np.zeros(2**20, "float32"), batch_size=2)
    history = model.fit(batches, steps_per_epoch=2, shuffle=False, verbose=0)
    assert history.history["loss"] == [0]


def test_what_has_no_rows_is_refused():
    with pytest.raises(DataError, match=r"^Training batches need rows. Received an array of shape \(0, 3\)"):
        training_batches(X[:0], Y[:0], batch_size=4)


@pytest.mark.parametrize("dtype", ["datetime64[s]", "timedelta64[D]", [("a", "f4"), ("b", "i4")]])
def test_dates_and_records_are_no_rows(dtype):
    with pytest.raises(DataError, match=r"Rows are numbers, truth values or text. Received an array of type"):
        as_rows(np.zeros(3, dtype))
