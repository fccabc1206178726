import copy
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.schema import Recipe
from finetune.recipe.text import dump

HEAD = {"name": "head", "rest": True, "optimizer": "adamw", "learning_rate": 1e-4}
VALID = {
    "model": {"builder": "finetune.examples.digits:small_cnn", "arguments": {"num_classes": 10}},
    "data": {"npz": "digits.npz"},
    "restore": {"from": "weights.h5"},
    "groups": [{"name": "stem", "prefixes": ["conv1"], "frozen": True}, HEAD],
    "train": {"epochs": 10, "loss": "mse"},
}
STRATEGY = {"by": "layer", "peak": 1e-3, "decay": 2.6, "optimizer": "adamw"}


def changed(*path, to):
    """The valid recipe with one value changed; a `to` of `...` takes the key away."""
    data = copy.deepcopy(VALID)
    place = data
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return data


def read(*path, to):
    return Recipe.model_validate(changed(*path, to=to))


@pytest.fixture
def complaint(tmp_path: Path):
    """Returns what is said about the valid recipe with one value changed, without file names."""

    def say(*path, to):
        file = tmp_path / "recipe.yaml"
        file.write_text(dump(changed(*path, to=to)))
        with pytest.raises(RecipeError) as caught:
            load_recipe(file)
        return [line.split(": ", 1)[1] for line in str(caught.value).splitlines()]

    return say


# -- Strictness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("train", "epochs"), "3", 'must be a whole number. Received: `"3"`. Remove the quotes.'),
        (("train", "epochs"), True, "must be a whole number. Received: `true`."),
        (("train", "epochs"), 3.0, "must be a whole number. Received: `3.0`. Write `3`."),
        (("train", "epochs"), None, "must be a whole number. Received: `null`."),
        (("train", "epochs"), 0, "must be 1 or more. Received: `0`."),
        (("train", "epochs"), 10**400, f"must be 1e+12 or less. Received: `1{'0' * 56}...`."),
        (("train", "shuffle"), "true", 'must be `true` or `false`. Received: `"true"`. Remove the quotes.'),
        (("train", "shuffle"), 1, "must be `true` or `false`. Received: `1`."),
        (("train", "global_clipnorm"), "1e-4", 'must be a number. Received: `"1e-4"`. Remove the quotes.'),
        (("train", "global_clipnorm"), math.inf, "must be a finite number. Received: `.inf`."),
        (("train", "global_clipnorm"), -1, "must be greater than 0. Received: `-1`."),
        (("train", "validation_fraction"), 1.0, "must be less than 1. Received: `1.0`."),
        (("train", "gradient_accumulation_steps"), 1, "must be 2 or more. Received: `1`."),
        (("train", "metrics"), 3, "must be a name, or a mapping with `name`. Received: `3`."),
        (("train",), [1], "must be a mapping. Received: `[1]`."),
        (("train", "epoch"), 3, "is not a known key. Did you mean `epochs`?"),
        (("train", 3), 3, "is a key, and keys are text. Put it in quotes."),
        (("train", "loss"), ..., "is missing. Add it under `train`."),
        (("data", "npz"), 3, "must be text. Received: `3`. Put it in quotes."),
        (("data", "npz"), "", 'must not be empty. Received: `""`.'),
        (("restore", "exclude"), {"a": 1}, 'must be text. Received: `{"a": 1}`.'),
        (("restore", "rename"), ["a"], 'must be a mapping. Received: `["a"]`.'),
        (("seed",), -1, "must be 0 or more. Received: `-1`."),
        (("extend",), "a", "is not a known key. Did you mean `extends` or `seed`?"),
        (("groups",), 3, "must be a list of groups, or a strategy such as `{by: layer, ...}`. Received: `3`."),
        (("groups",), ..., "is missing. Add it."),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_in_plain_english_and_never_coerced(complaint, path, value, message):
    assert complaint(*path, to=value) == [f"`{'.'.join(map(str, path))}` {message}"]


def test_the_name_of_a_loss_names_no_code(complaint):
    said = ['`train.loss.name` must be a name of letters, digits and `_`. Received: `"os.system"`.']
    assert complaint("train", "loss", to={"name": "os.system"}) == said


def test_null_means_that_an_optional_key_was_left_out():
    assert read("train", "batch_size", to=None).train.batch_size == 32
    assert read("restore", to=None).restore is None


def test_false_is_the_only_way_to_say_no_mixed_precision(complaint):
    known = "Choose from `false`, `bfloat16`, `float16`."
    said = [f"`train.mixed_precision` is not a known value. Received: `0`. {known}"]
    assert complaint("train", "mixed_precision", to=0) == said
    assert read("train", "mixed_precision", to=False).train.mixed_precision is False
    assert read("train", "mixed_precision", to="bfloat16").train.mixed_precision == "bfloat16"


def test_a_recipe_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe.model_validate(VALID).seed = 3


