from io import StringIO

import keras
import numpy as np
import pytest
from rich.console import Console

from finetune.commands.plan import plan, print_model, print_plan
from finetune.errors import GroupError, RecipeError


def printed(function, *arguments, **more):
    console = Console(file=StringIO(), width=200)
    function(*arguments, console, **more)
    return console.file.getvalue()


def test_a_plan_is_the_layout_of_the_run_with_nothing_trained(recipe, tiny_files):
    layout = plan(recipe, overrides=["train.epochs=3"])
    assert (layout.length.epochs, layout.plan.steps) == (3, 12)
    assert layout.model.compiled
    start = keras.models.load_model(tiny_files / "tiny.keras")
    for mine, others in zip(layout.model.get_weights(), start.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, others)
    assert keras.config.dtype_policy().name == "float32"


def test_the_model_and_the_source_of_its_weights_are_printed(recipe, tiny_files):
    assert printed(print_model, plan(recipe)) == "model: tiny, 187 parameters\n"
    layout = plan(recipe, overrides=[f"restore={{from: {tiny_files / 'tiny.keras'}, exclude: [head]}}"])
    assert "8 weights restored from" in printed(print_model, layout)


def test_a_plan_is_printed_by_group_or_by_weight(recipe):
    layout = plan(recipe)
    groups, weights = printed(print_plan, layout), printed(print_plan, layout, every_weight=True)
    assert "plan: 2 epochs of 4 steps." in groups
    assert "body/kernel" not in groups
    assert "body/kernel" in weights
    assert "phase" not in groups


def test_phases_are_printed_where_the_recipe_has_them(recipe):
    phases = "phases=[{train: head, epochs: 1, clock: phase}, {train: all, epochs: 1}]"
    text = printed(print_plan, plan(recipe, overrides=["train.epochs=", phases]))
    assert "phase 1: schedules count from the start of the phase" in text


def test_advice_is_printed_below_the_tables(recipe):
    text = printed(print_plan, plan(recipe, overrides=["groups.body.learning_rate=0.5"]))
    assert text.splitlines()[-1].startswith("advice: Group `body` has a higher learning rate (0.5) than `head`")


def test_wrong_input_is_an_error_of_ours_and_code_must_be_allowed(recipe):
    with pytest.raises(GroupError, match="Did you mean `body`"):
        plan(recipe, overrides=["groups.body.prefixes=[bdy]"])
    with pytest.raises(RecipeError, match="--allow-code os"):
        plan(recipe, overrides=["model={builder: os:getcwd}"])
