"""Selectors put every trainable variable into exactly one group, or say why they cannot."""

import re

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import GroupError
from finetune.groups.layer_tree import LayerTree, layer_tree
from finetune.groups.selectors import LayerGroup, Selector, resolve_groups

L = keras.layers
REST = Selector("rest", rest=True)


def make_model() -> keras.Model:
    """Input, stem (conv, bn), block_1, block_2, head; `block_10` to catch matching without a boundary."""
    image = x = keras.Input((4, 4, 1), name="image")
    x = L.BatchNormalization(name="bn")(L.Conv2D(2, 2, name="stem")(x))
    x = L.Dropout(0.1, name="drop")(L.Flatten(name="flat")(x))
    for name in ("block_1", "block_2", "block_10"):
        x = L.Dense(3, name=name)(x)
    return keras.Model(image, L.Dense(2, name="head")(x))


@pytest.fixture(scope="module")
def tree() -> LayerTree:
    return layer_tree(make_model())


def taken(groups: tuple[LayerGroup, ...]) -> dict[str, list[str]]:
    return {group.name: [leaf.name for leaf in group.leaves] for group in groups}


def message(tree, *selectors) -> str:
    with pytest.raises(GroupError) as caught:
        resolve_groups(tree, selectors)
    return str(caught.value)


def weights(*layers: str) -> list[str]:
    return [f"{layer}/{weight}" for layer in layers for weight in ("kernel", "bias")]


# What matches


def test_groups_come_in_the_given_order_with_their_weights_in_the_models_order(tree):
    groups = resolve_groups(tree, [Selector("head", prefixes=("head",)), Selector("body", rest=True, frozen=True)])

    assert [group.name for group in groups] == ["head", "body"]
    assert [group.frozen for group in groups] == [False, True]
    assert taken(groups)["head"] == weights("head")
    assert taken(groups)["body"] == [leaf.name for leaf in tree.leaves if leaf.layer != "head"]
    assert groups[0].variables == [leaf.variable for leaf in tree.trainable if leaf.layer == "head"]


def test_a_model_may_stand_for_its_tree():
    model = make_model()

    (group,) = resolve_groups(model, [REST])

    assert [id(leaf.variable) for leaf in group.leaves] == [id(weight) for weight in model.weights]


def test_the_first_selector_that_matches_takes_a_weight(tree):
    groups = resolve_groups(
        tree, [Selector("one", prefixes=("block_1/kernel",)), Selector("two", regex=("block.*",)), REST]
    )

    assert taken(groups)["one"] == ["block_1/kernel"]
    assert taken(groups)["two"] == ["block_1/bias", *weights("block_2", "block_10")]


def test_a_prefix_matches_only_at_slash_boundaries(tree):
    for prefix in ("block_1", "block_1/"):
        groups = resolve_groups(tree, [Selector("one", prefixes=(prefix,)), REST])

        assert taken(groups)["one"] == weights("block_1")


def test_a_single_string_is_one_prefix_and_not_its_letters(tree):
    assert taken(resolve_groups(tree, [Selector("one", prefixes="head"), REST]))["one"] == weights("head")


def test_a_regular_expression_must_match_the_whole_name(tree):
    groups = resolve_groups(tree, [Selector("kernels", regex=("block_.*/kernel",)), REST])

    assert taken(groups)["kernels"] == ["block_1/kernel", "block_2/kernel", "block_10/kernel"]
    assert "matches nothing" in message(tree, Selector("a", regex=("block_.*/kern",)), REST)


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
    groups = resolve_groups(tree, [Selector("some", layers=layers), REST])

    assert list(dict.fromkeys(leaf.layer for leaf in groups[0].leaves)) == expected


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
    groups = resolve_groups(tree, [Selector("some", variables=slices), REST])

    assert groups[0].trainable == tree.trainable[expected]


@pytest.mark.parametrize("everything", [":", "0:12", "-12:", "0:"])
def test_one_slice_may_take_everything(tree, everything):
    (group,) = resolve_groups(tree, [Selector("all", variables=(everything,))])

    assert group.leaves == tree.leaves


