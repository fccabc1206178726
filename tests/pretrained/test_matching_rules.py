"""Each matching rule on the weights that only it can match, and the order of the rules where several match."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import RestoreError
from finetune.groups.layer_tree import layer_tree
from finetune.pretrained.formats.weight_file import StoredTensor, WeightFile
from finetune.pretrained.matching import match
from finetune.pretrained.matching_rules import pair_weights

WEIGHTS = ("kernel", "bias")


def tree_of(**dense):
    """A stack of Dense layers by name and width, from 3 features."""
    return layer_tree(keras.Sequential([keras.Input((3,)), *(layers.Dense(w, name=n) for n, w in dense.items())]))


def stored(name, shape=(), **known):
    return StoredTensor(name, shape, "float32", lambda: np.zeros(shape), **known)


def file_of(shapes, **known):
    return WeightFile("w.ckpt", "tf1-checkpoint", tuple(stored(name, shape, **known) for name, shape in shapes.items()))


def square(*names):
    """Shapes of Dense layers of 3 features by name."""
    return {f"{name}/{weight}": (3, 3) if weight == "kernel" else (3,) for name in names for weight in WEIGHTS}


def names(items):
    return [item.leaf.name if hasattr(item, "leaf") else item.name for item in items]


def paired(tree, tensors, locations=None, chosen_names=()):
    """The file's name and the rule for each weight of the model that is matched."""
    pairs, disputed = pair_weights(tree.leaves, tensors, locations or {}, chosen_names)
    return {pair.leaf.name: (pair.tensor.name, pair.how) for pair in pairs}, {
        name: [tensor.name for tensor in claimants] for name, claimants in disputed.items()
    }


BODY = {"body/kernel": (3, 4), "body/bias": (4,)}
HEAD = {"head/kernel": (4, 2), "head/bias": (2,)}


# -- Name, layer and index --------------------------------------------------------------------------------------------


def test_a_layer_s_weights_match_by_their_index_only_if_there_are_equally_many():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="bn"), layers.Dense(2, name="head")])
    tree = layer_tree(model)
    numbered = {f"bn/{i}": StoredTensor(f"bn/{i}", (4,), "float32", lambda: np.zeros(4), (i, 4)) for i in range(4)}
    head = tuple(StoredTensor(f"head/{i}", s, "float32", lambda: 0, (i, 2)) for i, s in enumerate(HEAD.values()))
    plan = match(tree, WeightFile("w", "keras-weights", (*numbered.values(), *head)))
    assert [(p.leaf.name, p.tensor.name) for p in plan.restored[:4]] == [
        ("bn/gamma", "bn/0"),
        ("bn/beta", "bn/1"),
        ("bn/moving_mean", "bn/2"),
        ("bn/moving_variance", "bn/3"),
    ]
    assert {p.how for p in plan.restored} == {"layer and index"}
    assert names(plan.restored[4:]) == ["head/kernel", "head/bias"]
    three = tuple(StoredTensor(f"bn/{i}", (4,), "float32", lambda: np.zeros(4), (i, 3)) for i in range(3))
    with pytest.raises(RestoreError) as caught:
        match(tree, WeightFile("w", "keras-weights", (*three, *head))).check()
    message = str(caught.value)
    assert "`bn/gamma` (`bn` in the file: 3 weights)" in message


def test_automatic_names_match_by_their_order_when_only_the_numbers_differ():
    tree = layer_tree(
        keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.Dense(3), layers.Dense(3, name="x")])
    )
    automatic = [name.partition("/")[0] for name in tree.by_name][::2]
    shapes = square("dense_7", "dense_8", "x")
    plan = match(tree, file_of(shapes))
    plan.check()
    pairs = {p.leaf.name: (p.tensor.name, p.how) for p in plan.restored}
    assert pairs[f"{automatic[0]}/kernel"] == ("dense_7/kernel", "renumbered")
    assert pairs[f"{automatic[1]}/bias"] == ("dense_8/bias", "renumbered")
    assert pairs["x/kernel"] == ("x/kernel", "name")


