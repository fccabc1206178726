"""Why a weight is frozen is known, and what the layer groups froze is not taken for the decision of other code."""

import keras
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import GroupError
from finetune.groups.frozen_by import mark_frozen, reason_frozen
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import Selector, resolve_groups


def reasons(model):
    return {leaf.name: reason for leaf in layer_tree(model).leaves if (reason := reason_frozen(leaf))}


def small_net():
    parts = [layers.Dense(4, name="stem"), layers.BatchNormalization(name="bn"), layers.Dense(2, name="head")]
    return keras.Sequential([keras.Input((4,)), *parts])


def test_nothing_is_frozen_in_a_model_as_it_is_built():
    assert reasons(small_net()) == {}


def test_layers_and_variables_that_were_frozen_by_hand_are_named_with_their_statistics():
    model = small_net()
    model.get_layer("bn").trainable = model.get_layer("head").bias.trainable = False
    names = ("bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance", "head/bias")
    assert reasons(model) == dict.fromkeys(names, "not trainable when resolved")


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_what_quantization_made_is_called_quantized_and_its_bias_and_adapter_train(mode):
    model = small_net()
    model.get_layer("stem").quantize(mode)
    model.get_layer("stem").enable_lora(2)
    named = reasons(model)
    assert set(named.values()) == {"quantized"}
    assert {"stem/kernel", "stem/kernel_scale"} <= set(named)
    assert not {"stem/bias", "stem/lora_kernel_a"} & set(named)


def test_marked_weights_and_layers_have_no_reason():
    model = small_net()
    model.trainable = False
    leaves = layer_tree(model).leaves
    assert len(reasons(model)) == len(leaves)
    mark_frozen(leaves, leaves)
    assert reasons(model) == {}
    mark_frozen(leaves, ())
    assert len(reasons(model)) == len(leaves)


def test_the_variables_of_a_module_have_no_reason():
    module = tf.Module()
    module.weight, module.count = tf.Variable(1.0), tf.Variable(1.0, trainable=False)
    assert [reason_frozen(leaf) for leaf in layer_tree(module).leaves] == ["", ""]
    mark_frozen(layer_tree(module).leaves, layer_tree(module).leaves)


def test_a_shared_layer_in_a_nested_model_stays_frozen_in_the_outer_one():
    shared = layers.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="head")(shared(inner(inputs))))
    inner.trainable = False
    (group,) = resolve_groups(model, [Selector("all", rest=True)])
    assert [leaf.name for leaf in group.trainable] == ["head/kernel", "head/bias"]


def test_a_group_in_which_nothing_is_trainable_is_frozen_and_an_explicit_setting_opens_it():
    model = small_net()
    model.get_layer("stem").trainable = False
    stem, rest = resolve_groups(model, [Selector("stem", prefixes=("stem",)), Selector("rest", rest=True)])
    assert (stem.frozen, rest.frozen) == (True, False)
    opened = Selector("stem", prefixes=("stem",), frozen=False)
    assert not resolve_groups(model, [opened, Selector("rest", rest=True)])[0].frozen


def test_strategies_freeze_the_groups_in_which_nothing_is_trainable():
    model = small_net()
    model.get_layer("stem").trainable = False
    assert {group.name: group.frozen for group in resolve_groups(model, by="layer")} == {
        "stem": True,
        "bn": False,
        "head": False,
    }


def test_a_model_in_which_nothing_is_trainable_is_an_error_that_says_why():
    model = small_net()
    model.trainable = False
    with pytest.raises(GroupError) as error:
        resolve_groups(model, [Selector("all", rest=True)])
    assert str(error.value) == (
        "At least one group must train. What is not trainable when the groups are resolved stays frozen, and here "
        "that is everything: not trainable when resolved. Set `frozen: false` in the group to train, or make layers "
        "trainable before."
    )


def test_integers_do_not_train_whatever_the_selector_says():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, use_bias=False, name="body"), layers.Dense(2, name="head")]
    )
    model.get_layer("body").quantize("int8")
    head = Selector("head", prefixes=("head",))
    body = resolve_groups(model, [Selector("body", prefixes=("body",)), head])[0]
    assert body.frozen
    with pytest.raises(GroupError, match=r"Groups without a trainable weight: `body`. Set `frozen: true` in them"):
        resolve_groups(model, [Selector("body", prefixes=("body",), frozen=False), head])
