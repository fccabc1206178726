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


def test_a_folder_of_checkpoints_gives_the_latest(folder):
    assert read_weights(str(folder / "ckpts")).path == str(folder / "ckpts" / "ckpt-2")


@pytest.mark.parametrize("name", ["whole.keras", "only.weights.h5", "legacy.h5"])
def test_the_format_is_told_by_the_content_not_by_the_name(folder, name):
    kind = read_weights(folder / name).kind
    shutil.move(folder / name, folder / "download.bin")
    assert read_weights(folder / "download.bin").kind == kind


def test_a_missing_file_is_refused_with_the_nearest_ones(folder):
    message = refused(folder / "only.weight.h5")
    assert message.startswith(
        f"A file of pretrained weights must exist. There is no `{folder}/only.weight.h5`. "
        f"Did you mean `{folder}/only.weights.h5`"
    )
    assert "holds `ckpts`, `legacy.h5`, `only.weights.h5`, `whole.keras`." in refused(folder / "zzz")
    assert f"The nearest folder that exists is `{folder}`." in refused(folder / "sub" / "deep" / "m.keras")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "m.h5").touch()
    assert "is not in one of these formats: it is empty." in refused(tmp_path / "m.h5")


def test_a_file_that_is_no_weights_is_refused_with_how_it_begins(tmp_path):
    (tmp_path / "m.h5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1")
    message = refused(tmp_path / "m.h5")
    assert message.startswith("Known formats are `.keras`, Keras' `.weights.h5`")
    assert "it begins with `b'version https://git-lfs.'`" in message


@pytest.mark.parametrize("name", ["whole.keras", "only.weights.h5", "legacy.h5", "ckpts/ckpt-1.index"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_file_is_refused(folder, name, kept):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    message = refused(path)
    assert "must be complete and undamaged" in message or "is not in one of these formats: it begins with" in message


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


def test_a_folder_without_the_file_that_names_the_latest_lists_its_checkpoints(folder):
    (folder / "ckpts" / "checkpoint").unlink()
    message = refused(folder / "ckpts")
    assert message.endswith(
        "lacks the file `checkpoint` and holds the checkpoints `ckpt-1`, `ckpt-2`; give one of them."
    )


def test_a_folder_whose_latest_checkpoint_is_gone_says_so(folder):
    (folder / "ckpts" / "ckpt-2.index").unlink()
    message = refused(folder / "ckpts")
    assert "ckpt-2.index`, which does not exist. It holds the checkpoints `ckpt-1`; give one of them." in message


def test_a_folder_without_checkpoints_lists_what_it_holds(folder, tmp_path):
    assert "`legacy.h5`, `only.weights.h5`, `whole.keras`; give the file itself." in refused(folder)
    (tmp_path / "none").mkdir()
    assert refused(tmp_path / "none").endswith("none` is empty.")


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


def test_a_preset_folder_gives_its_backbone_s_weights(model, tmp_path):
    model.save_weights(tmp_path / "model.weights.h5")
    model.save_weights(tmp_path / "task.weights.h5")
    for name in ("config.json", "metadata.json", "task.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    found = read_weights(tmp_path)
    assert (found.path, len(found.tensors)) == (str(tmp_path / "model.weights.h5"), 4)


def test_a_folder_in_a_folder_is_looked_into_and_of_several_files_one_must_be_named(folder, tmp_path):
    outer = tmp_path / "outer"
    (outer / "inner").mkdir(parents=True)
    shutil.copy(folder / "only.weights.h5", outer / "inner")
    (outer / "inner" / "README.md").write_text("made by hand")
    assert read_weights(outer).kind == "keras-weights"
    shutil.copy(folder / "legacy.h5", outer / "inner")
    assert "holds `legacy.h5`, `only.weights.h5`; give the file itself." in refused(outer)


def test_a_folder_of_checkpoints_that_was_moved_gives_the_latest(folder, tmp_path):
    state = folder / "ckpts" / "checkpoint"
    state.write_text(state.read_text().replace('"ckpt-2"', '"/where/it/was/written/ckpt-2"', 1))
    assert read_weights(folder / "ckpts").path.endswith("ckpts/ckpt-2")