@pytest.mark.parametrize("outer", ["bidirectional_3", "bi"])
def test_the_halves_of_a_bidirectional_layer_match_a_file_of_keras_2_in_any_network_of_a_process(outer):
    for _ in range(2):
        rnn = layers.Bidirectional(layers.LSTM(2), name=outer if outer == "bi" else None)
        tree = layer_tree(keras.Sequential([keras.Input((4, 3)), rnn, layers.Dense(2, name="head")]))
        shapes = {"kernel": (3, 8), "recurrent_kernel": (2, 8), "bias": (8,)}
        halves = {
            f"{outer}/{half}_lstm_9/lstm_cell_{n}/{weight}": shape
            for n, half in enumerate(("forward", "backward"))
            for weight, shape in shapes.items()
        }
        plan = match(tree, file_of({**halves, "head/kernel": (4, 2), "head/bias": (2,)}))
        plan.check()
        pairs = {p.leaf.name.partition("/")[2]: p.tensor.name for p in plan.restored}
        assert pairs["forward_layer/cell/kernel"] == f"{outer}/forward_lstm_9/lstm_cell_0/kernel"
        assert pairs["backward_layer/cell/bias"] == f"{outer}/backward_lstm_9/lstm_cell_1/bias"


def test_automatic_names_that_overlap_match_by_their_order_too():
    shapes = square("dense", "dense_1")
    plan = match(tree_of(dense_1=3, dense_2=3), file_of(shapes))
    plan.check()
    assert [(p.leaf.layer, p.tensor.name) for p in plan.restored[::2]] == [
        ("dense_1", "dense/kernel"),
        ("dense_2", "dense_1/kernel"),
    ]


def test_automatic_names_that_overlap_match_by_their_order_inside_of_a_nested_model_of_the_same_name():
    inner = [layers.Dense(3, name="dense_1"), layers.Dense(3, name="dense_2")]
    backbone = keras.Sequential([keras.Input((3,)), *inner], name="bb")
    plan = match(layer_tree(keras.Sequential([keras.Input((3,)), backbone])), file_of(square("bb/dense", "bb/dense_1")))
    assert [(p.leaf.layer, p.tensor.name) for p in plan.restored[::2]] == [
        ("bb/dense_1", "bb/dense/kernel"),
        ("bb/dense_2", "bb/dense_1/kernel"),
    ]


def test_names_that_users_chose_are_never_renumbered():
    shapes = square("block_1", "block_2")
    plan = match(tree_of(block_2=3, block_3=3), file_of(shapes))
    assert [(p.leaf.name, p.tensor.name) for p in plan.restored] == [(f"block_2/{w}", f"block_2/{w}") for w in WEIGHTS]
    assert names(plan.missing) == ["block_3/kernel", "block_3/bias"]


def test_an_ending_counts_only_if_one_weight_has_it():
    def model_of(*names):
        parts = (keras.Sequential([keras.Input((3,)), layers.Dense(3, name="conv")], name=name) for name in names)
        return layer_tree(keras.Sequential([keras.Input((3,)), *parts, layers.Dense(4, name="body")]))

    shapes = dict(zip(WEIGHTS, [(3, 3), (3,)], strict=True))
    ending = [StoredTensor(f"conv/{w}", s, "float32", lambda: 0, aliases=(f"*/conv/{w}",)) for w, s in shapes.items()]
    file = WeightFile("w", "tf-object-checkpoint", (*ending, *file_of(BODY).tensors))
    assert [(p.leaf.name, p.how) for p in match(model_of("bb"), file).restored[:2]] == [
        ("bb/conv/kernel", "ending"),
        ("bb/conv/bias", "ending"),
    ]
    assert names(match(model_of("one", "two"), file).restored) == ["body/kernel", "body/bias"]


@pytest.mark.parametrize("structured", [True, False])
def test_names_come_before_structure_where_the_model_has_all_names_of_the_file(structured):
    shapes = square("block_1", "block_2")
    tree = tree_of(block_0=3, block_1=3, block_2=3)
    shifted = {f"block_{i - 1}/{w}": (f"keras:block_{i}/{w}",) for i in (1, 2) for w in WEIGHTS} if structured else {}
    file = file_of(shapes)
    moved = tuple(replace(t, locations=(f"keras:{t.name}",)) for t in file.tensors)
    plan = match(tree, replace(file, tensors=moved), exclude=["block_0"], locations=shifted)
    plan.check()
    assert [(p.leaf.name, p.tensor.name) for p in plan.restored] == [(name, name) for name in shapes]


def test_a_name_that_the_user_chose_counts_even_if_the_file_does_not_agree_with_the_model():
    tree, tensors = tree_of(dense_1=3, dense_2=3), [stored(name, shape) for name, shape in square("dense_1").items()]
    tensors += [stored(name, shape) for name, shape in square("dense_9").items()]
    by_numbers, _ = paired(tree, tensors)
    assert by_numbers["dense_1/kernel"] == ("dense_1/kernel", "renumbered")
    chosen, _ = paired(tree, tensors, {"dense_1/kernel": ["keras:x"]}, {"dense_1/kernel"})
    assert chosen["dense_1/kernel"] == ("dense_1/kernel", "name")