def test_one_text_stands_for_a_list_of_one():
    assert read("restore", "exclude", to="head").restore.exclude == ("head",)
    assert [metric.name for metric in read("train", "metrics", to="accuracy").train.metrics] == ["accuracy"]
    assert read("groups", 0, to={"name": "a", "variables": 4, "frozen": True}).groups[0].variables == (4,)


def test_only_one_way_to_clip_is_taken(complaint):
    said = complaint("train", to={**VALID["train"], "clipnorm": 1.0, "global_clipnorm": 1})
    rule = "`train` takes at most one of `clipnorm`, `clipvalue`, `global_clipnorm`."
    assert said == [f"{rule} Received: `clipnorm`, `global_clipnorm`."]


# -- Sources and restoring --------------------------------------------------------------------------------------------


def test_model_and_data_come_from_exactly_one_source(complaint):
    sources = "`builder`, `keras_file`, `application`, `preset`, `hub`"
    assert complaint("model", to={}) == [f"`model` needs exactly one of {sources}. Received none of them."]
    both = {"builder": "finetune.examples.digits:uci_digits", "npz": "a.npz"}
    said = "`data` needs exactly one of `builder`, `npz`. Received: `builder`, `npz`."
    assert complaint("data", to=both) == [said]


def test_arguments_belong_to_a_builder(complaint):
    said = ["`data.arguments` are for a `builder`, and there is none. Remove them."]
    assert complaint("data", "arguments", to={"rows": 3}) == said


@pytest.mark.parametrize(
    "builder", ["build", "a:b:c", "os:system()", ".a:b", "a..b:c", "a.:b", "a/b:c", "a:b.c", "é:f", "a:b\n"]
)
def test_a_builder_that_is_not_a_module_and_a_function_is_refused(complaint, builder):
    [said] = complaint("model", "builder", to=builder)
    assert said.startswith("`model.builder` must be spelled `package.module:function`. Received: ")


@pytest.mark.parametrize("builder", ["finetune:run", "finetune.run:run", "finetune.examples:a", "finetune.examplesx:a"])
def test_inside_finetune_only_examples_may_be_named(complaint, builder):
    [said] = complaint("model", "builder", to=builder)
    assert said.startswith("`model.builder` may name only `finetune.examples.<module>:<function>` inside finetune.")


def test_a_renaming_that_cannot_work_is_found_before_any_weights_are_read(complaint):
    assert "not a regular expression" in complaint("restore", "rename", to={"(": "a"})[0]
    [said] = complaint("restore", "rename", to={"^a(.)": "\\2"})
    assert said.startswith(
        "`restore.rename.^a(.)` is not a valid replacement: invalid group reference 2 at position 1. Received: "
    )
    assert "unknown group name" in complaint("restore", "rename", to={"^a": "\\g<x>"})[0]


def test_from_is_read_into_source():
    assert Recipe.model_validate(VALID).restore.source == "weights.h5"


# -- Groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{"optimizer": "adam"}, {"learning_rate": 1e-3}, {"decay_bias_and_norm": True}])
def test_a_frozen_group_takes_nothing_that_is_for_training(complaint, keys):
    [said] = complaint("groups", 0, to={"name": "a", "prefixes": "a", "frozen": True, **keys})
    [key] = keys
    assert said == f"`groups.a.{key}` does not belong in a frozen group. Remove either this or `frozen`."


def test_a_trained_group_needs_an_optimizer_and_a_learning_rate(complaint):
    rest = "is missing. Give the group an `optimizer` and a `learning_rate`, or say `frozen: true`."
    said = complaint("groups", 1, to={"name": "head", "rest": True})
    assert said == [f"`groups.head.optimizer` {rest}", f"`groups.head.learning_rate` {rest}"]


def test_a_learning_rate_of_zero_is_told_to_say_frozen(complaint):
    [said] = complaint("groups", 1, "learning_rate", to=0)
    advice = "For layers that stay as they are say `frozen: true`."
    assert said == f"`groups.head.learning_rate` must be greater than 0. Received: `0`. {advice}"


@pytest.mark.parametrize("rate", [-1e-3, math.nan, math.inf, "fast", True, [1e-3], 10**400])
def test_a_learning_rate_is_a_finite_number_above_zero(complaint, rate):
    [said] = complaint("groups", 1, "learning_rate", to=rate)
    assert said.startswith("`groups.head.learning_rate` must be ")


def test_a_group_must_select_something(complaint):
    said = "`groups.head` selects nothing. Add one of `prefixes`, `regex`, `layers`, `variables`, or `rest: true`."
    assert complaint("groups", 1, "rest", to=False) == [said]
    assert complaint("groups", 1, to={**HEAD, "rest": False, "prefixes": []}) == [said]


@pytest.mark.parametrize("given", [5, -1, "4:12", "40:", ":-2", ":", "-1", [0, "3:5"]])
def test_an_index_or_a_slice_selects_layers_or_variables(given):
    expected = tuple(given) if isinstance(given, list) else (given,)
    assert read("groups", 0, to={"name": "a", "layers": given, "frozen": True}).groups[0].layers == expected


