"""What a run, a plan and every measurement begin with: the network of a recipe, restored, grouped and compiled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras

from finetune.build.data import RunLength, build_examples, run_length
from finetune.build.groups import GroupPlan, build_groups, plan_groups
from finetune.build.model import build_model, pretrained_sources
from finetune.build.optimizer import build_optimizer, build_settings, compile_model
from finetune.build.phases import build_phases, phase_length, phased_length, with_normalization, written_phases
from finetune.build.restore import restore_weights
from finetune.data.arrays import Examples
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import LayerGroup
from finetune.planning.weights import GroupSettings, Plan, make_plan
from finetune.pretrained.restore import RestoreReport
from finetune.recipe import phases as written
from finetune.recipe.loader import check_code_allowed, load_recipe
from finetune.recipe.phase_strategies import phases_block
from finetune.recipe.rate_edits import peak_of
from finetune.recipe.schema import Recipe
from finetune.training.check_examples import try_examples
from finetune.training.fast.calls import divide_evenly
from finetune.training.freezing import check_trainable, freeze
from finetune.training.phases.phase import Phase
from finetune.training.phases.preview import with_phases


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
        phases: The phases; none where all groups are trained all the time.
        block: The phases as YAML, if the recipe names a strategy of them.
    """

    model: keras.Model
    examples: Examples
    groups: tuple[LayerGroup, ...]
    plan: Plan
    restored: RestoreReport | None
    length: RunLength
    peaks: dict[str, float]
    rates_to_measure: bool
    phases: tuple[Phase, ...] = ()
    block: str | None = None


def load_allowed(recipe: str | Path, overrides: Sequence[str], allow_code: Sequence[str]) -> Recipe:
    """Reads a recipe and holds that it runs no code but what is allowed."""
    wanted = load_recipe(recipe, overrides=overrides)
    check_code_allowed(wanted, allow_code)
    return wanted


def prepare(wanted: Recipe) -> Prepared:
    """Builds, restores, plans, freezes, compiles and tries the examples; call it within `precision`."""
    model, examples = build_model(wanted), build_examples(wanted)
    tree = layer_tree(model)
    plans = with_normalization(wanted, plan_groups(wanted, tree), tree)
    groups = build_groups(wanted, plans, tree)
    _lay_out(wanted, plans, groups, examples)  # faults are told before the weights are read
    ready = equip(wanted, model, examples, groups, restore_weights(wanted, model))
    try_examples(model, examples)
    return ready


def _lay_out(
    wanted: Recipe, plans: Sequence[GroupPlan], groups: tuple[LayerGroup, ...], examples: Examples
) -> tuple[tuple[written.PhaseSpec, ...], tuple[Phase, ...], RunLength, dict[str, GroupSettings]]:
    """Works out the phases, as written and as trained, the length of the run, and the settings of the groups."""
    phases = written_phases(wanted, plans)
    length = phased_length(phases, run_length(wanted, examples))
    settings = build_settings(plans, length)
    return phases, build_phases(wanted, phases, plans, groups, length, examples), length, settings


def equip(
    wanted: Recipe,
    model: keras.Model,
    examples: Examples,
    groups: tuple[LayerGroup, ...],
    restored: RestoreReport | None,
) -> Prepared:
    """Gives a network the plan, the frozen groups and the optimizer of a recipe, whatever it had before."""
    tree = layer_tree(model)
    plans = with_normalization(wanted, plan_groups(wanted, tree), tree)
    listed, phases, length, settings = _lay_out(wanted, plans, groups, examples)
    sources = pretrained_sources(wanted, tree)
    sources |= {tensor.name: tensor.source for tensor in restored.restored} if restored else {}
    plan = make_plan(tree, groups, settings, steps=length.steps, restored_from=sources)
    if phases:
        each = [phase_length(one, length) for one in listed] or [length]
        plan = with_phases(plan, model, groups, phases, settings, [(one.epochs, one.steps) for one in each])
    freeze(model, groups)
    compile_model(wanted, model, build_optimizer(wanted, plans, groups, settings))
    divide_evenly(model, length.steps_per_epoch, *(phase.steps or 0 for phase in phases))
    check_trainable(model, groups)
    peaks = {plan.selector.name: peak_of(plan.learning_rate) for plan in plans if plan.optimizer}
    to_measure = wanted.train.learning_rate == "auto"
    block = None if wanted.phases is None or isinstance(wanted.phases, tuple) else phases_block(listed)
    return Prepared(model, examples, groups, plan, restored, length, peaks, to_measure, phases, block)