def test_an_automatic_name_counts_as_it_is_where_the_file_has_another_number_of_such_layers():
    # Three layers in the file, two in the model: neither the numbers nor their order say which two.
    tensors = [stored(name, shape) for name, shape in square("dense", "dense_1", "dense_2").items()]
    pairs, _ = paired(tree_of(dense=3, dense_1=3), tensors)
    assert pairs == {f"{layer}/{w}": (f"{layer}/{w}", "name") for layer in ("dense", "dense_1") for w in WEIGHTS}
    numbered = [stored(f"dense_{i}/0", (3, 3), position=(0, 2)) for i in (1, 2, 3)]
    pairs, _ = paired(tree_of(dense_1=3, dense_2=3), numbered)
    assert pairs == {f"dense_{i}/kernel": (f"dense_{i}/0", "layer and index") for i in (1, 2)}


def test_a_renumbered_layer_matches_by_its_index_where_the_file_names_no_weights():
    tensors = [stored(f"dense_7/{i}", shape, position=(i, 2)) for i, shape in enumerate([(3, 3), (3,)])]
    pairs, _ = paired(tree_of(dense_1=3), tensors)
    assert pairs == {f"dense_1/{w}": (f"dense_7/{i}", "renumbered") for i, w in enumerate(WEIGHTS)}


def test_a_weight_of_the_file_is_used_once_by_the_surest_rule():
    pairs, disputed = paired(tree_of(a=3, b=3), [stored("a/bias", (3,), aliases=("b/bias",))])
    assert (pairs, disputed) == ({"a/bias": ("a/bias", "name")}, {})


# -- Structure --------------------------------------------------------------------------------------------------------


def test_structure_comes_before_a_doubtful_name():
    tree = tree_of(dense_1=3, dense_2=3)
    tensors = [stored(f"dense_{i}/bias", (3,), locations=(f"keras:layers/dense_{i - 2}",)) for i in (2, 3)]
    locations = {f"dense_{i}/bias": (f"keras:layers/dense_{i - 1}",) for i in (1, 2)}
    pairs, _ = paired(tree, tensors, locations)
    assert pairs == {
        "dense_1/bias": ("dense_2/bias", "structure"),
        "dense_2/bias": ("dense_3/bias", "structure"),
    }


def test_a_location_that_two_weights_of_the_model_share_matches_neither():
    tree = tree_of(a=3, b=3)
    pairs, _ = paired(tree, [stored("x", (3,), locations=("here",))], {"a/bias": ("here",), "b/bias": ("here",)})
    assert pairs == {}


def test_of_a_weight_s_locations_the_first_that_the_model_has_counts():
    tree = tree_of(a=3, b=3)
    tensor = stored("x", (3,), locations=("nowhere", "second", "first"))
    pairs, _ = paired(tree, [tensor], {"a/bias": ("first",), "b/bias": ("second",)})
    assert pairs == {"b/bias": ("x", "structure")}


# -- Aliases and endings ----------------------------------------------------------------------------------------------


def test_an_alias_of_the_file_matches_and_so_does_the_path_that_keras_gives_the_variable():
    tree = tree_of(a=3)
    assert paired(tree, [stored("x", aliases=("a/kernel",))])[0] == {"a/kernel": ("x", "alias")}

    class Holder(keras.Model):
        def __init__(self):
            super().__init__(name="holder")
            self.part = layers.Dense(3, name="dense_5")

        def build(self, shape):
            self.part.build(shape)

    model = Holder()
    model.build((None, 3))
    tree = layer_tree(model)
    assert (tree.leaves[0].name, model.part.kernel.path) == ("part/kernel", "holder/dense_5/kernel")
    for alias in ("holder/dense_5/kernel", "dense_5/kernel"):
        assert paired(tree, [stored("x", aliases=(alias,))])[0] == {"part/kernel": ("x", "alias")}


def test_an_alias_with_the_position_in_the_layer_matches_by_layer_and_index():
    tensors = [stored("x/1", (3,), position=(1, 2), aliases=("a/1",))]
    assert paired(tree_of(a=3), tensors)[0] == {"a/bias": ("x/1", "alias")}


def test_recurrent_layers_of_keras_2_match_although_they_have_no_cell():
    tree = layer_tree(keras.Sequential([keras.Input((2, 3)), layers.LSTM(2, name="rnn")]))
    pairs, _ = paired(tree, [stored("rnn/recurrent_kernel")])
    assert pairs == {"rnn/cell/recurrent_kernel": ("rnn/recurrent_kernel", "alias")}