def test_slices_count_the_whole_list_whatever_is_frozen():
    model = make_model()
    before = taken(resolve_groups(model, [Selector("first", variables=("0:6",)), REST]))
    model.get_layer("stem").trainable = False

    assert taken(resolve_groups(model, [Selector("first", variables=("0:6",)), REST])) == before


def test_the_rest_is_what_no_other_group_takes_wherever_it_stands(tree):
    groups = resolve_groups(tree, [Selector("rest", rest=True), Selector("head", layers=(-1,))])

    assert taken(groups)["head"] == weights("head")
    assert len(groups[0].leaves) + len(groups[1].leaves) == len(tree.leaves)


def test_layers_of_a_subclassed_model_may_have_names_of_several_parts():
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

    groups = resolve_groups(model, [Selector("first", layers=("0:2",)), Selector("last", prefixes=("blocks/2",))])

    assert taken(groups) == {"first": weights("blocks/0", "blocks/1"), "last": weights("blocks/2")}


# Weights that are not trained


def test_moving_statistics_follow_the_first_trainable_weight_of_their_layer(tree):
    groups = resolve_groups(tree, [Selector("betas", regex=(".*/(beta|moving_mean)",)), REST])

    assert taken(groups)["betas"] == ["bn/beta"]
    assert {"bn/gamma", "bn/moving_mean", "bn/moving_variance"} <= set(taken(groups)["rest"])


def statistics_only() -> keras.Model:
    bare = {"center": False, "scale": False}
    layers = [
        L.BatchNormalization(**bare, name="before"),
        L.Dense(2, name="a"),
        L.BatchNormalization(**bare, name="mid"),
    ]
    return keras.Sequential(
        [keras.Input((2,)), *layers, L.Dense(2, name="b"), L.BatchNormalization(**bare, name="after")]
    )


def test_statistics_of_a_layer_without_trainable_weights_follow_what_matches_them():
    groups = resolve_groups(statistics_only(), [Selector("x", prefixes=("a", "after")), Selector("y", prefixes=("b",))])

    assert {leaf.layer for leaf in groups[0].leaves} == {"before", "a", "mid", "after"}
    assert {leaf.layer for leaf in groups[1].leaves} == {"b"}


def test_statistics_that_nothing_matches_follow_the_rest_or_else_the_weight_before_them():
    apart = [Selector("x", prefixes=("a",)), Selector("y", prefixes=("b",))]
    with_rest = [Selector("x", prefixes=("a",)), Selector("y", rest=True)]

    assert {leaf.layer for leaf in resolve_groups(statistics_only(), apart)[0].leaves} == {"before", "a", "mid"}
    assert {leaf.layer for leaf in resolve_groups(statistics_only(), apart)[1].leaves} == {"b", "after"}
    assert {leaf.layer for leaf in resolve_groups(statistics_only(), with_rest)[1].leaves} == {
        "before",
        "mid",
        "b",
        "after",
    }


def test_a_frozen_group_may_hold_statistics_alone():
    groups = resolve_groups(statistics_only(), [Selector("still", prefixes=("mid",), frozen=True), REST])

    assert groups[0].trainable == ()
    assert "Without one: `still`. Say `frozen: true`" in message(
        statistics_only(), Selector("still", prefixes=("mid",)), REST
    )


# Always


TREE = layer_tree(make_model())
SIZE = len(TREE.trainable)
some_slices = st.lists(
    st.tuples(st.integers(-SIZE, SIZE), st.integers(-SIZE, SIZE)).map(lambda ends: f"{ends[0]}:{ends[1]}")
    | st.integers(-SIZE, SIZE - 1),
    min_size=1,
    max_size=3,
).map(tuple)
a_selector = st.one_of(
    some_slices.map(lambda slices: {"variables": slices}),
    st.sets(st.sampled_from(["stem", "bn", "block_1", "block_2", "block_10", "head", "head/bias"]), min_size=1).map(
        lambda prefixes: {"prefixes": tuple(sorted(prefixes))}
    ),
    st.sampled_from([".*/kernel", "block.*", ".*bias", "bn/.*"]).map(lambda regex: {"regex": (regex,)}),
)


