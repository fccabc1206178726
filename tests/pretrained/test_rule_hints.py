"""The rules that are proposed for files with other names and shapes: taken as they are written, they fit."""

import re

import keras
import numpy as np
import pytest
import yaml
from keras import layers

from finetune.errors import RestoreError
from finetune.groups.layer_tree import layer_tree
from finetune.pretrained.formats.weight_file import StoredTensor, WeightFile
from finetune.pretrained.matching import match
from finetune.pretrained.transforms import Transform


def file_of(shapes):
    return WeightFile(
        "w.ckpt", "tf1-checkpoint", tuple(StoredTensor(n, s, "float32", np.zeros) for n, s in shapes.items())
    )


def slim_layer(scope, kernel, *, norm=True):
    """The weights of a layer of TF-Slim, with a normalization or biases."""
    statistics = ("beta", "gamma", "moving_mean", "moving_variance")
    below = (
        {f"{scope}/BatchNorm/{name}": kernel[-1:] for name in statistics} if norm else {f"{scope}/biases": kernel[-1:]}
    )
    return {f"{scope}/weights": kernel, **below}


def network(conv, norm, head="Logits"):
    """A network of two convolutions with normalizations, and a head; `conv` and `norm` are names with a number."""
    x = inputs = keras.Input((8, 8, 1))
    for number, filters in ((1, 2), (2, 3)):
        x = layers.Conv2D(filters, 3, use_bias=False, name=conv.format(number))(x)
        x = layers.BatchNormalization(name=norm.format(number))(x)
    return layer_tree(keras.Model(inputs, layers.Dense(2, name=head)(layers.GlobalAveragePooling2D()(x))))


def message_of(tree, weight_file, **rules):
    with pytest.raises(RestoreError) as caught:
        match(tree, weight_file, **rules).check()
    return str(caught.value)


def proposed(message, key, of=r"[{\[].*?[}\]]"):
    """What a message proposes to write for a key, read as YAML."""
    return yaml.safe_load(re.search(f"`({key}: {of})`", message)[1])[key]


@pytest.mark.parametrize(
    ("scope", "conv", "norm"),
    [
        ("Net/conv{}", "conv{}", "bn{}"),
        ("Net/conv{}", "conv{}", "conv{}_bn"),
        ("Net/block{0}/conv{0}_1", "conv{}_1", "bn_conv{}_1"),
        ("Net/block/conv_{}", "block_conv_{}", "block_conv_{}_norm"),
        ("conv{}", "conv{}", "batch_norm_{}"),
    ],
)
def test_names_of_slim_get_rules_that_match_all_weights(scope, conv, norm):
    head = (
        slim_layer("Net/Logits", (3, 2), norm=False)
        if scope.startswith("Net")
        else slim_layer("Logits", (3, 2), norm=False)
    )
    body = {**slim_layer(scope.format(1), (3, 3, 1, 2)), **slim_layer(scope.format(2), (3, 3, 2, 3))}
    tree, weight_file = network(conv, norm), file_of({**body, **head})
    message = message_of(tree, weight_file)
    match(tree, weight_file, rename=proposed(message, "rename")).check()
    assert "would match 12 of the model's weights. Layers that are new keep fresh weights with `exclude`." in message


def test_rules_are_proposed_in_place_of_those_that_match_a_part():
    body = {**slim_layer("Net/conv1", (3, 3, 1, 2)), **slim_layer("Net/conv2", (3, 3, 2, 3))}
    tree, weight_file = network("conv{}", "bn{}"), file_of({**body, **slim_layer("Net/Logits", (3, 2), norm=False)})
    message = message_of(tree, weight_file, rename={"^Net/": "", "/weights": "/kernel", "/biases": "/bias"})
    match(tree, weight_file, rename=proposed(message, "rename")).check()


def test_rules_that_match_more_than_any_that_is_known_are_left_alone():
    body = {**slim_layer("Net/conv1", (3, 3, 1, 2)), **slim_layer("Net/conv2", (3, 3, 2, 3))}
    body.pop("Net/conv2/BatchNorm/gamma")
    own = {"^Net/": "", r"conv(\d)/BatchNorm/": r"bn\1/", "odd": "Logits", "/weights$": "/kernel", "/biases$": "/bias"}
    saved = file_of({**body, **slim_layer("Net/odd", (3, 2), norm=False)})
    assert "`rename: " not in message_of(network("conv{}", "bn{}"), saved, rename=own)


