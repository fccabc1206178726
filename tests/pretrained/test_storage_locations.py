import h5py
import keras
import pytest
import tensorflow as tf
from keras import layers

from finetune.groups.layer_tree import layer_tree
from finetune.pretrained.storage_locations import copy_locations, saved_objects, storage_locations

# Keras itself saves by `np.array(variable)`, which NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Parts(keras.Model):
    """Parts in every kind of holder, before and after `layers` in the alphabet."""

    def __init__(self):
        super().__init__()
        self.alone = layers.Dense(2)
        self.blocks = [layers.Dense(2), layers.LayerNormalization(), layers.Dense(2, name="named")]
        self.deep = [[layers.Dense(2)], (layers.Dense(2),)]
        self.table = {"b": layers.Dense(2), "a": layers.Dense(2)}
        self.again = self.alone
        self.zoo = [layers.Dense(2)]
        self.tail = keras.Sequential([keras.Input((2,)), layers.Dense(2), layers.BatchNormalization()])

    def build(self, shape):
        parts = [self.alone, *self.blocks, *self.deep[0], *self.deep[1], *self.table.values(), *self.zoo]
        for part in parts:
            part.build((None, 2))


def functional():
    inner = keras.Sequential([keras.Input((2,)), layers.Dense(2), layers.Dense(2, name="named")])
    inputs = keras.Input((3, 2))
    x = layers.MultiHeadAttention(1, 2)(inputs, layers.TimeDistributed(inner)(inputs))
    return keras.Model(inputs, layers.Bidirectional(layers.GRU(2))(x))


def subclassed():
    model = Parts()
    model.build((None, 2))
    return model


@pytest.mark.parametrize("build", [functional, subclassed])
def test_keras_saves_each_object_under_the_path_that_we_foretell(build, tmp_path):
    model = build()
    model.save_weights(tmp_path / "m.weights.h5")
    saved = {}
    with h5py.File(tmp_path / "m.weights.h5") as file:
        file.visititems(lambda path, item: saved.update({path: item.attrs["name"]}) if "name" in item.attrs else None)
    foretold = {f"{path}/vars".lstrip("/"): item.name for path, item in saved_objects(model).items()}
    assert {path: foretold.get(path) for path in saved} == saved


@pytest.mark.parametrize("build", [functional, subclassed])
def test_every_weight_has_a_place_in_every_layout_of_keras_and_no_two_have_the_same(build):
    model = build()
    tree = layer_tree(model)
    known = storage_locations(model, tree)
    for layout in ("keras:", "keras-path:", "legacy:"):
        found = [place for every in known.values() for place in every if place.startswith(layout)]
        assert len(found) == len(set(found)) == len(tree.leaves), layout


@pytest.mark.parametrize("build", [functional, subclassed])
def test_two_models_by_the_same_code_keep_their_weights_in_the_same_places(build):
    first, second = build(), build()
    assert list(storage_locations(first, layer_tree(first)).values()) == list(
        storage_locations(second, layer_tree(second)).values()
    )


def test_a_bare_module_has_places_in_an_object_graph():
    module = tf.Module()
    module.part = tf.Module()
    module.part.kernel = tf.Variable([1.0], name="w")
    tree = layer_tree(module)
    assert storage_locations(module, tree) == {tree.leaves[0].name: ("object:part/kernel|w", "trainable:0/1|w")}


def test_an_object_that_several_attributes_hold_has_the_places_of_all_of_them():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self._first = keras.Sequential([keras.Input((2,)), layers.Dense(3, name="inner")], name="first")
            self.build((None, 2))

        @property
        def zweiter(self):
            return self._first

        def call(self, x):
            return self._first(x)

    model = Model()
    known = storage_locations(model, layer_tree(model))
    kernel = next(places for name, places in known.items() if name.endswith("inner/kernel"))
    saved = {place for place in kernel if place.startswith("keras-path:")}
    other = {place for place in kernel if place.startswith("keras-again:")}
    assert saved == {"keras-path:layers/sequential/layers/dense#0/2"}
    assert other == {"keras-again:_first/layers/dense#0/2", "keras-again:zweiter/layers/dense#0/2"}


def test_the_copies_of_a_weight_that_two_layers_share_are_known_by_their_places():
    layer = layers.SpectralNormalization(layers.Dense(3), name="sn")
    model = keras.Sequential([keras.Input((4,)), layer, layers.Dense(2)])
    tree = layer_tree(model)
    copies = copy_locations(model, tree)
    assert copies == {
        "keras:layers/sn/layer#0/2": "sn/kernel",
        "keras-path:layers/spectral_normalization/layer#0/2": "sn/kernel",
    }
    known = storage_locations(model, tree)
    assert "keras:layers/sn/layer#1/2" in known["sn/layer/bias"]
    assert copies.keys().isdisjoint(place for places in known.values() for place in places)
    unshared = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    assert copy_locations(unshared, layer_tree(unshared)) == {}
