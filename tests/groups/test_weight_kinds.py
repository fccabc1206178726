import keras
import pytest
import tensorflow as tf

from finetune.groups.layer_tree import Leaf, layer_tree
from finetune.groups.weight_kinds import is_normalization, takes_weight_decay

L = keras.layers


def leaf_of(layer, name: str, shape=(None, 4, 4)) -> Leaf:
    layer.build(shape)
    return layer_tree(layer).by_name[name]


@keras.saving.register_keras_serializable("test_weight_kinds")
class MyLayerNorm(L.LayerNormalization):
    pass


@pytest.mark.parametrize(
    "layer",
    [L.BatchNormalization(), L.LayerNormalization(), L.GroupNormalization(2), L.RMSNormalization(), MyLayerNorm()],
    ids=lambda layer: layer.name,
)
def test_what_a_normalization_layer_owns_is_known_and_takes_no_weight_decay(layer):
    layer.build((None, 4, 4))
    leaves = layer_tree(layer).leaves

    assert all(is_normalization(leaf) for leaf in leaves)
    assert not any(takes_weight_decay(leaf) for leaf in leaves)


def test_spectral_normalization_is_a_wrapper_and_not_a_normalization_layer():
    kernel = leaf_of(L.SpectralNormalization(L.Dense(3)), "kernel")

    assert isinstance(kernel.owner, L.SpectralNormalization)
    assert takes_weight_decay(kernel)
    assert not is_normalization(kernel)


def test_weights_with_two_dimensions_take_weight_decay_and_biases_do_not():
    attention = L.MultiHeadAttention(2, 2)
    attention.build((None, 3, 4), (None, 3, 4))
    decays = {leaf.name: takes_weight_decay(leaf) for leaf in layer_tree(attention).leaves}

    assert {name for name, decay in decays.items() if decay} == {name for name in decays if name.endswith("/kernel")}
    assert len(decays) == 8
    assert layer_tree(attention).by_name["query/bias"].variable.shape == (2, 2)


def test_a_two_dimensional_weight_called_something_bias_takes_no_weight_decay():
    layer = L.Layer()
    layer.relative_bias = layer.add_weight(shape=(2, 2), name="relative_bias")
    layer.biased = layer.add_weight(shape=(2, 2), name="biased")
    layer.scalar = layer.add_weight(shape=(), name="scalar")
    layer.built = True

    assert [takes_weight_decay(leaf) for leaf in layer_tree(layer).leaves] == [False, True, False]


def test_a_loaded_model_tells_weight_decay_by_shape_and_name(tmp_path):
    parts = [L.Dense(2, name="stem"), L.BatchNormalization(name="bn"), L.Dense(3, name="head")]
    keras.Sequential([keras.Input((4,)), *parts]).export(tmp_path / "exported", verbose=False)
    tree = layer_tree(tf.saved_model.load(tmp_path / "exported"))

    assert [takes_weight_decay(leaf) for leaf in tree.leaves] == [True, False, False, False, False, False, True, False]
    assert [is_normalization(leaf) for leaf in tree.leaves] == [False] * 2 + [True] * 4 + [False] * 2


@pytest.mark.parametrize("kind", [L.BatchNormalization, L.LayerNormalization, L.RMSNormalization])
def test_a_subclass_of_a_normalization_layer_is_one_whatever_its_own_name(kind):
    layer = type("Scaled", (kind,), {})()
    layer.build((None, 4))
    leaves = layer_tree(layer).leaves

    assert leaves
    assert all(is_normalization(leaf) for leaf in leaves)