@given(wanted=st.lists(a_selector, max_size=4), rest_at=st.integers(0, 4))
def test_selectors_partition_the_weights_or_an_error_says_why_not(wanted, rest_at):
    selectors = [Selector(f"g{n}", **conditions) for n, conditions in enumerate(wanted)]
    selectors.insert(rest_at, REST)
    try:
        groups = resolve_groups(TREE, selectors)
    except GroupError as error:
        assert re.search(r"matches nothing|gets nothing|needs a trainable weight", str(error))  # noqa: PT017
        return

    check_partition(groups, selectors)


@given(
    group_of=st.lists(st.integers(0, 4), min_size=SIZE, max_size=SIZE), by_name=st.booleans(), rest=st.integers(0, 4)
)
def test_any_partition_of_the_variables_can_be_asked_for(group_of, by_name, rest):
    selectors = []
    for group in sorted(set(group_of)):
        places = [place for place, its_group in enumerate(group_of) if its_group == group]
        condition = (
            {"prefixes": tuple(TREE.trainable[place].name for place in places)} if by_name else {"variables": places}
        )
        selectors.append(Selector(f"g{group}", **({"rest": True} if group == rest else condition)))

    groups = resolve_groups(TREE, selectors)

    check_partition(groups, selectors)
    for group in groups:
        assert list(group.trainable) == [
            leaf for leaf, wanted in zip(TREE.trainable, group_of, strict=True) if group.name == f"g{wanted}"
        ]


def check_partition(groups, selectors):
    assert [group.name for group in groups] == [selector.name for selector in selectors]
    assert sorted(leaf.name for group in groups for leaf in group.leaves) == sorted(TREE.by_name)
    for group in groups:
        positions = [TREE.leaves.index(leaf) for leaf in group.leaves]
        assert positions == sorted(positions)
        assert group.variables


# Errors


def test_a_dead_prefix_names_the_top_layers_and_the_nearest_one(tree):
    assert message(tree, Selector("body", prefixes=("sten",)), REST) == (
        "group `body` matches nothing: `prefixes: [sten]`. The model's top layers are `stem`, `bn`, `block_1`, "
        "`block_2`, `block_10` and 1 more. Did you mean `stem`?"
    )


def test_each_dead_element_is_told_five_at_most(tree):
    text = message(tree, Selector("a", prefixes=("stem", "no")), Selector("b", regex=("nowhere",), rest=True))
    assert "group `a` matches nothing: `prefixes: [no]`" in text
    assert "group `b` matches nothing: `regex: [nowhere]`" in text

    text = message(tree, Selector("a", prefixes=tuple(f"no{n}" for n in range(8))), REST)
    assert text.count("matches nothing") == 5
    assert text.endswith("... and 3 more")


def test_a_dead_prefix_that_names_a_layer_further_down_is_told_where_it_is():
    inner = keras.Input((2,))
    inputs = keras.Input((2,))
    backbone = keras.Model(inner, L.Dense(2, name="conv1")(inner), name="backbone")
    net = keras.Model(inputs, keras.Sequential([backbone], name="trunk")(inputs))

    for prefix, place in {"conv1": "trunk/backbone/conv1", "backbone": "trunk/backbone"}.items():
        assert message(net, Selector("a", prefixes=(prefix,)), REST).endswith(f"Did you mean `{place}`?")


