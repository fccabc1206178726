import shutil
import tarfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from safetensors.numpy import save_file

from finetune.errors import RestoreError
from finetune.pretrained.formats.locate import locate_weights

# Keras itself saves by `np.array(variable)`, which NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((3,)), layers.Dense(4, name="body"), layers.Dense(2, name="head")])


@pytest.fixture
def folder(model, tmp_path):
    """A folder with three files of weights and a folder of two checkpoints."""
    model.save(tmp_path / "whole.keras")
    model.save_weights(tmp_path / "only.weights.h5")
    model.save(tmp_path / "legacy.h5")
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(net=model), str(tmp_path / "ckpts"), max_to_keep=3)
    manager.save()
    manager.save()
    return tmp_path


def refused(path):
    with pytest.raises(RestoreError) as caught:
        locate_weights(path)
    return str(caught.value)


def test_a_file_is_read_itself_and_a_prefix_by_its_index(folder):
    assert locate_weights(folder / "legacy.h5") == folder / "legacy.h5"
    assert locate_weights(folder / "ckpts" / "ckpt-1") == folder / "ckpts" / "ckpt-1.index"


def test_a_folder_of_checkpoints_gives_the_latest(folder):
    assert locate_weights(folder / "ckpts") == folder / "ckpts" / "ckpt-2.index"
    assert locate_weights(folder / "ckpts" / "checkpoint") == folder / "ckpts" / "ckpt-2.index"


def test_a_missing_file_is_refused_with_the_nearest_ones(folder):
    message = refused(folder / "only.weight.h5")
    assert message.startswith(
        f"A file of pretrained weights must exist. There is no `{folder}/only.weight.h5`. "
        f"Did you mean `{folder}/only.weights.h5`"
    )
    assert "holds `ckpts`, `legacy.h5`, `only.weights.h5`, `whole.keras`." in refused(folder / "zzz")
    assert f"The nearest folder that exists is `{folder}`." in refused(folder / "sub" / "deep" / "m.keras")


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


def test_a_preset_folder_gives_its_backbone_s_weights(model, tmp_path):
    model.save_weights(tmp_path / "model.weights.h5")
    model.save_weights(tmp_path / "task.weights.h5")
    for name in ("config.json", "metadata.json", "task.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    assert locate_weights(tmp_path) == tmp_path / "model.weights.h5"


def test_a_folder_in_a_folder_is_looked_into_and_of_several_files_one_must_be_named(folder, tmp_path):
    outer = tmp_path / "outer"
    (outer / "inner").mkdir(parents=True)
    shutil.copy(folder / "only.weights.h5", outer / "inner")
    (outer / "inner" / "README.md").write_text("made by hand")
    assert locate_weights(outer) == outer / "inner" / "only.weights.h5"
    shutil.copy(folder / "legacy.h5", outer / "inner")
    assert "holds `legacy.h5`, `only.weights.h5`; give the file itself." in refused(outer)


def test_a_folder_of_checkpoints_that_was_moved_gives_the_latest(folder, tmp_path):
    state = folder / "ckpts" / "checkpoint"
    state.write_text(state.read_text().replace('"ckpt-2"', '"/where/it/was/written/ckpt-2"', 1))
    assert locate_weights(folder / "ckpts") == folder / "ckpts" / "ckpt-2.index"


def test_an_absolute_path_to_the_latest_checkpoint_is_followed_where_this_folder_has_no_such_file(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoint").write_text(f'model_checkpoint_path: "{folder}/ckpts/ckpt-1"\n')
    assert locate_weights(other) == folder / "ckpts" / "ckpt-1.index"


def test_a_state_file_that_names_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint").write_text("")
    assert refused(tmp_path).endswith(f"In `{tmp_path}` it names none. It holds no checkpoint.")


def test_of_an_index_and_its_files_the_index_is_read(tmp_path):
    save_file({"a": np.ones(2)}, tmp_path / "part.safetensors")
    (tmp_path / "parts.index.json").write_text('{"weight_map": {"a": "part.safetensors"}}')
    assert locate_weights(tmp_path) == tmp_path / "parts.index.json"


def test_the_main_file_of_a_saved_model_comes_before_its_variables(model, tmp_path):
    tf.saved_model.save(model, str(tmp_path / "m"))
    assert locate_weights(tmp_path / "m") == tmp_path / "m" / "saved_model.pb"


MAIN_FILES = ["saved_model.pb", "model.safetensors.index.json", "model.weights.json"]
MAIN_FILES += ["model.weights.h5", "model.safetensors", "model.keras"]


@pytest.mark.parametrize("number", range(len(MAIN_FILES)))
def test_of_several_weight_files_the_main_one_is_read(number, tmp_path):
    for name in (*MAIN_FILES[number:], "a.npz", "b.npz"):
        np.savez(tmp_path / "arrays.npz", a=np.ones(2))
        (tmp_path / "arrays.npz").rename(tmp_path / name)
    assert locate_weights(tmp_path) == tmp_path / MAIN_FILES[number]


@pytest.mark.parametrize(
    "name", ["whole.keras", "only.weights.h5", "a.npz", "a.safetensors", "a.index", "a.json", "a.tar"]
)
def test_the_only_weight_file_of_a_folder_is_read_whatever_its_format(name, folder, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "README.md").write_text("how it was made")
    if name == "a.npz":
        np.savez(alone / name, a=np.ones(2))
    elif name == "a.safetensors":
        save_file({"a": np.ones(2)}, alone / name)
    elif name == "a.json":
        (alone / name).write_text('{"weight_map": {}}')
    elif name == "a.tar":
        with tarfile.open(alone / name, "w") as archive:
            archive.add(alone / "README.md", "README.md")
    else:
        source = folder / "ckpts" / "ckpt-1.index" if name == "a.index" else folder / name
        shutil.copy(source, alone / name)
    assert locate_weights(alone) == alone / name


def test_a_checkpoint_beside_other_weights_is_not_taken_for_a_folder_of_checkpoints(folder):
    shutil.copy(folder / "ckpts" / "ckpt-1.index", folder / "z.index")
    shutil.rmtree(folder / "ckpts")
    assert "holds `legacy.h5`, `only.weights.h5`, `whole.keras`, `z.index`; give the file itself." in refused(folder)


def test_at_most_three_near_names_are_offered(tmp_path):
    for number in range(5):
        (tmp_path / f"model_{number}.h5").touch()
    assert refused(tmp_path / "model_9.h5").count(" or ") == 2


def test_a_checkpoint_without_its_index_is_told_what_to_copy(folder, tmp_path):
    lone = tmp_path / "lone"
    lone.mkdir()
    shutil.copy(folder / "ckpts" / "ckpt-1.data-00000-of-00001", lone)
    told = f"`{lone}/ckpt-1.index` is not. Copy all files that begin with `ckpt-1` to `{lone}`."
    assert refused(lone / "ckpt-1").endswith(told)
    assert refused(lone).endswith(told)


def test_a_prefix_that_is_nearly_that_of_a_checkpoint_is_offered_the_prefix_first(folder):
    assert f"Did you mean `{folder}/ckpts/ckpt-2` or" in refused(folder / "ckpts" / "ckpt-22")
