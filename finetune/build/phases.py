"""From the phases of a recipe to those of training: names and lengths are known here, strategies are written out."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from pydantic_core import PydanticCustomError

from finetune.build.data import RunLength
from finetune.build.groups import GroupPlan, build_groups
from finetune.build.rates import build_rate
from finetune.data.arrays import Examples
from finetune.errors import GroupError, RecipeError
from finetune.groups.layer_tree import LayerTree, is_normalization
from finetune.groups.selectors import LayerGroup, Selector
from finetune.recipe import phases as written
from finetune.recipe.groups import GroupSpec
from finetune.recipe.loader import place_of
from finetune.recipe.phase_strategies import written_out
from finetune.recipe.phases import check_names, disagreement
from finetune.recipe.rate_edits import peak_of
from finetune.recipe.schema import Recipe
from finetune.training.phases.endings import Plateau, Until
from finetune.training.phases.phase import ALL, Phase, check_phases

_OWN = "-normalization"  # ends the name of a group made of the normalization parameters of a frozen one


def with_normalization(recipe: Recipe, plans: Sequence[GroupPlan], tree: LayerTree) -> list[GroupPlan]:
    """Takes the normalization parameters out of groups that are frozen for good, if they shall always train.

    They become groups of their own, `<group>-normalization`, with the optimizer and the rate of the next group that is
    trained.
    """
    if recipe.train.always_train is None:
        return list(plans)
    found: list[GroupPlan] = []
    for place, (plan, group) in enumerate(zip(plans, build_groups(recipe, plans, tree), strict=True)):
        norms = [leaf.name for leaf in group.leaves if leaf.trainable and is_normalization(leaf)]
        if group.frozen and norms:
            model = next(one for one in (*plans[place:], *reversed(plans)) if one.optimizer)
            own = Selector(f"{group.name}{_OWN}", regex=tuple(re.escape(name) for name in norms))
            found.append(replace(model, selector=own, about=plan.about))
            if len(norms) == len(group.trainable):
                continue  # nothing else is in it
        found.append(plan)
    return found


def written_phases(recipe: Recipe, plans: Sequence[GroupPlan]) -> tuple[written.PhaseSpec, ...]:
    """Returns the phases of a recipe as a list, strategies written out; nothing for a recipe without.

    Raises:
        RecipeError: They do not fit the groups that a strategy of groups has made, or the length of the run.
    """
    if recipe.phases is None:
        return ()
    own = [plan for plan in plans if not plan.selector.name.endswith(_OWN)]
    peaks = {plan.selector.name: peak_of(plan.learning_rate) for plan in own if plan.optimizer}
    try:
        phases = written_out(recipe.phases, peaks, recipe.train.epochs)
        if isinstance(recipe.phases, tuple):
            check_names(phases, {plan.selector.name: plan.optimizer is None for plan in own})
        if wrong := disagreement(phases, recipe.train.epochs):
            raise wrong
    except PydanticCustomError as error:
        context = error.context or {}
        keys = (*context["at"],) if context["at"][:1] == ("train",) else ("phases", *context["at"])
        path = ".".join(map(str, keys))
        raise RecipeError(f"{place_of(recipe, *keys)}: `{path}` {context['predicate'].rstrip('.')}.") from None
    return phases


def phased_length(phases: Sequence[written.PhaseSpec], length: RunLength) -> RunLength:
    """Returns the length of a run of these phases, if there are any."""
    if not phases:
        return length
    each = [phase_length(phase, length) for phase in phases]
    return RunLength(sum(one.epochs for one in each), length.steps_per_epoch, sum(one.steps for one in each))


def phase_length(phase: written.PhaseSpec, length: RunLength) -> RunLength:
    """Returns the length of a phase; a phase given in steps cuts its last epoch short."""
    if phase.epochs is not None:
        return RunLength(phase.epochs, length.steps_per_epoch)
    assert phase.steps
    return RunLength(ceil(phase.steps / length.steps_per_epoch), length.steps_per_epoch, phase.steps)


def build_phases(
    recipe: Recipe,
    phases: Sequence[written.PhaseSpec],
    plans: Sequence[GroupPlan],
    groups: Sequence[LayerGroup],
    length: RunLength,
    examples: Examples,
) -> tuple[Phase, ...]:
    """Makes the phases that training takes; one phase of the whole run where only groups ask for what phases do.

    Args:
        recipe: The recipe.
        phases: What `written_phases` returned.
        plans: The plans of all groups.
        groups: The groups made of them.
        length: Length of the whole run.
        examples: What it is trained on.

    Raises:
        RecipeError: A schedule does not fit, or a phase watches a metric that is not measured.
    """
    builder = _Builder(recipe, plans, groups, length)
    if not phases:
        return (builder.phase(written.PhaseSpec(train=ALL, epochs=length.epochs)),) if _asks(recipe) else ()
    made = []
    for index, phase in enumerate(phases):
        place = place_of(recipe, "phases", index)
        _check_watched(recipe, phase, examples, place)
        try:
            made.append(builder.phase(phase))
            check_phases(groups, made[-1:], every=False)
        except GroupError as error:
            raise RecipeError(f"{place}: `phases.{index}`: {str(error).removeprefix('phase 1: ')}") from error
    return tuple(made)


def _asks(recipe: Recipe) -> bool:
    groups = recipe.groups if isinstance(recipe.groups, tuple) else ()
    return recipe.train.always_train is not None or any(group.batch_norm or group.dropout for group in groups)


def _check_watched(recipe: Recipe, phase: written.PhaseSpec, examples: Examples, place: str) -> None:
    validated = examples.x_validation is not None
    for name in ("until", "reduce_on_plateau"):
        watcher = getattr(phase, name)
        if watcher and watcher.monitor.startswith("val_") and not validated:
            raise RecipeError(
                f"{place}: `{name}` watches `{watcher.monitor}`, and there are no validation examples. Set "
                "`train.validation_fraction`, or watch `loss`."
            )


class _Builder:
    """Makes phases; equal schedules become one object, so that equal phases share their compiled function."""

    def __init__(self, recipe: Recipe, plans: Sequence[GroupPlan], groups: Sequence[LayerGroup], length: RunLength):
        self.recipe, self.groups, self.length = recipe, groups, length
        self.plans = {plan.selector.name: plan for plan in plans}
        listed = recipe.groups if isinstance(recipe.groups, tuple) else ()
        self.listed: dict[str, GroupSpec] = {group.name: group for group in listed}
        self.always = [name for name in self.plans if name.endswith(_OWN)]
        self.schedules: dict[Any, Any] = {}

    def phase(self, phase: written.PhaseSpec) -> Phase:
        own = phase_length(phase, self.length)
        train = phase.train if phase.train == ALL else (*phase.train, *self.always)
        names = Phase(train=train).names(self.groups)
        return Phase(
            train=train,
            epochs=phase.epochs,
            steps=phase.steps,
            rates={} if phase.auto_rgn else dict(self.rates(phase, names, own)),
            clock=phase.clock,
            warmup_steps=own.in_steps(*phase.warmup) if phase.warmup else 0,
            batch_norm=dict(self.modes(phase, names)),
            dropout_groups=[name for name, group in self.listed.items() if self.drops(group)],
            always_train_normalization=self.recipe.train.always_train is not None,
            auto_rgn=phase.auto_rgn,
            until=Until(**phase.until.model_dump()) if phase.until else None,
            reduce_on_plateau=Plateau(**phase.reduce_on_plateau.model_dump()) if phase.reduce_on_plateau else None,
        )

    def drops(self, group: GroupSpec) -> bool:
        """Off by default in phases; a recipe without phases is left as it always was unless it asks."""
        return group.dropout == "on" or (self.recipe.phases is None and group.dropout is None)

    def rates(self, phase: written.PhaseSpec, names: Sequence[str], own: RunLength) -> Iterator[tuple[str, Any]]:
        for name in names:
            if name in phase.rates:
                yield name, self.rate(phase.rates[name], own if phase.clock == "phase" else self.length)
            elif phase.clock == "phase" and not isinstance(self.plans[name].learning_rate, int | float):
                yield name, self.rate(self.plans[name].learning_rate, own)

    def rate(self, rate: Any, length: RunLength) -> Any:
        if isinstance(rate, int | float):
            return float(rate)
        key = (repr(rate), length.steps)
        if key not in self.schedules:
            self.schedules[key] = build_rate(rate, length)
        return self.schedules[key]

    def modes(self, phase: written.PhaseSpec, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        given = phase.batch_norm
        for group in self.groups:
            of_group = self.listed[group.name].batch_norm if group.name in self.listed else None
            if isinstance(given, dict) and group.name in given:
                yield group.name, given[group.name]
            elif isinstance(given, str) and group.name in names:
                yield group.name, given
            elif of_group and (group.name in names or of_group in ("statistics", "freeze")):
                yield group.name, of_group
