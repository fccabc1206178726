"""A condition of a selector matches what it says, and an error about it names what is near."""

import keras
import numpy as np
import pytest

from finetune.groups.layer_tree import LayerTree, layer_tree
from finetune.groups.selector_matching import (
    CONDITION_KINDS,
    Condition,
    malformed,
    matching_leaves,
    order_note,
    out_of_range,
    without_match,
)
from finetune.groups.selectors import Selector

L = keras.layers


def matched(tree: LayerTree, kind: str, *values) -> list[str]:
    """The names of the weights that any of the values matches, in the model's order."""
    places = set().union(*(matching_leaves(tree, Condition("some", kind, value)) for value in values))
    return [tree.leaves[place].name for place in sorted(places)]


def weights(*layers: str) -> list[str]:
    return [f"{layer}/{weight}" for layer in layers for weight in ("kernel", "bias")]


# What matches


@pytest.mark.parametrize("prefix", ["block_1", "block_1/", "/block_1"])
def test_a_prefix_matches_only_at_slash_boundaries(tree, prefix):
    assert matched(tree, "prefixes", prefix) == weights("block_1")


def test_a_prefix_may_be_the_whole_name_of_a_weight(tree):
    assert matched(tree, "prefixes", "block_1/bias") == ["block_1/bias"]


def test_a_regular_expression_must_match_the_whole_name(tree):
    assert matched(tree, "regex", "block_.*/kernel") == ["block_1/kernel", "block_2/kernel", "block_10/kernel"]
    assert matched(tree, "regex", "block_.*/kern") == []


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (("0:2",), ["stem"]),
        ((1, 2), ["stem", "bn"]),
        (("-1",), ["head"]),
        ((-2,), ["block_10"]),
        (("-3:",), ["block_2", "block_10", "head"]),
        ((" : 3 ",), ["stem", "bn"]),
        (("1:7:4", -1), ["stem", "block_1", "head"]),
    ],
)
def test_layers_are_sliced_as_the_model_counts_them(tree, layers, expected):
    names = matched(tree, "layers", *layers)

    assert list(dict.fromkeys(name.partition("/")[0] for name in names)) == expected


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        (("0:4",), slice(0, 4)),
        (("8:",), slice(8, None)),
        ((":-2",), slice(None, -2)),
        ((-1,), slice(-1, None)),
        (("::2",), slice(None, None, 2)),
        (("0:2", "2:3"), slice(0, 3)),
        (("-12:-1",), slice(0, 11)),
    ],
)
def test_trainable_variables_are_sliced_as_in_python(tree, slices, expected):
    assert matched(tree, "variables", *slices) == [leaf.name for leaf in tree.trainable[expected]]


