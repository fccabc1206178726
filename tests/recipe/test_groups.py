"""The `groups` of a recipe: a list of layer groups, or a strategy."""

import pytest
from pydantic import ValidationError

from finetune.recipe.groups import GroupSpec, groups_block
from finetune.recipe.text import parse

HEAD = {"name": "head", "rest": True, "optimizer": "adamw", "learning_rate": 1e-4}
STRATEGY = {"by": "layer", "peak": 1e-3, "decay": 2.6, "optimizer": "adamw"}


@pytest.mark.parametrize("keys", [{"optimizer": "adam"}, {"learning_rate": 1e-3}, {"decay_bias_and_norm": True}])
def test_a_frozen_group_takes_nothing_that_is_for_training(complaint, keys):
    [said] = complaint("groups", 0, to={"name": "a", "prefixes": "a", "frozen": True, **keys})
    [key] = keys
    assert said == f"`groups.a.{key}` does not belong in a frozen group. Remove either this or `frozen`."


def test_a_trained_group_needs_an_optimizer_and_a_learning_rate(complaint):
    rest = "is missing. Give the group an `optimizer` and a `learning_rate`, or set `frozen: true`."
    said = complaint("groups", 1, to={"name": "head", "rest": True})
    assert said == [f"`groups.head.optimizer` {rest}", f"`groups.head.learning_rate` {rest}"]


def test_a_group_and_a_strategy_can_open_what_other_code_froze(read, complaint):
    assert read("groups", 1, to={**HEAD, "frozen": False}).groups[1].frozen is False
    assert read("groups", 1, to=HEAD).groups[1].frozen is None
    assert read("groups", to={**STRATEGY, "frozen": False}).groups.frozen is False
    [said] = complaint("groups", to={**STRATEGY, "frozen": True})
    assert said == "`groups.frozen` is not a known value. Received: `true`. Choose from `false`, `null`."


def test_a_group_must_select_something(complaint):
    said = "`groups.head` selects nothing. Add one of `prefixes`, `regex`, `layers`, `variables`, or `rest: true`."
    assert complaint("groups", 1, "rest", to=False) == [said]
    assert complaint("groups", 1, to={**HEAD, "rest": False, "prefixes": []}) == [said]


@pytest.mark.parametrize("given", [5, -1, "4:12", "40:", ":-2", ":", "-1", [0, "3:5"]])
def test_an_index_or_a_slice_selects_layers_or_variables(given, read):
    expected = tuple(given) if isinstance(given, list) else (given,)
    assert read("groups", 0, to={"name": "a", "layers": given, "frozen": True}).groups[0].layers == expected


@pytest.mark.parametrize("given", ["a:b", "1:2:3", "", "1.5", 1.5, True, [[1]], "9999999999999:"])
def test_anything_else_is_not_a_slice(complaint, given):
    [said] = complaint("groups", 0, to={"name": "a", "variables": given, "frozen": True})
    assert ' must be an index or a slice, e.g. `5`, `"0:40"`, `"40:"`. Received: ' in said


def test_group_names_are_unique_and_only_one_takes_the_rest(complaint):
    twin = {"name": "head", "prefixes": "a", "frozen": True}
    [said] = complaint("groups", 0, to=twin)
    assert said == "`groups.head.name` is already the name of another group. Choose a different name."
    [said] = complaint("groups", 0, to={**twin, "name": "stem", "rest": True})
    assert said == "`groups.head.rest` can be in only one group, and `stem` has it. Remove one."


def test_some_group_must_be_trained(complaint, valid):
    said = ["`groups` must contain a group that is trained. Received no groups, or only frozen ones."]
    assert complaint("groups", to=[]) == said
    assert complaint("groups", to=[valid["groups"][0]]) == said


def test_a_strategy_is_written_in_place_of_the_list(read):
    strategy = read("groups", to=STRATEGY).groups
    assert (strategy.by, strategy.peak, strategy.decay, strategy.optimizer.name) == ("layer", 1e-3, 2.6, "adamw")


def test_a_strategy_takes_the_decay_of_timm_and_modes_for_all_groups_or_for_each(read):
    changed = STRATEGY | {"decay": None, "layer_decay": 0.9, "batch_norm": {"bn": "freeze"}, "dropout": "on"}
    strategy = read("groups", to=changed).groups
    assert (strategy.layer_decay, strategy.decay, strategy.dropout) == (0.9, None, "on")
    assert strategy.batch_norm == {"bn": "freeze"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": "layers"}, '`groups.by` is not a known value. Received: `"layers"`. Did you mean `layer`?'),
        ({"decay": None}, "`groups.decay` is missing. Add the ratio between neighbouring groups, e.g. `decay: 2.6`."),
        ({"decay": 0.5}, "`groups.decay` must be 1 or more. Received: `0.5`."),
        ({"layer_decay": 0.9}, "`groups.decay` says the same as `layer_decay`. Remove one of the two."),
        (
            {"batch_norm": "frozen"},
            '`groups.batch_norm` is not a known value. Received: `"frozen"`. Did you mean `freeze`?',
        ),
        ({"peak": None, "decay": None}, "`groups` needs exactly one of `peak`, `spread`. All are missing."),
        (
            {"peak": None, "spread": [1e-6, 1e-3]},
            "`groups.decay` goes with `peak`, not with `spread`, which sets both ends. Remove it.",
        ),
        (
            {"peak": None, "decay": None, "spread": [1e-3, 1e-6]},
            "`groups.spread` must be two rates, of the first and of the last group, the smaller one first. "
            "Received: `[0.001, 1e-06]`.",
        ),
        (
            {"learning_rate": {"schedule": "cosine_decay", "initial": 1.0, "decay_fraction": 1.0}},
            "`groups.learning_rate.initial` comes from the strategy's `peak` or `spread`. Remove it.",
        ),
        (
            {"learning_rate": {"schedule": "chain"}},
            "`groups.learning_rate.schedule` holds several rates, so a strategy cannot set its rate. Choose another schedule, or list the groups.",
        ),
        (
            {"learning_rate": {"schedule": "polynomial_decay", "decay_fraction": 1.0}},
            "`groups.learning_rate` needs `end` in a strategy, since the default of 0.0001 may be above the lowest rates. Add it.",
        ),
    ],
)
def test_a_strategy_that_contradicts_itself_is_an_error(complaint, change, message):
    assert complaint("groups", to={**STRATEGY, **change}) == [message]


