import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from finetune.errors import RestoreError
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.pretrained.formats.keras_files import read_keras_archive
from finetune.pretrained.formats.readers import read_weights
from finetune.pretrained.restore import restore

# Keras itself saves by `np.array(variable)`, which NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
uses_tf_keras = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:You are saving your model as an HDF5")


def network(lib, classes=2):
    """The same network in Keras 3 and in tf_keras, with names for its layers."""
    inner = lib.Sequential([lib.Input((4,)), lib.layers.Dense(3, name="dense"), lib.layers.Dropout(0.1)], name="body")
    inputs = lib.Input((4, 4))
    x = lib.layers.TimeDistributed(inner, name="each")(inputs)
    x = lib.layers.BatchNormalization(name="norm")(lib.layers.Conv1D(3, 2, name="conv")(x))
    x = lib.layers.Bidirectional(lib.layers.LSTM(2, name="cells"), name="rnn")(x)
    model = lib.Model(inputs, lib.layers.Dense(classes, name="head")(x))
    model.compile(lib.optimizers.Adam(), "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    return model


@pytest.fixture(scope="module")
def model():
    return network(keras)


def by_name(found):
    return {tensor.name: tensor for tensor in found.tensors}


@pytest.mark.parametrize(("file", "kind"), [("m.keras", "keras"), ("m.weights.h5", "keras-weights")])
def test_a_keras_file_gives_layer_names_and_the_place_of_each_weight_in_its_layer(model, file, kind, tmp_path):
    path = tmp_path / file
    model.save(path) if kind == "keras" else model.save_weights(path)
    found = read_weights(path)
    assert (found.kind, found.path) == (kind, str(path))
    tensors = by_name(found)
    assert sorted(name for name in tensors if name.startswith(("head", "norm", "conv"))) == [
        *("conv/0", "conv/1", "head/0", "head/1"),
        *("norm/0", "norm/1", "norm/2", "norm/3"),
    ]
    assert tensors["norm/3"].position == (3, 4)
    assert (tensors["conv/0"].shape, tensors["conv/0"].dtype) == ((2, 3, 3), "float32")
    np.testing.assert_array_equal(tensors["norm/3"].read(), model.get_layer("norm").moving_variance.numpy())


def test_optimizer_and_metrics_are_not_weights(model, tmp_path):
    for name in ("m.keras", "m.weights.h5", "m.h5"):
        model.save(tmp_path / name) if "weights" not in name else model.save_weights(tmp_path / name)
        assert len(read_weights(tmp_path / name).tensors) == len(model.weights), name


@uses_tf_keras
@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_what_tf_keras_counts_while_it_trains_is_no_weight(name, tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.Input((2,)), tf_keras.layers.Dense(1, name="head")])
    model.compile("adam", "mse", metrics=["mae"], run_eagerly=True)
    model.train_on_batch(np.ones((2, 2)), np.ones((2, 1)))
    model.save(tmp_path / name)
    assert len(read_weights(tmp_path / name).tensors) == 2


def test_values_are_only_read_when_they_are_asked_for(model, tmp_path):
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    tensor = by_name(read_weights(path))["head/0"]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        tensor.read()


