"""From the `groups` of a recipe to the layer groups of the model.

A group is described by a `GroupSpec` from beginning to end: a list of groups is taken as it is, and a strategy is
written out as such a list. The spec itself is passed on, never copied field by field, so a key that is added to a
group cannot be lost on the way.
"""

import re
from collections.abc import Sequence
from dataclasses import fields

from finetune.errors import GroupError, RecipeError, did_you_mean, quote
from finetune.groups.layer_tree import LayerTree
from finetune.groups.rate_spacing import discriminative_rates, spread_rates
from finetune.groups.selectors import LayerGroup, Selector, resolve_groups, selectors_by
from finetune.groups.weight_kinds import is_normalization
from finetune.recipe.error_places import located_at
from finetune.recipe.groups import GroupSpec, Strategy
from finetune.recipe.loader import place_of
from finetune.recipe.schema import Recipe

_BY_GROUP = ("batch_norm", "dropout")  # keys of a strategy that may hold a value for each group
NORMALIZATION = "-normalization"  # ends the name of a group that `with_normalization` adds


@located_at("groups")
def group_specs(recipe: Recipe, tree: LayerTree) -> tuple[GroupSpec, ...]:
    """Returns the groups of a recipe as a list, a strategy written out for this model.

    Raises:
        RecipeError: The rates of a strategy are too small for this number of groups.
    """
    if not isinstance(recipe.groups, Strategy):
        return recipe.groups
    try:
        return _written_out(recipe.groups, tree)
    except GroupError as error:
        raise RecipeError(f"{place_of_group(recipe, '')}: {error}") from error


def _written_out(strategy: Strategy, tree: LayerTree) -> tuple[GroupSpec, ...]:
    selectors = selectors_by(tree, strategy.by)
    if strategy.spread:
        low, high = strategy.spread
        rates = spread_rates(low, high, len(selectors))
    else:
        assert strategy.peak is not None
        ratio = {"decay": strategy.decay, "layer_decay": strategy.layer_decay}
        rates = discriminative_rates(strategy.peak, len(selectors), **ratio)
    # Every key that a strategy shares with a group holds for each group. The schedule is different: it is a shape, to
    # which the rate of the group is added.
    shared = {name: value for name, value in strategy if name in GroupSpec.model_fields}
    schedule = shared.pop("learning_rate")
    by_group = {name: value for name, value in shared.items() if isinstance(value, dict) and name in _BY_GROUP}
    names = [selector.name for selector in selectors]
    for key, modes in by_group.items():
        if unknown := [name for name in modes if name not in names]:
            raise GroupError(
                f"`{key}` names groups that the strategy does not make: {quote(unknown)}. It makes {quote(names)}."
                f"{did_you_mean(unknown[0], names)}"
            )
    return tuple(
        GroupSpec(
            name=selector.name,
            prefixes=selector.prefixes,
            learning_rate=schedule.with_rate(rate) if schedule else rate,
            **{**shared, **{key: modes.get(selector.name) for key, modes in by_group.items()}},
        )
        for selector, rate in zip(selectors, rates, strict=True)
    )


@located_at("groups")
def with_normalization(recipe: Recipe, specs: Sequence[GroupSpec], tree: LayerTree) -> tuple[GroupSpec, ...]:
    """Moves normalization parameters out of frozen groups, where `train.always_train: normalization` asks for that.

    They become groups, `<group>-normalization`, in front of the frozen group, because the first match wins. Such a
    group is trained like the next trained group behind it, or like the last trained group where there is none behind.

    Args:
        recipe: The recipe.
        specs: What `group_specs` returned.
        tree: The layer tree of the model.
    """
    if recipe.train.always_train is None:
        return tuple(specs)
    extended: list[GroupSpec] = []
    for place, (spec, group) in enumerate(zip(specs, build_groups(recipe, specs, tree), strict=True)):
        names = [leaf.name for leaf in group.leaves if leaf.trainable and is_normalization(leaf)]
        if spec.frozen and names:
            trained = next(other for other in (*specs[place:], *reversed(specs)) if not other.frozen)
            # The new group is the trained group with other selectors: any other key of a group comes along.
            selects_only = {field.name: field.default for field in fields(Selector) if field.name != "name"}
            selects_only |= {"name": f"{spec.name}{NORMALIZATION}", "regex": tuple(map(re.escape, names))}
            extended.append(trained.model_copy(update={**selects_only, "batch_norm": None, "dropout": None}))
            if len(names) == len(group.trainable):
                continue  # the frozen group has no other weights left
        extended.append(spec)
    return tuple(extended)


@located_at("groups")
def build_groups(recipe: Recipe, specs: Sequence[GroupSpec], tree: LayerTree) -> tuple[LayerGroup, ...]:
    """Finds the weights of every group.

    Args:
        recipe: The recipe, for the places in messages.
        specs: The groups, input to output.
        tree: The layer tree of the model.

    Returns:
        A layer group for each spec, in their order. Together they hold every weight of the model once.

    Raises:
        GroupError: A selector matches nothing, or a trainable weight is in no group. Each line begins with the place
            in the recipe.
    """
    names = [field.name for field in fields(Selector)]
    selectors = [Selector(**{name: getattr(spec, name) for name in names}) for spec in specs]
    try:
        return resolve_groups(tree, selectors)
    except GroupError as error:
        raise GroupError("\n".join(_with_place(recipe, line) for line in str(error).splitlines())) from None


def with_frozen(specs: Sequence[GroupSpec], groups: Sequence[LayerGroup]) -> tuple[GroupSpec, ...]:
    """Marks the specs of groups in which nothing is trainable as frozen, so that strategies of phases leave them out.

    Args:
        specs: The groups as the recipe means them.
        groups: What they were resolved to, and groups that were added.
    """
    frozen = {group.name for group in groups if group.frozen}
    return tuple(spec.model_copy(update={"frozen": True}) if spec.name in frozen else spec for spec in specs)


def place_of_group(recipe: Recipe, name: str) -> str:
    """Returns what a message about a group begins with, such as "recipes/pets.yaml:14:5: group `body`".

    Args:
        recipe: The recipe.
        name: Name of the group. For a group that the recipe does not list, the message is about `groups` as a whole.
    """
    names = _listed_names(recipe)
    listed = name if name in names else name.removesuffix(NORMALIZATION)
    if listed in names:
        return f"{place_of(recipe, 'groups', names.index(listed))}: group `{listed}`"
    return f"{place_of(recipe, 'groups')}: `groups`"


def _listed_names(recipe: Recipe) -> list[str]:
    return [] if isinstance(recipe.groups, Strategy) else [spec.name for spec in recipe.groups]


def _with_place(recipe: Recipe, line: str) -> str:
    """Puts the place of the selector at fault in front of a line of the error of `resolve_groups`."""
    if line.startswith("... and "):
        return line
    names = _listed_names(recipe)
    about = re.match(r"group `(?P<group>[^`]+)`(?:[^`]*`(?P<selector>\w+): )?", line)
    if not about or about["group"] not in names:
        return f"{place_of(recipe, 'groups')}: {line}"
    return f"{place_of(recipe, 'groups', names.index(about['group']), about['selector'] or 'name')}: {line}"
