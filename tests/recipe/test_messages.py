"""Errors of a recipe as sentences: the key, the rule, what was received, and the place in the file."""

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.recipe.fields import OneOrMore, Part, Text, fault
from finetune.recipe.loader import load_recipe
from finetune.recipe.messages import problems_of
from finetune.recipe.text import Place, parse

TEXT = """\
model: {builder: "finetune.examples.digits:small_cnn"}
data: {npz: data/digits.npz}
restore:
  from: weights.h5
  exclude: [head]
groups:
  - {name: stem, prefixes: [conv1], frozen: true}
  - name: head
    rest: true
    optimizer: adamw
    learning_rate: 1e-4
train:
  epochs: 10
  loss: mse
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(text):
    Path("recipe.yaml").write_text(text, encoding="utf-8")


def said():
    """Returns the lines of the error that loading the recipe raises."""
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml")
    return str(caught.value).splitlines()


class Inner(Part):
    names: OneOrMore[Text] = ()


class Outer(Part):
    inner: Inner


def problems(model, text):
    tree = parse(text, lambda line, column: Place("r.yaml", line, column), [])
    with pytest.raises(ValidationError) as caught:
        model.model_validate(tree.plain())
    return [f"{problem.place}: {problem.message}" for problem in problems_of(caught.value, tree)]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("train", "epochs"), "3", 'must be a whole number. Received: `"3"`. Remove the quotes.'),
        (("train", "epochs"), True, "must be a whole number. Received: `true`."),
        (("train", "epochs"), 3.0, "must be a whole number. Received: `3.0`. Write `3`."),
        (("train", "epochs"), None, "must be a whole number. Received: `null`."),
        (("train", "epochs"), 0, "must be 1 or more. Received: `0`."),
        (("train", "epochs"), 10**400, f"must be 1e+12 or less. Received: `1{'0' * 56}...`."),
        (("train", "checkpoint_steps"), 2.5, "must be a whole number. Received: `2.5`."),
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
        (("train", "loss"), {"name": "auto", "delta": 1}, "takes no arguments where it is `auto`. Write the name of what you want, or `auto` alone."),
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
def test_a_wrong_value_is_an_error_in_plain_english_and_is_never_coerced(complaint, path, value, message):
    assert complaint(*path, to=value) == [f"`{'.'.join(map(str, path))}` {message}"]


def test_a_learning_rate_of_zero_gets_the_advice_to_freeze_the_group(complaint):
    [said] = complaint("groups", 1, "learning_rate", to=0)
    advice = "To keep layers unchanged, set `frozen: true`."
    assert said == f"`groups.head.learning_rate` must be greater than 0. Received: `0`. {advice}"


def test_a_missing_key_has_the_place_of_the_mapping_that_lacks_it():
    write(TEXT.replace("  epochs", "  # epochs"))
    assert said() == ["recipe.yaml:12:1: `train.epochs` is missing. Add it under `train`."]
    write(TEXT[: TEXT.index("train:")])
    assert said() == ["recipe.yaml:1:1: `train` is missing. Add it."]


def test_a_misspelt_key_has_its_own_place_and_gets_the_nearest_key():
    write(TEXT.replace("  loss", "  los"))
    assert said() == [
        "recipe.yaml:14:3: `train.los` is not a known key. Did you mean `loss`?",
    ]


def test_an_error_in_a_union_is_reported_once():
    write(TEXT.replace("1e-4", "{schedule: cosine_decay, initial: 1e-3, decay_stps: 3}"))
    assert said() == [
        "recipe.yaml:11:5: `groups.head.learning_rate` needs exactly one of `decay_steps`, `decay_epochs`, "
        "`decay_fraction`. All are missing.",
        "recipe.yaml:11:60: `groups.head.learning_rate.decay_stps` is not a known key. "
        "Did you mean `decay_steps` or `decay_epochs`?",
    ]


def test_the_index_of_a_list_is_not_shown_where_a_single_entry_was_written():
    assert problems(Outer, "inner: {names: 3}") == [
        "r.yaml:1:16: `inner.names` must be text. Received: `3`. Put it in quotes."
    ]
    assert problems(Outer, "inner: {names: [a, 3]}") == [
        "r.yaml:1:20: `inner.names.1` must be text. Received: `3`. Put it in quotes."
    ]


def test_an_entry_of_a_list_is_called_by_its_name():
    write(TEXT.replace("prefixes: [conv1]", "prefixes: [conv1, 3]"))
    assert said() == ["recipe.yaml:7:36: `groups.stem.prefixes.1` must be text. Received: `3`. Put it in quotes."]


def test_a_recipe_that_lacks_every_key_gets_an_error_for_each_at_its_start():
    lines = problems(Outer, "{}")
    assert lines == ["r.yaml:1:1: `inner` is missing. Add it."]


def test_a_value_that_is_not_a_mapping_is_an_error_of_the_whole_recipe():
    assert problems(Outer, "[1]") == ["r.yaml:1:1: the recipe must be a mapping. Received: `[1]`."]


@pytest.mark.parametrize("predicate", ["is odd", "is odd.", "is odd?"])
def test_every_sentence_ends_with_exactly_one_mark(predicate):
    class Odd(Part):
        @classmethod
        def model_validate(cls, value):
            raise ValidationError.from_exception_data("Odd", [{"type": fault(predicate), "loc": ("a",), "input": 1}])

    [line] = problems(Odd, "a: 1")
    assert line == f"r.yaml:1:4: `a` {predicate.rstrip('.?')}{predicate[-1] if predicate[-1] in '.?' else '.'}"
