"""A checkpoint with the right checksum that no training has written is passed over, with the name of what is wrong."""

import copy
import json

import keras
import ml_dtypes
import numpy as np
import pytest

from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.checkpoints.checkpoint_file import Saved, read_checkpoint, read_newest, write_checkpoint
from finetune.training.checkpoints.content import fault_in_document, fault_in_tensor, type_of


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What a training with a patience and a momentum has written."""
    folder = tmp_path_factory.mktemp("content")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    patience = keras.callbacks.EarlyStopping("loss")
    checkpoint = Checkpoint(folder, callbacks=[patience])
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[patience, checkpoint])
    return read_checkpoint(checkpoint.path)


DELETE = object()
CHANGES = [
    (("position",), {}, "`position.epoch` is missing"),
    (("position", "epoch"), "x", '`position.epoch` must be a whole number from 0 on, and is "x"'),
    (("position", "epoch"), 10**30, "`position.epoch` must be a whole number from 0 on"),
    (("position", "step"), -1, "`position.step` must be a whole number from 0 on, and is -1"),
    (("position", "ended"), 1, "`position.ended` must be true or false, and is 1"),
    (("position", "later"), 1, "`position.later` is none of `epoch`, `step`"),
    (("model",), [], "`model` must be a mapping"),
    (("model", "paths", "model"), DELETE, "`model.paths.model` is missing"),
    (("model", "paths", "model"), ["a"] * 9, "`model.names` has 2 entries, and `model.paths.model` has 9"),
    (("model", "paths", "metrics"), ["a"] * 9, "the array `metrics/0000"),
    (
        ("model", "optimizer"),
        {"groups": {"a": {}}, "version": 1, "phase": None},
        "`model.optimizer.groups.a.made_with`",
    ),
    (("model", "slots"), [["a", "b", "c"]], "`model.slots` has 1 entries"),
    (("model", "random", "numpy"), ["MT19937", [1, 2], 0, 0, 0.0], "`model.random.numpy` is no state"),
    (("model", "random", "numpy"), 3, "`model.random.numpy` is no state"),
    (("model", "random", "python"), None, "`model.random.python` is no state"),
    (("model", "random", "python"), [3, [2**40] * 625, None], "`model.random.python` is no state"),
    (("model", "random", "python"), [3, ["x"], None], "`model.random.python` is no state"),
    (("model", "random", "tensorflow"), [], "`model.random.tensorflow` is no state"),
    (("model", "random", "keras"), [1], "`model.random.keras` is no seed"),
    (("model", "random", "keras"), [2**32, 0], "`model.random.keras` is no seed"),
    (("callbacks",), [], "`callbacks` must be a mapping"),
    (("callbacks", "EarlyStopping-1"), [], "`callbacks.EarlyStopping-1` must be a mapping"),
    (("callbacks", "EarlyStopping-1", "wait"), {}, "`callbacks.EarlyStopping-1.wait` is no value"),
    (("callbacks", "EarlyStopping-1", "wait"), {"array": "none", "scalar": True}, "wait` is no value"),
    (("callbacks", "EarlyStopping-1", "wait"), {"array": "model/00000", "scalar": True}, "wait` is no value"),
    (("callbacks", "EarlyStopping-1", "wait"), {"dict": [[{"list": []}, 1]]}, "wait` is no value"),
    (("callbacks", "EarlyStopping-1", "wait"), {"list": [[1]]}, "wait` is no value"),
    (("history", "epoch"), ["x"], "`history.epoch.0` must be a whole number"),
    (("history", "history", "loss"), {}, "`history.history.loss` must be a list, and is a mapping of 0"),
    (("more",), None, "`more` must be a mapping, and is null"),
]


@pytest.mark.parametrize(("path", "value", "message"), CHANGES)
def test_every_value_that_is_read_later_is_looked_at(written, path, value, message):
    assert fault_in_document(written.document, written.arrays) == ""
    document = copy.deepcopy(written.document)
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    if value is DELETE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    assert message in fault_in_document(json.loads(json.dumps(document)), written.arrays)


def test_a_crafted_file_with_the_right_checksum_gives_way_to_the_one_before(written, tmp_path):
    first = write_checkpoint(tmp_path, written, steps=1)
    document = written.document | {"position": {"epoch": "x"}}
    crafted = write_checkpoint(tmp_path, Saved(written.arrays, document), steps=2)
    path, _, damaged = read_newest(tmp_path)
    assert (path, list(damaged)) == (first, [crafted])
    assert damaged[crafted] == '`position.epoch` must be a whole number from 0 on, and is "x"'


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "message"),
    [
        ("float32", [2, 3], 24, ""),
        ("bfloat16", [2], 4, ""),
        ("float64", [0, 3], 0, ""),
        ("float32", [2, 3], 25, "`a` has 25 bytes, which are no tensor of the shape [2, 3] and type float32"),
        ("float32", [10**30, 0], 0, "`a` has 0 bytes"),
        ("float32", [1] * 40, 4, "`a` has 40 dimensions"),
        ("object", [1], 8, "`object`, the type of `a`, is none of a tensor"),
        ("f4,f4", [1], 8, "`f4,f4`, the type of `a`, is none of a tensor"),
        ("finfo", [1], 8, "`finfo`, the type of `a`, is none of a tensor"),
        ("\x1b", [1], 8, "`\\x1b`, the type of `a`, is none of a tensor"),
    ],
)
def test_a_tensor_has_the_bytes_that_its_shape_and_type_say(dtype, shape, size, message):
    said = fault_in_tensor("a", dtype, shape, size)
    assert said == message or (message and said.startswith(message))


def test_the_types_of_all_tensors_are_known_by_their_names():
    names = ("float16", "float32", "float64", "bool", "int8", "uint8", "int64", "uint32", "complex64")
    assert [type_of(name) for name in names] == [np.dtype(name) for name in names]
    assert type_of("bfloat16") == ml_dtypes.bfloat16
    assert type_of("float8_e4m3fn") == ml_dtypes.float8_e4m3fn
