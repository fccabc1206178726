"""Selectors put every trainable variable into exactly one group, or say why they cannot."""

import re

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import GroupError
from finetune.groups.selectors import LayerGroup, Selector, resolve_groups, selectors_by

L = keras.layers
REST = Selector("rest", rest=True)


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


def test_a_model_may_be_passed_in_place_of_its_tree(make_model):
    model = make_model()

    (group,) = resolve_groups(model, [REST])

    assert [id(leaf.variable) for leaf in group.leaves] == [id(weight) for weight in model.weights]


def test_the_first_selector_that_matches_takes_a_weight(tree):
    groups = resolve_groups(
        tree, [Selector("one", prefixes=("block_1/kernel",)), Selector("two", regex=("block.*",)), REST]
    )

    assert taken(groups)["one"] == ["block_1/kernel"]
    assert taken(groups)["two"] == ["block_1/bias", *weights("block_2", "block_10")]


@pytest.mark.parametrize("everything", [":", "0:12", "-12:", "0:"])
def test_one_slice_may_take_everything(tree, everything):
    (group,) = resolve_groups(tree, [Selector("all", variables=(everything,))])

    assert group.leaves == tree.leaves


def test_slices_count_the_whole_list_whatever_is_frozen(make_model):
    model = make_model()
    before = taken(resolve_groups(model, [Selector("first", variables=("0:6",)), REST]))
    model.get_layer("stem").trainable = False

    assert taken(resolve_groups(model, [Selector("first", variables=("0:6",)), REST])) == before


def test_rest_takes_what_no_other_group_takes_whatever_its_position(tree):
    groups = resolve_groups(tree, [Selector("rest", rest=True), Selector("head", layers=(-1,))])

    assert taken(groups)["head"] == weights("head")
    assert len(groups[0].leaves) + len(groups[1].leaves) == len(tree.leaves)


def test_a_single_string_is_one_prefix_and_not_its_letters(tree):
    assert taken(resolve_groups(tree, [Selector("one", prefixes="head"), REST]))["one"] == weights("head")


def test_a_weight_belongs_to_a_selector_when_any_of_its_conditions_matches(tree):
    groups = resolve_groups(tree, [Selector("some", prefixes=("stem",), regex=("bn/beta",), variables=(-1,)), REST])

    assert [leaf.name for leaf in groups[0].trainable] == [*weights("stem"), "bn/beta", "head/bias"]


# Strategies in place of selectors


def test_by_layer_makes_the_groups_of_the_strategy_and_they_cover_every_weight(tree):
    groups = resolve_groups(tree, by="layer")

    assert [group.name for group in groups] == ["stem", "bn", "block_1", "block_2", "block_10", "head"]
    assert sorted(leaf.name for group in groups for leaf in group.leaves) == sorted(tree.by_name)


def test_by_a_strategy_is_the_same_as_its_selectors(tree):
    for by in ("layer", "block"):
        assert resolve_groups(tree, by=by) == resolve_groups(tree, selectors_by(tree, by))


def test_the_names_of_a_strategy_match_only_themselves_as_regular_expressions():
    inputs = keras.Input((2,))
    inner = keras.Sequential([L.Dense(2, name="a.b"), L.Dense(2, name="aXb")], name="inner net")
    names = [group.name for group in resolve_groups(keras.Model(inputs, inner(inputs)), by="layer")]

    assert len(set(names)) == 2
    for name in names:
        assert [other for other in names if re.fullmatch(name, other)] == [name]


def test_an_unknown_strategy_is_an_error_with_the_nearest_one(tree):
    with pytest.raises(GroupError, match=r"made `by` `layer`, `block`\. Received: `layers`\. Did you mean `layer`\?"):
        resolve_groups(tree, by="layers")


def test_selectors_and_a_strategy_exclude_each_other(tree):
    with pytest.raises(GroupError, match="Received both of them"):
        resolve_groups(tree, [REST], by="layer")
    with pytest.raises(GroupError, match="Received neither of them"):
        resolve_groups(tree)


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


def test_statistics_that_nothing_matches_go_to_rest_or_else_follow_the_weight_before_them():
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
    groups = resolve_groups(statistics_only(), [Selector("fixed", prefixes=("mid",), frozen=True), REST])

    assert groups[0].trainable == ()
    assert "Groups without a trainable weight: `fixed`. Set `frozen: true`" in message(
        statistics_only(), Selector("fixed", prefixes=("mid",)), REST
    )