@pytest.mark.parametrize("separable", [True, False])
def test_depthwise_weights_of_slim_become_what_the_model_calls_them(separable):
    layer = layers.SeparableConv2D(5, 3, name="conv") if separable else layers.DepthwiseConv2D(3, name="conv")
    tree = layer_tree(keras.Sequential([keras.Input((8, 8, 2)), layer]))
    kernels = {"net/conv/depthwise_weights": (3, 3, 2, 1), "net/conv/biases": (5 if separable else 2,)}
    weight_file = file_of(kernels | ({"net/conv/pointwise_weights": (1, 1, 2, 5)} if separable else {}))
    match(tree, weight_file, rename=proposed(message_of(tree, weight_file), "rename")).check()


def test_nothing_is_proposed_where_no_rule_matches_half_of_the_names():
    weight_file = file_of({f"other/{n}/weights": (2, 2) for n in range(12)})
    assert "`rename: " not in message_of(network("conv{}", "bn{}"), weight_file)


@pytest.mark.parametrize(
    ("layer", "shape", "in_file"),
    [
        (layers.Dense(4, use_bias=False, name="fc.6"), (18,), (3, 3, 2, 4)),  # a dense layer saved as a convolution
        (layers.Dense(4, use_bias=False, name="fc.6"), (18,), (1, 1, 18, 4)),
        (layers.Dense(4, use_bias=False, name="fc.6"), (18,), (4, 18)),
        (layers.Conv2D(4, 1, use_bias=False, name="fc.6"), (2, 2, 6), (6, 4)),
        (layers.Conv2D(4, 3, use_bias=False, name="fc.6"), (8, 8, 2), (4, 2, 3, 3)),
        (layers.Conv1D(4, 3, use_bias=False, name="fc.6"), (8, 2), (4, 2, 3)),
    ],
)
def test_a_weight_of_the_same_size_in_another_layout_gets_a_rule_that_fits(layer, shape, in_file):
    tree = layer_tree(
        keras.Sequential(
            [keras.Input(shape), layers.Flatten(), layer] if len(shape) == 1 else [keras.Input(shape), layer]
        )
    )
    for name, rename in (("fc.6/kernel", {}), ("net/fc.6/w", {"^net/": "", "/w$": "/kernel"})):
        weight_file = file_of({name: in_file})
        message = message_of(tree, weight_file, rename=rename)
        rules = proposed(message, "transform", of=r"\[.*\]")
        transform = [
            Transform(names=(rule.pop("names"),), **{key: tuple(value) for key, value in rule.items()})
            for rule in rules
        ]
        match(tree, weight_file, rename=rename, transform=transform).check()
        assert "Exclude" not in message
        assert "`verify` proves the order of the axes." in message


def test_axes_of_equal_length_are_ordered_as_pytorch_has_them():
    tree = layer_tree(keras.Sequential([keras.Input((8, 8, 2)), layers.Conv2D(2, 3, use_bias=False, name="conv")]))
    assert "transpose: [2, 3, 1, 0]" in message_of(tree, file_of({"conv/kernel": (2, 2, 3, 3)}))


def test_a_weight_of_another_size_is_to_be_excluded_and_one_of_the_same_size_is_not():
    tree = layer_tree(keras.Sequential([keras.Input((4,)), layers.Dense(3, name="fc"), layers.Dense(2, name="head")]))
    sizes = {"fc/kernel": (1, 1, 4, 3), "fc/bias": (3,), "head/kernel": (3, 7), "head/bias": (7,)}
    message = message_of(tree, file_of(sizes))
    assert "transform: [{names: 'fc/kernel', reshape: [4, 3]}]" in message
    assert message.endswith("Exclude `head` to keep fresh weights there.")


def test_a_weight_that_a_rule_has_changed_gets_no_other_rule():
    tree = layer_tree(keras.Sequential([keras.Input((4,)), layers.Dense(3, use_bias=False, name="fc")]))
    message = message_of(tree, file_of({"fc/kernel": (4, 3)}), transform=[Transform(("fc/kernel",), transpose=(1, 0))])
    assert "`transform: " not in message
