import re
import shutil

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import RestoreError
from finetune.pretrained.formats.readers import read_weights

# Keras itself saves by `np.array(variable)`, which NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((3,)), layers.Dense(4, name="body"), layers.Dense(2, name="head")])


@pytest.fixture
def folder(model, tmp_path):
    """A folder with the same weights in every format."""
    model.save(tmp_path / "whole.keras")
    model.save_weights(tmp_path / "only.weights.h5")
    model.save(tmp_path / "legacy.h5")
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(net=model), str(tmp_path / "ckpts"), max_to_keep=3)
    manager.save()
    manager.save()
    return tmp_path


def refused(path):
    with pytest.raises(RestoreError) as caught:
        read_weights(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("whole.keras", "keras"),
        ("only.weights.h5", "keras-weights"),
        ("legacy.h5", "keras-legacy-h5"),
        ("ckpts", "tf-object-checkpoint"),
        ("ckpts/checkpoint", "tf-object-checkpoint"),
        ("ckpts/ckpt-1", "tf-object-checkpoint"),
        ("ckpts/ckpt-1.index", "tf-object-checkpoint"),
    ],
)
def test_every_format_is_recognised_and_read(folder, model, name, kind):
    found = read_weights(folder / name)
    assert found.kind == kind
    kernel = next(tensor for tensor in found.tensors if tensor.shape == (3, 4))
    np.testing.assert_array_equal(kernel.read(), model.weights[0].numpy())


@pytest.mark.parametrize("name", ["whole.keras", "only.weights.h5", "legacy.h5"])
def test_the_format_is_recognised_by_the_content_not_by_the_name(folder, name):
    kind = read_weights(folder / name).kind
    shutil.move(folder / name, folder / "download.bin")
    assert read_weights(folder / "download.bin").kind == kind


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "m.h5").touch()
    assert "is not in one of these formats: it is empty." in refused(tmp_path / "m.h5")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "it is a Git LFS pointer. Fetch the file itself"),
        (b"<!DOCTYPE html><title>Sign in</title>", "it is a web page, as servers send it in place of a file."),
        (b"\x89PNG\r\n\x1a\n", "it is an image."),
        (b"root:x:0:0:secret", "it is text."),
        (b"\x00\x01secret\xff", "it begins like none of them."),
    ],
)
def test_a_file_that_is_no_weights_is_refused_with_its_kind_and_none_of_its_bytes(tmp_path, content, kind):
    (tmp_path / "m.h5").write_bytes(content)
    message = refused(tmp_path / "m.h5")
    assert message.startswith("Known formats are `.keras`, Keras' `.weights.h5`")
    assert f"is not in one of these formats: {kind}" in message
    assert "secret" not in message


@pytest.mark.parametrize("name", ["whole.keras", "only.weights.h5", "legacy.h5", "ckpts/ckpt-1.index"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_file_is_refused(folder, name, kept):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    message = refused(path)
    assert (
        "must be complete and undamaged" in message
        or "is not in one of these formats: it begins like none of them." in message
    )


def test_a_file_without_weights_is_refused(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["data"] = [1.0, 2.0]
    assert re.search(
        r"A weight file must hold weights. `.*m.h5` \(keras-weights\) holds none", refused(tmp_path / "m.h5")
    )


def test_a_checkpoint_without_its_data_is_refused_with_what_is_missing(folder):
    (folder / "ckpts" / "ckpt-1.data-00000-of-00001").unlink()
    for name in ("ckpt-1", "ckpt-1.index"):
        message = refused(folder / "ckpts" / name)
        assert "ckpt-1.index` is there, but 0 of 1 data files." in message
        assert "Copy all files that begin with `ckpt-1`" in message


@pytest.mark.parametrize("suffix", ["data-00000-of-00001", "meta"])
def test_a_file_of_a_checkpoint_s_data_is_refused_with_the_name_to_give_instead(folder, suffix):
    path = folder / "ckpts" / f"ckpt-1.{suffix}"
    path.write_bytes(b"neither HDF5 nor an index")
    assert f"Give the checkpoint's prefix, `{folder}/ckpts/ckpt-1`." in refused(path)


def test_a_file_that_the_system_does_not_let_read_is_refused():
    with pytest.raises(
        RestoreError, match=r"A weight file must be readable\. `/proc/self/mem` is not: Input/output error"
    ):
        read_weights("/proc/self/mem")
