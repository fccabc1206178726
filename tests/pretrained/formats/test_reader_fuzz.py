"""Damaged files of every format: each is either refused with one message, the model untouched, or read for what it is.

The damage is drawn from fixed seeds. `FINETUNE_FUZZ_INPUTS` says how many inputs of each format are tried.
"""

import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from safetensors.numpy import save_file

from finetune.errors import RestoreError
from finetune.groups.layer_tree import layer_tree
from finetune.pretrained.restore import restore

pytestmark = [
    pytest.mark.slow,
    # Keras itself saves by `np.array(variable)`, which NumPy 2.4 warns of.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
INPUTS = int(os.environ.get("FINETUNE_FUZZ_INPUTS", "10"))


@pytest.fixture(scope="module")
def model():
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, name="body"), layers.Dense(2, name="head")], name="small"
    )


@pytest.fixture(scope="module")
def originals(model, tmp_path_factory):
    """The model's weights in every format: what to give to `restore`, and which file to damage."""
    folder = tmp_path_factory.mktemp("originals")
    arrays = {leaf.name: leaf.variable.numpy() for leaf in layer_tree(model).leaves}
    model.save(folder / "m.keras")
    model.save_weights(folder / "m.weights.h5")
    model.save(folder / "legacy.h5")
    save_file(arrays, folder / "m.safetensors")
    np.savez(folder / "m.npz", **arrays)
    tf.train.Checkpoint(net=model).write(str(folder / "ckpt" / "tf2"))
    tf.raw_ops.SaveV2(
        prefix=str(folder / "ckpt" / "tf1"),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=list(arrays.values()),
    )
    model.export(folder / "saved", verbose=False)
    sharded(arrays, folder / "shards")
    with tarfile.open(folder / "m.tar.gz", "w:gz") as archive:
        archive.add(folder / "m.safetensors", "model/m.safetensors")
    with zipfile.ZipFile(folder / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "m.weights.h5", "model/m.weights.h5")
    return folder


def sharded(arrays, folder):
    folder.mkdir()
    save_file(arrays, folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(arrays, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


FORMATS = {  # what is given to `restore`: the file that is damaged
    "m.keras": "m.keras",
    "m.weights.h5": "m.weights.h5",
    "legacy.h5": "legacy.h5",
    "m.safetensors": "m.safetensors",
    "m.npz": "m.npz",
    "ckpt/tf2": "ckpt/tf2.index",
    "ckpt/tf2.index": "ckpt/tf2.data-00000-of-00001",
    "ckpt/tf1": "ckpt/tf1.index",
    "ckpt/tf1.index": "ckpt/tf1.data-00000-of-00001",
    "saved": "saved/variables/variables.index",
    "saved/saved_model.pb": "saved/variables/variables.data-00000-of-00001",
    "shards": "shards/model.safetensors.index.json",
    "m.tar.gz": "m.tar.gz",
    "m.zip": "m.zip",
}


def damaged(content, rng):
    """Cuts the file off, flips bits, or overwrites, inserts or removes a stretch of it."""
    data, kind = bytearray(content), rng.integers(5)
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 17))
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        for place in rng.integers(len(data) * 8, size=int(rng.integers(1, 9))):
            data[place // 8] ^= 1 << (place % 8)
    elif kind == 2:
        data[at : at + length] = bytes([int(rng.choice([0, 0x7F, 0xFF]))]) * len(data[at : at + length])
    elif kind == 3:
        data[at:at] = rng.bytes(length)
    else:
        del data[at : at + length]
    return bytes(data)


def message_of(call, *arguments):
    try:
        call(*arguments)
    except RestoreError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("given", FORMATS)
def test_a_damaged_file_is_refused_with_a_message_and_leaves_the_model_untouched(given, model, originals, tmp_path):
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    target = tmp_path / FORMATS[given]
    content = target.read_bytes()
    restore(model, tmp_path / given)  # whole, it fits
    fresh = [np.full(weight.shape, 7, "float32") for weight in model.weights]
    refused = 0
    for seed in range(INPUTS):
        target.write_bytes(damaged(content, np.random.default_rng([seed, len(given)])))
        model.set_weights(fresh)
        message = message_of(restore, model, tmp_path / given)
        if message:
            refused += 1
            assert len(message) < 3000, seed
            assert all(np.array_equal(old, new) for old, new in zip(fresh, model.get_weights(), strict=True)), seed
    print(f"{given}: {INPUTS} inputs, {refused} refused, the others read")
    assert refused > 0.3 * INPUTS


def test_the_formats_that_are_damaged_are_all_that_are_known(originals):
    assert all(Path(originals, path).is_file() for path in FORMATS.values())
