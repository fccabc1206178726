"""What a run, a plan and every measurement begin with: the network of a recipe, restored, grouped and compiled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
from rich.console import Console

from finetune.build import (
    RunLength,
    build_examples,
    build_groups,
    build_optimizer,
    build_settings,
    compile_model,
    plan_groups,
    precision,
    restore_weights,
    run_length,
)
from finetune.groups.layer_tree import layer_tree
from finetune.groups.resolver import LayerGroup
from finetune.network import build_model, pretrained_sources
from finetune.pretrained.restore import RestoreReport
from finetune.recipe.loader import check_code_allowed, load_recipe
from finetune.recipe.rates import peak_of
from finetune.recipe.schema import Recipe
from finetune.results.tables import LEGEND, group_table, weight_table
from finetune.sources.data import Examples
from finetune.training.freezing import check_trainable, freeze
from finetune.training.plan import Plan, make_plan
from finetune.training.trial import try_examples


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, with the weights restored and the model compiled; nothing is trained yet.

    Attributes:
        model: The compiled network.
        examples: What it is trained and tested on.
        groups: All of its layer groups, input to output.
        plan: What will happen to every weight.
        restored: What was restored, if anything.
        length: Epochs and steps.
        peaks: The first or highest learning rate of every group that is trained, as the recipe gives it.
        rates_to_measure: Whether an LR range test shall still choose the rates; then the peaks only say their ratios.
    """

    model: keras.Model
    examples: Examples
    groups: tuple[LayerGroup, ...]
    plan: Plan
    restored: RestoreReport | None
    length: RunLength
    peaks: dict[str, float]
    rates_to_measure: bool


def plan(recipe: str | Path, *, overrides: Sequence[str] = (), allow_code: Sequence[str] = ()) -> Prepared:
    """Does all of `run` that comes before training: what would happen to every weight, on the real model.

    Args:
        recipe: Path of the recipe.
        overrides: Changes to the recipe such as `"train.epochs=3"`.
        allow_code: Packages whose code the recipe may run.

    Raises:
        FinetuneError: If the input is wrong.
    """
    wanted = load_allowed(recipe, overrides, allow_code)
    with precision(wanted):
        return prepare(wanted)


def tell_network(ready: Prepared, console: Console) -> None:
    """Prints which network it is, and where its weights came from."""
    console.print(f"model: {ready.model.name}, {ready.model.count_params():,} parameters", markup=False)
    if ready.restored:
        console.print(ready.restored.summary(), markup=False)


def tell_plan(ready: Prepared, console: Console, *, every_weight: bool = False) -> None:
    """Prints the plan: where the weights came from, a table of the groups (or of every weight), and advice."""
    tell_network(ready, console)
    console.print(f"plan: {ready.length.epochs} epochs of {ready.length.steps_per_epoch} steps. {LEGEND}")
    console.print((weight_table if every_weight else group_table)(ready.plan.to_json()))
    if ready.rates_to_measure:
        console.print("note: `train.learning_rate: auto` measures the rates first; these only say their ratios")
    for advice in ready.plan.advice:
        console.print(f"advice: {advice}", markup=False)


def load_allowed(recipe: str | Path, overrides: Sequence[str], allow_code: Sequence[str]) -> Recipe:
    """Reads a recipe and holds that it runs no code but what is allowed."""
    wanted = load_recipe(recipe, overrides=overrides)
    check_code_allowed(wanted, allow_code)
    return wanted


def prepare(wanted: Recipe) -> Prepared:
    """Builds, restores, plans, freezes, compiles and tries the examples; call it within `precision`."""
    model, examples = build_model(wanted), build_examples(wanted)
    tree = layer_tree(model)
    groups = build_groups(wanted, plan_groups(wanted, tree), tree)
    build_settings(plan_groups(wanted, tree), run_length(wanted, examples))  # told before the weights are read
    ready = equip(wanted, model, examples, groups, restore_weights(wanted, model))
    try_examples(model, examples)
    return ready


def equip(
    wanted: Recipe,
    model: keras.Model,
    examples: Examples,
    groups: tuple[LayerGroup, ...],
    restored: RestoreReport | None,
) -> Prepared:
    """Gives a network the plan, the frozen groups and the optimizer of a recipe, whatever it had before."""
    tree, length = layer_tree(model), run_length(wanted, examples)
    plans = plan_groups(wanted, tree)
    settings = build_settings(plans, length)
    sources = pretrained_sources(wanted, tree)
    sources |= {tensor.name: tensor.source for tensor in restored.restored} if restored else {}
    plan = make_plan(tree, groups, settings, steps=length.steps, restored_from=sources)
    freeze(model, groups)
    compile_model(wanted, model, build_optimizer(wanted, plans, groups, settings))
    check_trainable(model, groups)
    peaks = {plan.selector.name: peak_of(plan.learning_rate) for plan in plans if plan.optimizer}
    to_measure = wanted.train.learning_rate == "auto"
    return Prepared(model, examples, groups, plan, restored, length, peaks, to_measure)
