"""From the `groups` of a recipe to layer groups."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.errors import GroupError, RecipeError
from finetune.groups.layer_tree import LayerTree
from finetune.groups.selectors import LayerGroup, Selector, resolve_groups, selectors_by
from finetune.groups.spacing import discriminative_rates, spread_rates
from finetune.recipe.groups import GroupSpec, OptimizerSpec, Strategy
from finetune.recipe.loader import place_of
from finetune.recipe.schema import Recipe


@dataclass(frozen=True)
class GroupPlan:
    """One group as the recipe wants it; `optimizer` is `None` exactly when the group is frozen.

    Attributes:
        about: What messages about it begin with, e.g. "recipes/pets.yaml:14:5: group `body`".
    """

    about: str
    selector: Selector
    optimizer: OptimizerSpec | None
    learning_rate: Any
    decay_bias_and_norm: bool


def plan_groups(recipe: Recipe, tree: LayerTree) -> list[GroupPlan]:
    """Writes a strategy out as a list of groups; a list is taken as it is."""
    if isinstance(recipe.groups, Strategy):
        about = f"{place_of(recipe, 'groups')}: `groups`"
        try:
            return _strategy_groups(recipe.groups, tree, about)
        except GroupError as error:
            raise RecipeError(f"{about}: {error}") from error
    return [
        GroupPlan(
            f"{place_of(recipe, 'groups', index)}: group `{group.name}`",
            _selector(group),
            group.optimizer,
            group.learning_rate,
            group.decay_bias_and_norm,
        )
        for index, group in enumerate(recipe.groups)
    ]


def _selector(group: GroupSpec) -> Selector:
    return Selector(
        name=group.name,
        prefixes=group.prefixes,
        regex=group.regex,
        layers=group.layers,
        variables=group.variables,
        rest=group.rest,
        frozen=group.frozen,
    )


def _strategy_groups(strategy: Strategy, tree: LayerTree, about: str) -> list[GroupPlan]:
    selectors = selectors_by(tree, strategy.by)
    if strategy.spread:
        low, high = strategy.spread
        rates = spread_rates(low, high, len(selectors))
    else:
        assert strategy.peak is not None
        assert strategy.decay is not None
        rates = discriminative_rates(strategy.peak, len(selectors), decay=strategy.decay)
    shape = strategy.learning_rate
    return [
        GroupPlan(
            about,
            selector,
            strategy.optimizer,
            shape.with_rate(rate) if shape else rate,
            strategy.decay_bias_and_norm,
        )
        for selector, rate in zip(selectors, rates, strict=True)
    ]


def build_groups(recipe: Recipe, plans: Sequence[GroupPlan], tree: LayerTree) -> tuple[LayerGroup, ...]:
    """Resolves the selectors to layer groups that cover every trainable weight once."""
    try:
        return resolve_groups(tree, [plan.selector for plan in plans])
    except GroupError as error:
        raise GroupError("\n".join(_placed(recipe, line) for line in str(error).splitlines())) from None


def _placed(recipe: Recipe, line: str) -> str:
    """Puts in front of a resolver's line where the recipe wrote the selector that it is about."""
    about = re.match(r"group `(?P<group>[^`]+)`(?:[^`]*`(?P<selector>\w+): )?", line)
    names = [] if isinstance(recipe.groups, Strategy) else [group.name for group in recipe.groups]
    if line.startswith("... and "):
        return line
    if not about or about["group"] not in names:
        return f"{place_of(recipe, 'groups')}: {line}"
    return f"{place_of(recipe, 'groups', names.index(about['group']), about['selector'] or 'name')}: {line}"