@pytest.mark.parametrize("given", ["a:b", "1:2:3", "", "1.5", 1.5, True, [[1]], "9999999999999:"])
def test_anything_else_is_no_slice(complaint, given):
    [said] = complaint("groups", 0, to={"name": "a", "variables": given, "frozen": True})
    assert ' must be an index or a slice, e.g. `5`, `"0:40"`, `"40:"`. Received: ' in said


def test_a_regex_that_does_not_compile_is_told(complaint):
    [said] = complaint("groups", 0, to={"name": "a", "regex": "conv(", "frozen": True})
    assert said.startswith("`groups.a.regex` is not a regular expression: missing )")


def test_group_names_are_unique_and_only_one_takes_the_rest(complaint):
    twin = {"name": "head", "prefixes": "a", "frozen": True}
    [said] = complaint("groups", 0, to=twin)
    assert said == "`groups.head.name` is already the name of another group. Choose a different name."
    [said] = complaint("groups", 0, to={**twin, "name": "stem", "rest": True})
    assert said == "`groups.head.rest` can be in only one group, and `stem` has it. Remove one."


def test_some_group_must_be_trained(complaint):
    said = ["`groups` must contain a group that is trained. Received no groups, or only frozen ones."]
    assert complaint("groups", to=[]) == said
    assert complaint("groups", to=[VALID["groups"][0]]) == said


# -- Optimizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "name"),
    [("AdamW", "adamw"), ("RMSprop", "rmsprop"), ("ScheduleFreeAdamW", "schedule_free_adamw"), ("SGD", "sgd")],
)
def test_optimizers_are_known_however_they_are_spelled(written, name):
    assert read("groups", 1, "optimizer", to=written).groups[1].optimizer.name == name


def test_an_unknown_optimizer_is_offered_the_nearest(complaint):
    [said] = complaint("groups", 1, "optimizer", to="adamm")
    hint = "Did you mean `adam` or `nadam` or `adamw`?"
    assert said == f'`groups.head.optimizer` is not a known value. Received: `"adamm"`. {hint}'
    [said] = complaint("groups", 1, "optimizer", to={"name": "x"})
    assert all(f"`{name}`" in said for name in OPTIMIZERS)


def test_keyword_arguments_stand_beside_the_name():
    written = {"name": "sgd", "momentum": 0.9, "clipnorm": None}
    optimizer = read("groups", 1, "optimizer", to=written).groups[1].optimizer
    assert (optimizer.name, optimizer.arguments) == ("sgd", {"momentum": 0.9, "clipnorm": None})
    loss = read("train", "loss", to={"name": "huber", "delta": 0.5}).train.loss
    assert (loss.name, loss.arguments) == ("huber", {"delta": 0.5})


@pytest.mark.parametrize(
    ("key", "where"),
    [
        ("learning_rate", "belongs beside `optimizer`, not inside it."),
        ("global_clipnorm", "belongs under `train`: it is for all groups together."),
        ("gradient_accumulation_steps", "belongs under `train`: it is for all groups together."),
        ("use_ema", "belongs under `train`: it is for all groups together."),
        ("loss_scale_factor", "cannot be set: `train.mixed_precision` takes care of it. Remove it."),
    ],
)
def test_what_does_not_belong_into_an_optimizer_is_told_its_place(complaint, key, where):
    assert complaint("groups", 1, "optimizer", to={"name": "sgd", key: 1}) == [f"`groups.head.optimizer.{key}` {where}"]


# -- Strategies -------------------------------------------------------------------------------------------------------


def test_a_strategy_stands_in_place_of_the_list():
    strategy = read("groups", to=STRATEGY).groups
    assert (strategy.by, strategy.peak, strategy.decay, strategy.optimizer.name) == ("layer", 1e-3, 2.6, "adamw")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": "layers"}, '`groups.by` is not a known value. Received: `"layers"`. Did you mean `layer`?'),
        ({"decay": None}, "`groups.decay` is missing. Add the ratio between neighbouring groups, e.g. `decay: 2.6`."),
        ({"decay": 0.5}, "`groups.decay` must be 1 or more. Received: `0.5`."),
        ({"peak": None, "decay": None}, "`groups` needs exactly one of `peak`, `spread`. Received none of them."),
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
def test_a_strategy_that_contradicts_itself_is_told_so(complaint, change, message):
    assert complaint("groups", to={**STRATEGY, **change}) == [message]


def test_the_schedule_of_a_strategy_is_a_shape_that_takes_the_rate_of_each_group():
    shape = {"schedule": "cosine_decay", "decay_fraction": 1.0, "alpha": 0.1}
    recipe = read("groups", to={**STRATEGY, "learning_rate": shape})
    assert recipe.groups.learning_rate.with_rate(1e-5).initial == 1e-5
    assert recipe.groups.learning_rate.with_rate(1e-5).alpha == 0.1
    assert "initial" not in recipe.model_dump()["groups"]["learning_rate"]
    slanted = read("groups", to={**STRATEGY, "learning_rate": {"schedule": "slanted_triangular"}})
    assert slanted.groups.learning_rate.with_rate(1e-5).peak == 1e-5