def test_a_part_in_an_attribute_goes_by_its_own_name_and_by_the_attribute(tmp_path):
    class Holder(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = layers.Dense(2)
            self.blocks = [layers.Dense(2), layers.Dense(2)]
            self.classifier = layers.Dense(2, name="head")

        def build(self, shape):
            for layer in (self.encoder, *self.blocks, self.classifier):
                layer.build((None, 2))

    model = Holder()
    model.build((None, 2))
    model.save_weights(tmp_path / "m.weights.h5")
    known = [{tensor.name, *tensor.aliases} for tensor in read_weights(tmp_path / "m.weights.h5").tensors]
    expected = [
        {"blocks/0/0", f"{model.blocks[0].name}/0"},
        {"blocks/1/0", f"{model.blocks[1].name}/0"},
        {"head/0", "classifier/0"},
        {"encoder/0", f"{model.encoder.name}/0"},
    ]
    assert all(names in known for names in expected)


def test_a_member_of_a_list_of_several_classes_is_not_taken_for_another_one(tmp_path):
    class Mixed(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [layers.LayerNormalization(), layers.Dense(2), layers.Dropout(0.1), layers.Dense(2)]

        def build(self, shape):
            for layer in self.blocks:
                layer.build((None, 2))

    source, model = Mixed(), Mixed()
    for holder in (source, model):
        holder.build((None, 2))
    for weight in source.weights:
        weight.assign(np.random.default_rng(len(weight.path)).normal(size=weight.shape))
    source.save_weights(tmp_path / "m.weights.h5")
    restore(model, tmp_path / "m.weights.h5")
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


def test_the_legacy_layout_gives_names(model, tmp_path):
    model.save(tmp_path / "m.h5")
    found = read_weights(tmp_path / "m.h5")
    assert found.kind == "keras-legacy-h5"
    tensors = by_name(found)
    assert {"conv/kernel", "norm/moving_variance", "head/bias", "each/body/dense/kernel"} <= set(tensors)
    assert tensors["norm/moving_variance"].position == (3, 4)
    np.testing.assert_array_equal(tensors["conv/kernel"].read(), model.get_layer("conv").kernel.numpy())


@pytest.mark.slow
@uses_tf_keras
@pytest.mark.parametrize("name", ["whole.h5", "weights_only.h5", "whole.keras", "only.weights.h5"])
def test_what_tf_keras_wrote_goes_into_a_model_of_keras_3(name, tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    source, model = network(tf_keras), network(keras)
    path = tmp_path / name
    source.save(path) if name.startswith("whole") else source.save_weights(path)
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    report = restore(model, path)
    assert len(report.restored) == len(source.weights)
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


@uses_tf_keras
def test_a_weight_that_keras_2_named_otherwise_is_found_by_its_place_in_the_layer(tmp_path):
    tf_keras = pytest.importorskip("tf_keras")

    def depthwise(lib):
        return lib.Sequential([lib.Input((4, 4, 2)), lib.layers.DepthwiseConv2D(2, name="deep")])

    source, model = depthwise(tf_keras), depthwise(keras)
    source.save_weights(tmp_path / "m.h5")
    kernel = restore(model, tmp_path / "m.h5").restored[0]
    assert (kernel.source, kernel.name, kernel.how) == ("deep/depthwise_kernel", "deep/kernel", "layer and index")
    np.testing.assert_array_equal(model.weights[0].numpy(), source.weights[0].numpy())


def test_a_file_of_keras_before_it_wrote_names_goes_by_structure(model, tmp_path):
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        named = []
        file.visititems(lambda path, item: named.append(path) if "name" in item.attrs else None)
        for path_of_group in named:
            del file[path_of_group].attrs["name"]
    fresh = network(keras)
    for weight in fresh.weights:
        weight.assign(np.zeros(weight.shape))
    restore(fresh, path)
    for ours, theirs in zip(fresh.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


def test_names_that_keras_split_over_many_attributes_are_read_whole(tmp_path):
    long = "x" * 1600
    stack = [layers.Dense(1, use_bias=False, name=f"{long}_{i}") for i in range(50)]
    model = keras.Sequential([keras.Input((1,)), *stack])
    model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        assert "layer_names1" in file["model_weights"].attrs
    assert len(read_weights(tmp_path / "m.h5").tensors) == 50


def test_values_kept_in_another_file_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"12345678")
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        group = file.create_group("layers/dense/vars")
        group.create_dataset("0", (2,), "float32", external=[(str(tmp_path / "secret"), 0, 8)])
    with pytest.raises(
        RestoreError, match=r"hold its values itself.*another file: `/layers/dense/vars/0 \(values in another file\)`"
    ):
        read_weights(tmp_path / "m.weights.h5")


def test_links_out_of_the_file_are_refused(model, tmp_path):
    model.save_weights(tmp_path / "other.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["layers"] = h5py.ExternalLink(str(tmp_path / "other.weights.h5"), "/layers")
    with pytest.raises(RestoreError, match=r"point to another file: `/layers \(a link to another file\)`. Save the"):
        read_weights(tmp_path / "m.weights.h5")


def test_a_zip_without_weights_is_refused_with_what_it_holds(tmp_path):
    with zipfile.ZipFile(Path(tmp_path, "m.keras"), "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(RestoreError, match=r"`.*m.keras` holds neither: `config.json`"):
        read_weights(tmp_path / "m.keras")


def test_a_layer_may_choose_its_own_words_for_its_weights(tmp_path):
    class Wordy(layers.Dense):
        def save_own_variables(self, store):
            store["kernel"], store["bias"] = self.kernel.numpy(), self.bias.numpy()

    model = keras.Sequential([keras.Input((2,)), Wordy(2, name="wordy")])
    model.save_weights(tmp_path / "m.weights.h5")
    assert set(by_name(read_weights(tmp_path / "m.weights.h5"))) == {"wordy/kernel", "wordy/bias"}


@pytest.mark.sample(4)
@uses_tf_keras
@pytest.mark.parametrize("file", ["m.h5", "model.h5", "m.weights.h5", "m.keras"])
@pytest.mark.parametrize("nested", [False, True])
def test_names_of_keras_2_with_slashes_and_capitals_are_those_that_keras_3_spells_otherwise(file, nested, tmp_path):
    tf_keras = pytest.importorskip("tf_keras")

    def build(lib, conv, norm, deep):
        parts = [lib.layers.Conv2D(2, 3, name=conv), lib.layers.BatchNormalization(name=norm)]
        parts = [lib.Input((6, 6, 3)), *parts, lib.layers.DepthwiseConv2D(2, name=deep)]
        if nested:
            parts = [lib.Input((6, 6, 3)), lib.Sequential(parts, name="Net" if lib is tf_keras else "net")]
        model = lib.Sequential([*parts, lib.layers.Flatten(), lib.layers.Dense(2, name="head")])
        rng = np.random.default_rng(0)
        for weight in model.weights:
            weight.assign(rng.uniform(0.1, 1, weight.shape))
        return model

    theirs = build(tf_keras, "Conv", "Conv/BatchNorm", "block/depthwise")
    (theirs.save if file in ("model.h5", "m.keras") else theirs.save_weights)(tmp_path / file)
    ours = build(keras, "conv", "conv_bn", "block_depthwise")
    for weight in ours.weights:
        weight.assign(np.zeros(weight.shape))
    restore(ours, tmp_path / file)
    x = np.random.default_rng(1).normal(size=(2, 6, 6, 3)).astype("f4")
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5)


@uses_tf_keras
@pytest.mark.parametrize("file", ["m.weights.h5", "m.keras"])
def test_attention_that_keras_2_saved_under_private_attributes_is_restored(file, tmp_path):
    tf_keras = pytest.importorskip("tf_keras")

    def build(lib):
        inputs = lib.Input((5, 4))
        x = lib.layers.MultiHeadAttention(2, 4, name="body")(inputs, inputs)
        model = lib.Model(inputs, lib.layers.MultiHeadAttention(1, 4)(x, x))
        rng = np.random.default_rng(0)
        for weight in model.weights:
            weight.assign(rng.normal(size=weight.shape))
        return model

    theirs = build(tf_keras)
    (theirs.save if file == "m.keras" else theirs.save_weights)(tmp_path / file)
    ours = build(keras)
    for weight in ours.weights:
        weight.assign(np.zeros(weight.shape))
    report = restore(ours, tmp_path / file)
    assert {weight.how for weight in report.restored} == {"structure"}
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("f4")
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_what_a_grouped_optimizer_keeps_beside_its_slots_has_a_role_of_its_own(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(GroupedOptimizer({"all": (keras.optimizers.SGD(0.1, momentum=0.9), model)}), "mse")
    model.save(tmp_path / "model.keras")
    roles = {tensor.name: tensor.role for tensor in read_keras_archive(tmp_path / "model.keras").others}
    assert roles["optimizer/vars/document"] == "state"
    assert list(roles.values()).count("slot") == 3  # two of momentum, and the steps at which the groups started