# Always


SIZE = 12  # trainable weights of the model
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


@given(lists=st.lists(a_selector, max_size=4), rest_at=st.integers(0, 4))
def test_selectors_partition_the_weights_or_an_error_says_why_not(tree, lists, rest_at):
    selectors = [Selector(f"g{n}", **conditions) for n, conditions in enumerate(lists)]
    selectors.insert(rest_at, REST)
    try:
        groups = resolve_groups(tree, selectors)
    except GroupError as error:
        assert re.search(r"matches nothing|gets nothing|needs a trainable weight", str(error))  # noqa: PT017
        return

    check_partition(tree, groups, selectors)


@given(
    group_of=st.lists(st.integers(0, 4), min_size=SIZE, max_size=SIZE), by_name=st.booleans(), rest=st.integers(0, 4)
)
def test_any_partition_of_the_variables_can_be_asked_for(tree, group_of, by_name, rest):
    assert len(tree.trainable) == SIZE
    selectors = []
    for group in sorted(set(group_of)):
        places = [place for place, its_group in enumerate(group_of) if its_group == group]
        condition = (
            {"prefixes": tuple(tree.trainable[place].name for place in places)} if by_name else {"variables": places}
        )
        selectors.append(Selector(f"g{group}", **({"rest": True} if group == rest else condition)))

    groups = resolve_groups(tree, selectors)

    check_partition(tree, groups, selectors)
    for group in groups:
        assert list(group.trainable) == [
            leaf for leaf, number in zip(tree.trainable, group_of, strict=True) if group.name == f"g{number}"
        ]


def check_partition(tree, groups, selectors):
    assert [group.name for group in groups] == [selector.name for selector in selectors]
    assert sorted(leaf.name for group in groups for leaf in group.leaves) == sorted(tree.by_name)
    for group in groups:
        positions = [tree.leaves.index(leaf) for leaf in group.leaves]
        assert positions == sorted(positions)
        assert group.variables


# Errors


def test_all_conditions_without_a_match_are_listed_five_at_most(tree):
    text = message(tree, Selector("a", prefixes=("stem", "no")), Selector("b", regex=("nowhere",), rest=True))
    assert "group `a` matches nothing: `prefixes: [no]`" in text
    assert "group `b` matches nothing: `regex: [nowhere]`" in text

    text = message(tree, Selector("a", prefixes=tuple(f"no{n}" for n in range(8))), REST)
    assert text.count("matches nothing") == 5
    assert text.endswith("... and 3 more")


def test_a_group_all_of_whose_weights_others_take_names_those_groups(tree):
    text = message(
        tree,
        Selector("a", prefixes=("head/bias",)),
        Selector("b", prefixes=("head",)),
        Selector("c", layers=(-1,)),
        REST,
    )

    assert text.startswith("group `c` gets nothing: everything it matches is taken by `b`, `a`.")
    assert "put `c` before them" in text


def test_a_group_with_rest_that_gets_nothing_is_an_error(tree):
    text = message(tree, Selector("all", regex=(".*",)), REST)

    assert (
        text
        == "group `rest` gets nothing: no weight is left for `rest: true`. All are taken by `all`. Remove the group."
    )


def test_uncovered_variables_are_counted_and_named(tree):
    text = message(tree, Selector("head", prefixes=("head",)))

    assert (
        "10 of 12 are in none: `stem/kernel`, `stem/bias`, `bn/gamma`, `bn/beta`, `block_1/kernel` and 5 more" in text
    )
    assert "`rest: true`" in text


@pytest.mark.parametrize("name", ["", "two words", "a/b", "é", None, 3])
def test_a_name_must_be_usable(tree, name):
    assert "made of letters, digits, `_`, `-` and `.`. Received: " in message(tree, Selector(name, rest=True))


def test_all_bad_names_are_listed_at_once(tree):
    assert "Received: `a b`, `c/d`" in message(tree, Selector("a b", rest=True), Selector("c/d", layers=(1,)))


def test_two_groups_of_one_name_are_an_error(tree):
    text = message(tree, Selector("a", layers=(1,)), Selector("a", rest=True))

    assert text == "Groups need different names. Received more than once: `a`. Rename all but one."


def test_rest_in_two_groups_is_an_error(tree):
    assert "Only one group can have `rest: true`. Received it in `a`, `b`. Keep one." in message(
        tree, Selector("a", rest=True), Selector("b", rest=True)
    )


