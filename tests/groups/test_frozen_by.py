"""Why a weight is frozen is known, and what the layer groups froze is not taken for the decision of other code."""

import copy
import os
import pickle
import subprocess
import sys
import warnings

import keras
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import GroupError
from finetune.groups.frozen_by import mark_frozen, reason_frozen
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.freezing import freeze


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


def after_a_first_stage(frozen=("stem", "bn")):
    """A network of which `freeze` has frozen a part, compiled."""
    model = small_net()
    selectors = [Selector("stem", regex=[f"{name}.*" for name in frozen], frozen=True), Selector("head", rest=True)]
    stem, head = resolve_groups(model, selectors)
    freeze(model, [stem, head])
    model.compile(GroupedOptimizer({"head": (keras.optimizers.SGD(0.1), head)}), "mse")
    return model


def through_a_keras_file(model, folder):
    model.save(folder / "stage1.keras")
    return keras.models.load_model(folder / "stage1.keras")


def through_its_config(model, _folder):
    return keras.Sequential.from_config(model.get_config())


COPIES = {
    "keras file": through_a_keras_file,
    "pickle": lambda model, _folder: pickle.loads(pickle.dumps(model)),
    "deepcopy": lambda model, _folder: copy.deepcopy(model),
    "clone": lambda model, _folder: keras.models.clone_model(model),
    "config": through_its_config,
}
MESSAGE = (
    "What came frozen stays frozen, and `stem`, `bn` came with `trainable = False` from a file, a copy, or how they "
    "were made; a file does not say whether layer groups of an earlier stage froze them. To train them, set "
    "`frozen=False` in their `Selector`, or their `layer.trainable = True` before `resolve_groups`; if they must not "
    "train, set `frozen=True`."
)


# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("way", COPIES)
def test_a_second_stage_on_a_copy_warns_of_what_the_first_stage_froze_and_says_how_to_train_it(way, tmp_path):
    model = COPIES[way](after_a_first_stage(), tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        (group,) = resolve_groups(model, [Selector("all", rest=True)])
    assert [str(warning.message) for warning in caught] == [MESSAGE]
    assert [leaf.name for leaf in group.trainable] == ["head/kernel", "head/bias"]
    (opened,) = resolve_groups(model, [Selector("all", rest=True, frozen=False)])
    assert len(opened.trainable) == 6
    stem = Selector("stem", prefixes=("stem", "bn"), frozen=True)
    assert resolve_groups(model, [stem, Selector("head", rest=True)])[0].frozen  # as in the first stage: no warning
    for layer in model.layers:
        layer.trainable = True
    assert len(resolve_groups(model, [Selector("all", rest=True)])[0].trainable) == 6


def test_strategies_warn_of_what_came_frozen(tmp_path):
    model = through_a_keras_file(after_a_first_stage(("stem", "bn")), tmp_path)
    with pytest.warns(UserWarning, match="What came frozen stays frozen, and `stem`, `bn` came with"):
        resolve_groups(model, by="layer")


def test_single_variables_that_a_loaded_optimizer_freezes_again_are_named(tmp_path):
    model = through_a_keras_file(after_a_first_stage(("stem/kernel",)), tmp_path)
    with pytest.warns(UserWarning, match="What came frozen stays frozen, and `stem` came with"):
        (group,) = resolve_groups(model, [Selector("all", rest=True)])
    assert "stem/kernel" not in [leaf.name for leaf in group.trainable]


def test_a_new_process_warns_too(tmp_path):
    after_a_first_stage().save(tmp_path / "stage1.keras")
    program = """
import sys, keras
from finetune import Selector, resolve_groups
resolve_groups(keras.models.load_model(sys.argv[1], compile=False), [Selector("all", rest=True)])
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", program, str(tmp_path / "stage1.keras")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert f"UserWarning: {MESSAGE}" in done.stderr


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.LSTM(3, name="stem"),
        lambda: layers.Bidirectional(layers.GRU(3), name="stem"),
        lambda: keras.Sequential([layers.Reshape((8,)), layers.Dense(3)], name="stem"),
        lambda: layers.Dense(3, kernel_initializer="zeros", name="stem"),
    ],
)
def test_what_is_frozen_by_hand_in_this_process_is_known_and_its_copy_is_told(layer, tmp_path):
    inputs = keras.Input((4, 2))
    outputs = layers.Dense(2, name="head")(layers.Flatten()(layer()(inputs)))
    model = keras.Model(inputs, outputs)
    model.get_layer("stem").trainable = False
    everything = [Selector("all", rest=True)]
    (group,) = resolve_groups(model, everything)  # a warning would be an error
    with pytest.warns(UserWarning, match="What came frozen stays frozen, and `stem"):
        (again,) = resolve_groups(through_a_keras_file(model, tmp_path), everything)
    assert len(group.trainable) == len(again.trainable) == 2
