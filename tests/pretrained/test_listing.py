import io
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from finetune.pretrained.listing import list_weights


def listing(tmp_path):
    arrays = {"body/kernel": np.zeros((30, 40)), "scale": np.zeros((), ml_dtypes.bfloat16)}
    arrays |= {"body/kernel/Adam": np.zeros((30, 40)), "global_step": np.zeros((), np.int64)}
    np.savez(tmp_path / "m.npz", **arrays)
    return list_weights(tmp_path / "m.npz")


def row(name, role, of, shape, dtype, parameters, size):
    keys = ("name", "role", "of", "shape", "dtype", "parameters", "bytes")
    return dict(zip(keys, (name, role, of, shape, dtype, parameters, size), strict=True))


def test_a_listing_tells_name_role_shape_type_and_size_of_each_tensor_and_the_totals_of_the_weights(tmp_path):
    assert listing(tmp_path) == {
        "path": str(tmp_path / "m.npz"),
        "kind": "npz",
        "weights": [
            row("body/kernel", "weight", "", [30, 40], "float64", 1200, 9600),
            row("scale", "weight", "", [], "bfloat16", 1, 2),
        ],
        "others": [
            row("body/kernel/Adam", "slot", "body/kernel", [30, 40], "float64", 1200, 9600),
            row("global_step", "counter", "", [], "int64", 1, 8),
        ],
        "parameters": 1201,
        "bytes": 9602,
        "dtypes": {"float64": 1, "bfloat16": 1},
        "roles": {"weight": 2, "slot": 1, "counter": 1},
    }


FORMATS = ["m.keras", "m.weights.h5", "m.h5", "tf2", "export"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_every_tensor_of_a_trained_model_s_file_is_listed_once_with_its_role(kind, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0)
    path = tmp_path / kind
    if kind == "tf2":
        path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(path))
    elif kind == "export":
        model.export(path, verbose=False)
    else:
        (model.save_weights if kind == "m.weights.h5" else model.save)(path)
    listed = list_weights(path)
    names = [row["name"] for row in [*listed["weights"], *listed["others"]]]
    assert len(set(names)) == len(names) == tensors_in(path, kind)
    roles = listed["roles"]
    assert roles["weight"] == len(model.weights)
    assert "other" not in roles
    if kind != "export":
        assert roles["slot"] == 2 * len(model.trainable_weights)


def tensors_in(path, kind):
    """Counts the tensors in a file without the code under test."""
    if kind in ("tf2", "export"):
        prefix = path if kind == "tf2" else f"{path}/variables/variables"
        return len(tf.train.load_checkpoint(str(prefix)).get_variable_to_shape_map())
    if kind == "m.keras":
        with zipfile.ZipFile(path) as archive:
            path = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(path) as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        return len(found)


def test_a_file_without_weights_is_listed_as_well(tmp_path):
    np.savez(tmp_path / "m.npz", **{"global_step": np.int64(3), "optimizer/m": np.zeros(2)})
    listed = list_weights(tmp_path / "m.npz")
    assert (listed["weights"], listed["roles"]) == ([], {"counter": 1, "slot": 1})


def test_the_operations_in_the_graph_of_a_saved_model_are_listed(encoder_folder):
    for path in (encoder_folder, encoder_folder / "saved_model.pb"):
        listed = list_weights(path)
        assert listed["operations"]["MatMul"] >= 2
        assert listed["outside"] == {}
