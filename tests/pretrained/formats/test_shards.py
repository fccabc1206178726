import json

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
from keras import layers
from safetensors.numpy import save_file

from finetune.errors import FinetuneError, RestoreError
from finetune.files import size_limits
from finetune.pretrained.formats.readers import read_weights

# Keras itself saves by `np.array(variable)`, which NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ARRAYS = {
    "encoder.0.weight": np.arange(6, dtype="float32").reshape(2, 3),
    "encoder.0.bias": np.ones(3, "float16"),
    "half": np.array([1.5, -2], ml_dtypes.bfloat16),
}


def named(path):
    return {tensor.name: tensor for tensor in read_weights(path).tensors}


def refused(path):
    with pytest.raises(RestoreError) as caught:
        read_weights(path)
    return str(caught.value)


def test_keras_weights_in_several_files_are_read_by_their_index_or_their_folder(tmp_path):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64, name="a"), layers.Dense(64, name="b")])
    model.save_weights(tmp_path / "model.weights.json", max_shard_size=2e-5)
    assert len(list(tmp_path.glob("*.h5"))) > 1
    for path in (tmp_path, tmp_path / "model.weights.json"):
        found = read_weights(path)
        assert [tensor.name for tensor in found.tensors] == ["a/0", "a/1", "b/0", "b/1"]
        for tensor, weight in zip(found.tensors, model.weights, strict=True):
            np.testing.assert_array_equal(tensor.read(), weight.numpy())
    next(tmp_path.glob("*.h5")).unlink()
    assert "Weights in several files need all of these files." in refused(tmp_path)


@pytest.fixture
def sharded(tmp_path):
    parts = [{name: ARRAYS[name]} for name in ARRAYS]
    names = [f"model-0000{i}.safetensors" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        save_file(part, tmp_path / name)
    index = {"metadata": {}, "weight_map": dict(zip(ARRAYS, names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


@pytest.mark.parametrize("given", ["", "model.safetensors.index.json"])
def test_several_files_are_read_by_their_index_or_their_folder(sharded, given):
    found = named(sharded / given)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name].read(), array)


def test_a_missing_file_of_several_is_named(sharded):
    (sharded / "model-00001.safetensors").unlink()
    assert "names 3, of which `model-00001.safetensors` is missing." in refused(sharded)


def test_a_weight_that_is_not_where_the_index_says_is_named(sharded):
    save_file({"else": np.ones(2)}, sharded / "model-00001.safetensors")
    assert "lists `encoder.0.bias`, which is not where it says." in refused(sharded)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/model.safetensors", 7])
def test_an_index_may_name_only_files_beside_it(sharded, name):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"]["half"] = name
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert (
        f"An index may only name files in its own folder. `{sharded}/model.safetensors.index.json` names `{name}`."
        in (refused(sharded))
    )


def test_the_index_of_pytorch_pickles_is_refused(sharded):
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.bin"}}')
    (sharded / "model.bin").touch()
    assert "names `model.bin`. Save them as safetensors." in refused(sharded)


def test_the_weights_come_in_the_order_of_the_index_whatever_that_of_the_files(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict(reversed(index["weight_map"].items()))
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert list(named(sharded)) == list(reversed(ARRAYS))


def test_a_damaged_file_of_keras_weights_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64, name="a"), layers.Dense(64, name="b")])
    model.save_weights(tmp_path / "model.weights.json", max_shard_size=2e-5)
    shard = sorted(tmp_path.glob("*.h5"))[0]
    assert h5py.is_hdf5(shard)
    shard.write_bytes(shard.read_bytes()[:1000])
    assert refused(tmp_path).startswith("A weight file must be complete and undamaged.")


def test_an_index_of_absurd_size_is_refused_before_it_is_parsed(sharded, monkeypatch):
    monkeypatch.setattr(size_limits.check_header, "__kwdefaults__", {"most": 50})
    with pytest.raises(FinetuneError, match=r"A table of contents may have 50 bytes\. That of `.*index.json` has "):
        read_weights(sharded)


def test_an_index_of_several_formats_is_refused(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"]["half"] = "half.h5"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    (sharded / "half.h5").touch()
    assert "Weights in several files must be safetensors or Keras' `.h5`." in refused(sharded)