def listed_model() -> keras.Model:
    class Listed(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [L.Dense(2), L.Dense(2), L.Dense(2)]

        def call(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model = Listed()
    model(np.ones((1, 2), "float32"))
    return model


def test_layers_of_a_subclassed_model_may_have_names_of_several_parts():
    tree = layer_tree(listed_model())

    assert matched(tree, "layers", "0:2") == weights("blocks/0", "blocks/1")
    assert matched(tree, "prefixes", "blocks/2") == weights("blocks/2")


# What is wrong with it whatever the model


@pytest.mark.parametrize("value", ["a", "1:b", "1-3", "", " ", "1:2:3:4", "::0", "::-1", True, 1.5, None, [1, 2]])
@pytest.mark.parametrize("kind", ["layers", "variables"])
def test_a_malformed_slice_is_an_error_that_shows_well_formed_ones(kind, value):
    assert malformed(Condition("a", kind, value)) == (
        f"group `a`: `{kind}: [{value}]` is not an index or slice. Write an index such as `3`, `-1`, `0:40`, `40:` or `::2`."
    )


@pytest.mark.parametrize("value", [3, "-1", "0:40", ":", "::2", " 1 : 3 "])
def test_an_index_or_a_slice_is_well_formed(value):
    assert malformed(Condition("a", "variables", value)) == ""


def test_a_bad_regular_expression_is_an_error_that_says_what_is_wrong():
    text = malformed(Condition("a", "regex", "("))

    assert text.startswith("group `a`: `regex: [(]` is not a regular expression: missing ), unterminated subpattern")
    assert "is not a regular expression" in malformed(Condition("a", "regex", None))


@pytest.mark.parametrize("prefix", ["", "/", None, 3])
def test_a_prefix_that_cannot_be_a_name_is_an_error(prefix):
    assert "is not the name of a layer or weight" in malformed(Condition("a", "prefixes", prefix))


# What is wrong with it in this model


@pytest.mark.parametrize("value", ["0:400", "-13:", "12", 12, -13, ":13", "13:"])
def test_an_index_beyond_the_model_is_an_error_that_says_how_many_there_are(tree, value):
    assert out_of_range(tree, Condition("a", "variables", value)) == (
        f"group `a`: `variables: [{value}]` reaches beyond the model, which has 12 trainable variables: `0` to `11`, or "
        "`-12` to `-1` counted from the end. Leave an end open, as in `0:`, to take everything up to it."
    )


@pytest.mark.parametrize("value", ["0:12", "-12:", "11", 11, -12, ":12", "12:", ":"])
def test_an_index_up_to_the_end_of_the_model_is_in_range(tree, value):
    assert out_of_range(tree, Condition("a", "variables", value)) == ""


def test_a_layer_beyond_the_model_is_an_error(tree):
    assert "which has 9 layers: `0` to `8`" in out_of_range(tree, Condition("a", "layers", "0:10"))


def test_a_prefix_without_match_names_the_top_layers_and_the_nearest_one(tree):
    assert without_match(tree, Condition("body", "prefixes", "sten")) == (
        "group `body` matches nothing: `prefixes: [sten]`. The model's top layers are `stem`, `bn`, `block_1`, "
        "`block_2`, `block_10` and 1 more. Did you mean `stem`?"
    )


def test_prefixes_between_commas_are_to_be_a_list(tree):
    assert without_match(tree, Condition("body", "prefixes", "stem,bn")).endswith("as a list: `[stem, bn]`.")


def test_a_prefix_that_names_a_layer_further_down_is_answered_with_its_full_name():
    inner = keras.Input((2,))
    inputs = keras.Input((2,))
    backbone = keras.Model(inner, L.Dense(2, name="conv1")(inner), name="backbone")
    tree = layer_tree(keras.Model(inputs, keras.Sequential([backbone], name="trunk")(inputs)))

    for prefix, place in {"conv1": "trunk/backbone/conv1", "backbone": "trunk/backbone"}.items():
        assert without_match(tree, Condition("a", "prefixes", prefix)).endswith(f"Did you mean `{place}`?")


def test_a_prefix_that_keras_gave_a_layer_as_its_name_is_answered_with_the_name_in_the_tree():
    model = listed_model()
    keras_name = model.blocks[0].name

    text = without_match(layer_tree(model), Condition("a", "prefixes", keras_name))

    assert text.endswith("Did you mean `blocks/0`?")


def test_a_layer_without_weights_is_named_as_such(tree):
    assert without_match(tree, Condition("a", "prefixes", "drop")).endswith(
        "That layer has no weights. Remove it from the list."
    )
    assert "`flat`, `drop` have no weights" in without_match(tree, Condition("a", "layers", "3:5"))


def test_a_regular_expression_that_matches_inside_a_name_is_offered_with_wildcards(tree):
    assert without_match(tree, Condition("a", "regex", "lock_2")).endswith(
        "It must match the whole name of a weight, such as `block_2/kernel`. Did you mean `.*lock_2.*`?"
    )


def test_an_empty_slice_is_called_empty(tree):
    assert "`variables: [4:4]`. The slice is empty" in without_match(tree, Condition("a", "variables", "4:4"))


def test_a_misspelt_name_of_a_weight_names_the_nearest_weight(tree):
    assert "Did you mean `block_1/bias`" in without_match(tree, Condition("a", "prefixes", "block_1/bais"))


def test_only_indices_and_slices_can_be_out_of_range(tree):
    assert out_of_range(tree, Condition("a", "prefixes", "head")) == ""
    assert out_of_range(tree, Condition("a", "regex", "100")) == ""


def test_the_kinds_of_conditions_are_the_fields_of_a_selector_that_match_weights():
    assert CONDITION_KINDS == ("prefixes", "regex", "layers", "variables")
    assert all(Selector("a", **{kind: ("x",)}).conditions == [Condition("a", kind, "x")] for kind in CONDITION_KINDS)


# -- The order of variables -------------------------------------------------------------------------------------------


def branched() -> keras.Model:
    """Two branches, the longer of them made first: Keras lists layers by depth, `short` among those of `long`."""
    inputs = keras.Input((3,))
    long = L.Dense(3, name="long_2")(L.Dense(3, name="long_1")(L.Dense(3, name="long_0")(inputs)))
    short = L.Dense(3, name="short")(inputs)
    return keras.Model(inputs, L.Dense(2, name="head")(L.Add()([short, long])))


def test_variables_are_counted_in_the_order_of_the_graph_or_in_that_in_which_they_were_made():
    tree = layer_tree(branched())
    names = {
        order: [
            tree.leaves[place].layer for place in sorted(matching_leaves(tree, Condition("g", "variables", v, order)))
        ]
        for order, v in (("graph", "4:8"), ("creation", "4:6"))
    }
    listed = [leaf.layer for leaf in tree.trainable]
    assert names["graph"] == listed[4:8]
    assert names["creation"] == ["long_2", "long_2"]
    assert [leaf.layer for leaf in tree.by_creation][::2] == ["long_0", "long_1", "long_2", "short", "head"]


def test_a_model_without_branches_has_one_order(tree):
    assert tree.by_creation == tree.trainable
    assert order_note(tree, [Condition("g", "variables", "0:3")]) == ""


def test_where_the_orders_select_other_weights_a_note_says_which_is_used():
    class Reversed(keras.Model):
        def __init__(self):
            super().__init__()
            self.b, self.a = L.Dense(3), L.Dense(3)
            self.a.build((None, 3))
            self.b.build((None, 3))
            self.built = True

    tree = layer_tree(Reversed())
    assert order_note(tree, [Condition("g", "prefixes", "a"), Condition("g", "variables", "0:2")]) == (
        "Group `g`: `variables: [0:2]` counts the trainable variables in the order of the model's graph (`order: graph`). "
        "In the order in which they were made, as TF1 did, 2 of the 2 variables would be others (`order: creation`)."
    )
    assert order_note(tree, [Condition("g", "variables", "0:2", "creation")]) == (
        "Group `g`: `variables: [0:2]` counts the trainable variables in the order in which they were made, as TF1 did "
        "(`order: creation`). In the order of the model's graph 2 of the 2 variables would be others (`order: graph`)."
    )
    assert order_note(tree, [Condition("g", "variables", "0:4")]) == ""
    assert order_note(tree, [Condition("g", "variables", "0:4", "creation")]) == (
        "Group `g`: `variables: [0:4]` counts the trainable variables in the order in which they were made "
        "(`order: creation`), here that of the model's graph."
    )


@pytest.mark.slow
def test_the_first_variables_of_inception_are_those_of_tf1_in_the_order_of_creation():
    model = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(75, 75, 3))
    tree = layer_tree(model)
    # Keras' code makes convolution and normalization in turn, as Slim's does; unnamed, they are numbered as made.
    numbers = [int(leaf.layer.rpartition("_")[2]) for leaf in tree.by_creation if leaf.layer.startswith("conv2d_")]
    assert numbers == sorted(numbers)
    graph = [int(leaf.layer.rpartition("_")[2]) for leaf in tree.trainable if leaf.layer.startswith("conv2d_")]
    assert graph != sorted(graph)
    assert "order: creation" in order_note(tree, [Condition("body", "variables", "0:40")])


def test_a_prefix_that_layers_only_begin_with_offers_the_regular_expression():
    model = keras.Sequential([keras.Input((4,)), *(L.Dense(4, name=f"block_{number}_dense") for number in range(4))])
    tree = layer_tree(model)
    assert without_match(tree, Condition("body", "prefixes", "block", "graph")) == (
        "group `body` matches nothing: `prefixes: [block]`. A prefix ends at a `/`, or is a whole name, and 4 layers "
        "only begin with it: `block_0_dense`, `block_1_dense`, `block_2_dense` and 1 more. Write `regex: 'block.*'` "
        "instead to take them."
    )
    assert len(matching_leaves(tree, Condition("body", "regex", "block.*", "graph"))) == 8