def test_no_selector_at_all_is_an_error(tree):
    assert "at least one selector" in message(tree)


def test_a_selector_that_asks_for_nothing_is_an_error(tree):
    assert "Groups without a selector: `a`" in message(tree, Selector("a"), REST)


def test_every_group_frozen_is_an_error(tree):
    text = message(tree, Selector("a", layers=(1,), frozen=True), Selector("b", rest=True, frozen=True))

    assert "all are frozen: `a`, `b`" in text


def test_a_group_is_trained_unless_it_says_that_it_is_frozen(tree):
    assert not resolve_groups(tree, [REST])[0].frozen
    assert not LayerGroup("rest", tree.leaves).frozen


def test_malformed_conditions_and_those_beyond_the_model_are_all_refused_before_any_is_matched(tree):
    text = message(tree, Selector("a", layers=("x",)), Selector("b", variables=(99,)), Selector("c", prefixes=("q",)))

    assert [line.partition(": ")[0] for line in text.splitlines()] == ["group `a`", "group `b`"]


def test_five_problems_are_shown_without_a_count_and_of_more_than_five_the_others_are_counted(tree):
    def lines(count):
        return message(tree, *(Selector(f"g{n}", prefixes=("q",)) for n in range(count))).splitlines()

    assert len(lines(5)) == 5
    assert lines(6)[5:] == ["... and 1 more"]


# -- The order of variables -------------------------------------------------------------------------------------------


def made_backwards():
    """A model whose graph is listed from `a` to `b`, and whose variables were made from `b` to `a`."""
    layers = {name: keras.layers.Dense(3, name=name) for name in ("a", "b")}
    for name in ("b", "a"):
        layers[name].build((None, 3))
    return keras.Sequential([keras.Input((3,)), layers["a"], layers["b"]])


@pytest.mark.parametrize(("order", "layer"), [("graph", "a"), ("creation", "b")])
def test_the_first_variables_are_those_of_the_order_and_the_group_says_which(order, layer):
    first, rest = resolve_groups(
        made_backwards(), [Selector("first", variables=(":2",), order=order), Selector("x", rest=True)]
    )
    assert {leaf.layer for leaf in first.trainable} == {layer}
    assert f"(`order: {order}`). In the order" in first.order_note
    assert rest.order_note == ""


def test_a_condition_whose_weights_a_group_before_takes_is_noted():
    model = keras.Sequential([keras.Input((3,)), *(keras.layers.Dense(3, name=name) for name in "abc")])
    selectors = [Selector("top", prefixes=("c",)), Selector("more", prefixes=("b", "c")), Selector("x", rest=True)]
    top, more, rest = resolve_groups(model, selectors)
    assert more.overlap_note == (
        "Group `more`: `prefixes: [c]` adds nothing to it, since `top` takes all that matches: the first match wins."
    )
    assert top.overlap_note == rest.overlap_note == ""


def test_an_order_that_does_not_exist_or_counts_nothing_is_an_error():
    with pytest.raises(GroupError) as caught:
        resolve_groups(
            made_backwards(), [Selector("body", variables=("0:2",), order="created"), Selector("x", rest=True)]
        )
    assert (
        str(caught.value)
        == "group `body`: `order` is `graph` or `creation`. Received: `created`. Did you mean `creation`?"
    )
    with pytest.raises(GroupError) as caught:
        resolve_groups(
            made_backwards(), [Selector("body", prefixes=("a",), order="creation"), Selector("x", rest=True)]
        )
    assert str(caught.value) == (
        "group `body`: `order` says how `variables` are counted, and the group has none. Remove `order`, or select by "
        "`variables`."
    )


def test_a_single_selector_is_a_list_of_one_and_a_strategy_in_its_place_is_an_error_that_says_where_it_goes(tiny):
    (group,) = resolve_groups(tiny(), Selector("all", rest=True))
    assert group.name == "all"
    with pytest.raises(GroupError) as error:
        resolve_groups(tiny(), "layer")
    assert str(error.value) == (
        "Layer groups are made from `finetune.Selector`s. Received `layer`. For a strategy write `by='layer'`."
    )


def test_a_group_is_shown_with_its_layers_and_no_values(tree):
    first = tree.leaves[0]
    group = LayerGroup("stem", (first,), frozen=True)
    assert repr(group) == f"LayerGroup(stem: 1 weight of `{first.layer}`, frozen)"