def test_a_dead_prefix_that_is_a_layers_own_name_is_told_the_name_in_the_tree():
    class Held(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = L.Dense(2)

        def call(self, x):
            return self.encoder(x)

    model = Held()
    model(np.ones((1, 2), "float32"))

    assert message(model, Selector("a", prefixes=(model.encoder.name,)), REST).endswith("Did you mean `encoder`?")


def test_a_layer_without_weights_is_told_as_such(tree):
    assert "has no weights of its own" in message(tree, Selector("a", prefixes=("drop",)), REST)
    text = message(tree, Selector("a", layers=("3:5",)), REST)
    assert (
        "No weights of their own have `drop`, `flat`" in text or "No weights of their own have `flat`, `drop`" in text
    )


def test_a_regular_expression_found_inside_a_name_is_told_so(tree):
    assert message(tree, Selector("a", regex=("lock_2",)), REST).endswith(
        "It must match a weight's whole name, such as `block_2/kernel`. Did you mean `.*lock_2.*`?"
    )


def test_an_empty_slice_is_dead(tree):
    assert "`variables: [4:4]`. The slice is empty" in message(tree, Selector("a", variables=("4:4",)), REST)


def test_a_group_robbed_of_all_its_weights_names_the_thieves(tree):
    text = message(
        tree,
        Selector("a", prefixes=("head/bias",)),
        Selector("b", prefixes=("head",)),
        Selector("c", layers=(-1,)),
        REST,
    )

    assert text.startswith("group `c` gets nothing: everything it matches is taken by `b`, `a`.")
    assert "put `c` before them" in text


def test_a_rest_that_gets_nothing_is_an_error(tree):
    text = message(tree, Selector("all", regex=(".*",)), REST)

    assert text == "group `rest` gets nothing: no weight is left for `rest: true`. All are taken by `all`. Remove it."


def test_uncovered_variables_are_counted_and_named(tree):
    text = message(tree, Selector("head", prefixes=("head",)))

    assert (
        "10 of 12 are in none: `stem/kernel`, `stem/bias`, `bn/gamma`, `bn/beta`, `block_1/kernel` and 5 more" in text
    )
    assert "`rest: true`" in text


@pytest.mark.parametrize("name", ["", "two words", "a/b", "é", None, 3])
def test_a_name_must_be_usable(tree, name):
    assert "made of letters, digits, `_`, `-` and `.`. Received: " in message(tree, Selector(name, rest=True))


def test_all_bad_names_are_told_at_once(tree):
    assert "Received: `a b`, `c/d`" in message(tree, Selector("a b", rest=True), Selector("c/d", layers=(1,)))


def test_two_groups_of_one_name_are_an_error(tree):
    text = message(tree, Selector("a", layers=(1,)), Selector("a", rest=True))

    assert text == "Groups need different names. Received more than once: `a`. Rename all but one."


def test_two_rests_are_an_error(tree):
    assert "Received `rest: true` in `a`, `b`" in message(tree, Selector("a", rest=True), Selector("b", rest=True))


def test_no_selector_at_all_is_an_error(tree):
    assert "at least one selector" in message(tree)


def test_a_selector_that_asks_for_nothing_is_an_error(tree):
    assert "Without any: `a`" in message(tree, Selector("a"), REST)


def test_every_group_frozen_is_an_error(tree):
    text = message(tree, Selector("a", layers=(1,), frozen=True), Selector("b", rest=True, frozen=True))

    assert "every one is frozen: `a`, `b`" in text


@pytest.mark.parametrize("value", ["0:400", "-13:", "12", 12, -13, ":13", "13:"])
def test_an_index_beyond_the_model_is_an_error_that_says_how_many_there_are(tree, value):
    text = message(tree, Selector("a", variables=(value,)), REST)

    assert text == (
        f"group `a`: `variables: [{value}]` reaches beyond the model, which has 12 trainable variables: `0` to `11`, or "
        "`-12` to `-1` counted from the end. Leave an end open, as in `0:`, to take everything up to it."
    )


def test_a_layer_beyond_the_model_is_an_error(tree):
    assert "which has 9 layers: `0` to `8`" in message(tree, Selector("a", layers=("0:10",)), REST)


@pytest.mark.parametrize("value", ["a", "1:b", "1-3", "", " ", "1:2:3:4", "::0", "::-1", True, 1.5, None, [1, 2]])
@pytest.mark.parametrize("kind", ["layers", "variables"])
def test_a_malformed_slice_is_an_error(tree, kind, value):
    text = message(tree, Selector("a", **{kind: (value,)}), REST)

    assert text.startswith(f"group `a`: `{kind}: [{value}]` is no index or slice. Write one such as `3`")


def test_a_bad_regular_expression_is_an_error_that_says_what_is_wrong(tree):
    text = message(tree, Selector("a", regex=("(",)), REST)

    assert text.startswith("group `a`: `regex: [(]` is no regular expression: missing ), unterminated subpattern")


@pytest.mark.parametrize("prefix", ["", "/", None, 3])
def test_a_prefix_that_is_no_name_is_an_error(tree, prefix):
    assert "is no name of a layer or weight" in message(tree, Selector("a", prefixes=(prefix,)), REST)