# -- Disputes ---------------------------------------------------------------------------------------------------------


def test_two_weights_of_the_file_with_the_same_key_are_a_dispute_and_neither_is_taken():
    tensors = [stored("x", (3,), locations=("here",)), stored("y", (3,), locations=("here",))]
    pairs, disputed = paired(tree_of(a=3), tensors, {"a/bias": ("here",)})
    assert (pairs, disputed) == ({}, {"a/bias": ["x", "y"]})


def test_a_dispute_that_a_weaker_rule_settles_is_none():
    tensors = [
        stored("a/bias", (3,), locations=("here",)),
        stored("a_2/bias", (3,), locations=("here",)),
    ]
    pairs, disputed = paired(tree_of(a=3), tensors, {"a/bias": ("here",)})
    assert pairs == {"a/bias": ("a/bias", "renumbered")}
    assert disputed == {}


def test_pairs_come_in_the_model_s_order_and_a_tensor_goes_to_one_weight_only():
    tensors = [stored(name, shape) for name, shape in reversed(square("a", "b").items())]
    tree = tree_of(a=3, b=3)
    pairs, _ = pair_weights(tree.leaves, tensors, {})
    assert names(pairs) == list(tree.by_name)
    assert len({id(pair.tensor) for pair in pairs}) == 4


def test_a_bare_module_s_weights_have_no_keras_path_and_match_by_name():
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones((2, 3)))
    tree = layer_tree(module)
    assert paired(tree, [stored(tree.leaves[0].name, (2, 3))])[0] == {
        tree.leaves[0].name: (tree.leaves[0].name, "name")
    }


def test_a_weight_that_is_paired_by_name_is_not_paired_again_by_its_alias():
    pairs, _ = paired(tree_of(a=3, b=3), [stored("a/bias", (3,), aliases=("b/bias",))])
    assert pairs == {"a/bias": ("a/bias", "name")}


def test_numbered_weights_of_automatic_layers_match_by_the_order_of_the_layers_and_their_index():
    tensors = [stored(f"dense_{n}/{i}", (3,), position=(i, 2)) for n in (7, 8) for i in (0, 1)]
    pairs, _ = paired(tree_of(dense_1=3, dense_2=3), tensors)
    assert pairs == {
        f"dense_{n}/{weight}": (f"dense_{n + 6}/{i}", "renumbered") for n in (1, 2) for i, weight in enumerate(WEIGHTS)
    }


def test_inner_names_are_doubtful_though_the_model_that_holds_them_agrees():
    parts = [keras.Input((3,)), layers.Dense(3, name="dense_1"), layers.Dense(3, name="dense_2")]
    tree = layer_tree(keras.Sequential([keras.Input((3,)), keras.Sequential(parts, name="net")]))
    tensors = [stored(name, shape) for name, shape in square("net/dense_2", "net/dense_3").items()]
    pairs, _ = paired(tree, tensors)
    assert pairs["net/dense_1/kernel"] == ("net/dense_2/kernel", "renumbered")
    assert pairs["net/dense_2/kernel"] == ("net/dense_3/kernel", "renumbered")


# -- Legacy names -----------------------------------------------------------------------------------------------------


def test_names_of_keras_2_with_slashes_and_capitals_match_as_keras_3_spells_them():
    tree = tree_of(conv=3, conv_bn=3, block_depthwise=3)
    file = [stored(name) for name in square("Conv", "Conv/BatchNorm", "block/depthwise")]
    pairs, disputed = paired(tree, file)
    assert disputed == {}
    assert pairs["conv/kernel"] == ("Conv/kernel", "legacy name")
    assert pairs["conv_bn/bias"] == ("Conv/BatchNorm/bias", "legacy name")
    assert pairs["block_depthwise/kernel"] == ("block/depthwise/kernel", "legacy name")


def test_a_legacy_name_with_the_position_in_the_layer_matches_by_index():
    tree = tree_of(conv_bn=3)
    pairs, _ = paired(tree, [stored("Conv/BatchNorm/0", position=(0, 2)), stored("Conv/BatchNorm/x", position=(1, 2))])
    assert pairs["conv_bn/bias"] == ("Conv/BatchNorm/x", "legacy name")


def test_two_names_that_are_spelled_alike_are_a_dispute():
    _, disputed = paired(tree_of(a_b=3), [stored("A/b/kernel"), stored("a/B/kernel"), stored("A_b/bias")])
    assert disputed == {"a_b/kernel": ["A/b/kernel", "a/B/kernel"]}