def test_the_schedule_of_a_strategy_is_a_shape_that_takes_the_rate_of_each_group(read):
    shape = {"schedule": "cosine_decay", "decay_fraction": 1.0, "alpha": 0.1}
    recipe = read("groups", to={**STRATEGY, "learning_rate": shape})
    assert recipe.groups.learning_rate.with_rate(1e-5).initial == 1e-5
    assert recipe.groups.learning_rate.with_rate(1e-5).alpha == 0.1
    assert "initial" not in recipe.model_dump()["groups"]["learning_rate"]
    slanted = read("groups", to={**STRATEGY, "learning_rate": {"schedule": "slanted_triangular"}})
    assert slanted.groups.learning_rate.with_rate(1e-5).peak == 1e-5


def test_a_frozen_group_may_update_its_moving_statistics_but_not_train_gamma_and_beta():
    frozen = {"name": "stem", "prefixes": "conv1", "frozen": True}
    assert GroupSpec.model_validate({**frozen, "batch_norm": "statistics"}).batch_norm == "statistics"
    for mode in ("train", "affine"):
        with pytest.raises(ValidationError) as caught:
            GroupSpec.model_validate({**frozen, "batch_norm": mode})
        [error] = caught.value.errors()
        assert error["ctx"]["predicate"].startswith("trains gamma and beta, and the group is frozen.")


@pytest.mark.parametrize(("key", "value"), [("batch_norm", "off"), ("dropout", True), ("dropout", "auto")])
def test_modes_of_layers_are_named_and_nothing_else(complaint, key, value):
    [said] = complaint("groups", 1, key, to=value)
    assert said.startswith(f"`groups.head.{key}` is not a known value. Received: ")


@pytest.mark.parametrize("name", ["", "-head", "a b", "a/b", "a.b", "é"])
def test_the_name_of_a_group_fits_into_an_override(complaint, name):
    [said] = complaint("groups", 1, "name", to=name)
    assert "must be a name of letters, digits, `_` and `-`" in said


def test_something_that_is_neither_a_list_nor_a_strategy_is_an_error(complaint):
    [said] = complaint("groups", to="layer")
    assert said.startswith("`groups` must be a list of groups, or a strategy such as `{by: layer, ...}`. Received: ")


def test_variables_are_counted_in_one_of_two_orders(read, complaint):
    by_variables = {"name": "a", "variables": "0:4", "frozen": True}
    assert read("groups", 0, to=by_variables).groups[0].order == "graph"
    assert read("groups", 0, to={**by_variables, "order": "creation"}).groups[0].order == "creation"
    [said] = complaint("groups", 0, to={**by_variables, "order": "creatoin"})
    assert said == '`groups.a.order` is not a known value. Received: `"creatoin"`. Did you mean `creation`?'
    [said] = complaint("groups", 0, to={"name": "a", "prefixes": "x", "order": "creation", "frozen": True})
    assert said == (
        '`groups.a.order` says how `variables` are counted, and the group has none. Remove it. Received: `"creation"`.'
    )


# -- Groups as text ------------------------------------------------------------------------------------------------------

GROUPS = [
    GroupSpec(name="stem", prefixes=["conv", "bn"], frozen=True),
    GroupSpec(name="head", rest=True, optimizer={"name": "sgd", "momentum": 0.9}, learning_rate=1e-3),
]


def test_every_group_has_its_reason_above_it_and_lists_stay_on_a_line():
    block = groups_block(GROUPS, {"stem": "too small", "head": "the largest"}, "Measured over 3 batches.")
    assert block.splitlines() == [
        "# Measured over 3 batches.",
        "groups:",
        "  # stem: too small",
        "  - name: stem",
        "    prefixes: [conv, bn]",
        "    frozen: true",
        "  # head: the largest",
        "  - name: head",
        "    rest: true",
        "    optimizer: {name: sgd, momentum: 0.9}",
        "    learning_rate: 0.001",
    ]


def test_the_block_reads_back_as_the_groups():
    problems = []
    tree = parse(groups_block(GROUPS, {"stem": "a", "head": "b"}, "c"), lambda line, column: None, problems)
    assert not problems
    assert [GroupSpec.model_validate(group) for group in tree.plain()["groups"]] == GROUPS
