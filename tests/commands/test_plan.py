from io import StringIO

import keras
import numpy as np
import pytest
from rich.console import Console

from finetune.commands.lr_range import Range, lr_range
from finetune.commands.plan import plan, print_model, print_plan
from finetune.commands.run import run
from finetune.commands.suggest import suggest_groups
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


BUILDER = """
import keras
def build():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3, "softmax")])
"""


@pytest.mark.grid
def test_unnamed_layers_and_metrics_have_the_same_names_in_every_command_of_a_process(
    tiny_files, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unnamed_nets.py").write_text(BUILDER)
    (tmp_path / "r.yaml").write_text(f"""
model: {{builder: "unnamed_nets:build"}}
data: {{npz: {tiny_files / "rows.npz"}}}
groups:
  - {{name: body, prefixes: [dense], optimizer: adam, learning_rate: 1.0e-3}}
  - {{name: head, prefixes: [dense_1], optimizer: adam, learning_rate: 1.0e-2}}
train: {{epochs: 1, loss: sparse_categorical_crossentropy, metrics: [{{name: recall, class_id: 0}}]}}
""")
    allowed = {"allow_code": ["unnamed_nets"]}
    lr_range("r.yaml", Range(steps=25), **allowed)
    suggest_groups("r.yaml", num_batches=1, **allowed)
    for _ in range(2):
        keras.layers.Dense(1)
        assert plan("r.yaml", **allowed).plan.groups == ("body", "head")
    first, second = run("r.yaml", "one", **allowed), run("r.yaml", "two", **allowed)
    assert list(first.metrics) == list(second.metrics) == ["loss", "recall"]
    assert first.model.name == second.model.name == "sequential"
    keras.Sequential([first.model, keras.layers.Dense(2)])  # what is made afterwards has other names


def test_logits_under_a_bare_loss_are_told_in_the_plan(recipe, tiny_files):
    whole = keras.models.load_model(tiny_files / "tiny.keras")
    whole.layers[-1].activation = keras.activations.linear
    whole.save("logits.keras")
    told = printed(print_plan, plan(recipe, overrides=["model.keras_file=logits.keras"]))
    assert "these are logits" in told
    assert "from_logits: true" in told
    assert "logits" not in printed(print_plan, plan(recipe))
