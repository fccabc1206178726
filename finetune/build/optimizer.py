"""From the groups of a recipe to their optimizers: here the Keras optimizer of each group is made, once.

A learning rate goes this way: written in a `GroupSpec`, made a number or a Keras schedule by `build_rate`, held in
`GroupSettings` and by the group's Keras optimizer, moved by `finetune.optimizers.group_rates`.
"""

import inspect
from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Any

import keras

from finetune.build.data import RunLength
from finetune.build.groups import place_of_group
from finetune.build.rates import build_run_rate
from finetune.errors import GroupError, RecipeError, reason
from finetune.groups.selectors import LayerGroup
from finetune.optimizers.group_rates import as_float
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.tf1_momentum import Momentum
from finetune.optimizers.tf1_rmsprop import TF1RMSprop
from finetune.planning.joined_optimizer import join_optimizers
from finetune.planning.plan import GroupSettings
from finetune.recipe.error_places import located_at
from finetune.recipe.groups import GroupSpec
from finetune.recipe.optimizers import OptimizerSpec
from finetune.recipe.rate_edits import peak_of
from finetune.recipe.schema import Recipe


@located_at("groups")
def build_settings(recipe: Recipe, specs: Sequence[GroupSpec], length: RunLength) -> dict[str, GroupSettings]:
    """Makes the optimizer and the schedule of every group that is not frozen.

    Args:
        recipe: The recipe, for the places in messages.
        specs: The groups, input to output.
        length: Length of the run, which the schedules count in.

    Returns:
        How each group that is not frozen is trained, by its name.

    Raises:
        RecipeError: A schedule does not fit into the run, or an optimizer does not accept its arguments. The problems
            of all groups are in one message.
    """
    settings: dict[str, GroupSettings] = {}
    problems: list[str] = []
    for spec in specs:
        if spec.optimizer is None:
            continue
        try:
            # The rate goes into the optimizer here. Later nothing but `GroupedOptimizer` moves it.
            rate = build_run_rate(spec.learning_rate, length, recipe.train.extensions)
            _check_rate(rate, length.steps)
            settings[spec.name] = GroupSettings(
                optimizer=make_optimizer(spec.optimizer, rate),
                optimizer_name=spec.optimizer.name,
                learning_rate=rate,
                peak=peak_of(spec.learning_rate),
                decay_bias_and_norm=spec.decay_bias_and_norm,
            )
        except (GroupError, RecipeError) as error:
            problems.append(f"{place_of_group(recipe, spec.name)}: {error}")
    if problems:  # the groups of a strategy all have the same problem, which is reported once
        raise RecipeError("\n".join(list(dict.fromkeys(problems))[:5]))
    return settings


@located_at("groups")
def build_optimizer(
    recipe: Recipe, groups: Sequence[LayerGroup], settings: Mapping[str, GroupSettings]
) -> GroupedOptimizer:
    """Joins the optimizers of the groups into one.

    Args:
        recipe: Its `train` says what holds for all groups together.
        groups: All layer groups of the model, input to output.
        settings: What `build_settings` returned. The optimizers in it must be new: a `GroupedOptimizer` keeps them.
    """
    # Keys of `train` that are arguments of `GroupedOptimizer` reach it by name: a new key needs no line here.
    accepted = inspect.signature(GroupedOptimizer).parameters
    return join_optimizers(groups, settings, **{name: value for name, value in recipe.train if name in accepted})


def make_optimizer(spec: OptimizerSpec, learning_rate: Any) -> keras.optimizers.Optimizer:
    """Makes the Keras optimizer that a group names.

    Args:
        spec: Its name and its arguments.
        learning_rate: A number or a Keras schedule.

    Raises:
        RecipeError: Keras does not accept an argument; the recipe has checked those that it knows.
    """
    by_name = {name.lower(): value for name, value in vars(keras.optimizers).items() if inspect.isclass(value)}
    by_name |= {"momentum": Momentum, "tf1rmsprop": TF1RMSprop}  # as TF1 has them
    kind: Any = by_name[spec.name.replace("_", "")]
    # Keras insists on a float where its default is one, and YAML writes `momentum: 0`.
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    arguments = {
        name: float(value) if type(value) is int and type(defaults.get(name)) is float else value
        for name, value in spec.arguments.items()
    }
    try:
        return kind(learning_rate=learning_rate, **arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"`{spec.name}` does not accept its arguments. Keras says: {reason(error)}.") from error


def _check_rate(rate: Any, steps: int) -> None:
    """Checks that a schedule gives a finite rate in the first, the middle and the last step."""
    for step in sorted({0, steps // 2, max(steps - 1, 0)}) if callable(rate) else ():
        try:
            value = as_float(rate(step))
        except OverflowError:
            value = inf
        if not isfinite(value):
            raise GroupError(
                f"A learning rate must be a finite number in every step. That of this schedule is `{value}` in step "
                f"{step + 1:,} of {steps:,}. Choose another `decay_rate` or another length."
            )
