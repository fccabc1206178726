"""From the `phases` of a recipe to the phases of training: strategies are written out, lengths become steps.

A recipe without `phases` has one phase, in which all groups are trained. So there is one way to train.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from math import ceil
from typing import Any

from pydantic_core import PydanticCustomError

from finetune.build.data import RunLength
from finetune.build.rates import build_rate
from finetune.data.examples import Examples
from finetune.errors import GroupError, RecipeError
from finetune.groups.selectors import LayerGroup
from finetune.recipe.error_places import located_at
from finetune.recipe.groups import GroupSpec
from finetune.recipe.loader import place_of
from finetune.recipe.phase_spec import ALL, PhaseSpec
from finetune.recipe.phase_strategies import written_out
from finetune.recipe.phases import check_names, disagreement
from finetune.recipe.rate_edits import peak_of
from finetune.recipe.schema import Recipe
from finetune.training.phases.phase import Phase, check_phases
from finetune.training.phases.plateau import Plateau
from finetune.training.phases.until import Until


@located_at("phases")
def phase_specs(recipe: Recipe, specs: Sequence[GroupSpec]) -> tuple[PhaseSpec, ...]:
    """Returns the phases of a recipe as a list, a strategy written out for these groups.

    Args:
        recipe: The recipe.
        specs: The groups that `group_specs` returned: those that phases may name.

    Returns:
        At least one phase.

    Raises:
        RecipeError: The phases do not fit the groups that a strategy of groups makes, or the length of the run.
    """
    if recipe.phases is None:
        train = recipe.train
        ends = {"until": train.until, "reduce_on_plateau": train.reduce_on_plateau}
        return (PhaseSpec(train=ALL, epochs=train.epochs, **ends),)
    # The schema has checked all this for groups that it could see. The groups of a strategy have names only now.
    peaks = {spec.name: peak_of(spec.learning_rate) for spec in specs if not spec.frozen}
    try:
        phases = written_out(recipe.phases, peaks, recipe.train.epochs)
        if isinstance(recipe.phases, tuple):
            check_names(phases, {spec.name: bool(spec.frozen) for spec in specs})
        if wrong := disagreement(phases, recipe.train.epochs):
            raise wrong
    except PydanticCustomError as error:
        context = error.context or {}
        keys = (*context["at"],) if context["at"][:1] == ("train",) else ("phases", *context["at"])
        path = ".".join(map(str, keys))  # as the messages of the schema have it
        raise RecipeError(f"{place_of(recipe, *keys)}: `{path}` {context['predicate'].rstrip('.')}.") from None
    return phases


def shows_phases(recipe: Recipe) -> bool:
    """Whether plan and result have rows for phases: the recipe has phases, or a group asks for what phases do."""
    groups = recipe.groups if isinstance(recipe.groups, tuple) else (recipe.groups,)
    asks = recipe.train.always_train is not None or any(spec.batch_norm or spec.dropout for spec in groups)
    return recipe.phases is not None or asks


def phase_length(phase: PhaseSpec, steps_per_epoch: int) -> RunLength:
    """Returns the length of a phase; the last epoch of a phase whose length is in steps may be cut short."""
    if phase.epochs is not None:
        return RunLength(phase.epochs, steps_per_epoch)
    assert phase.steps
    return RunLength(ceil(phase.steps / steps_per_epoch), steps_per_epoch, phase.steps)


def total_length(lengths: Sequence[RunLength]) -> RunLength:
    """Returns the length of the run that is made of these phases, at least one."""
    epochs, steps = sum(length.epochs for length in lengths), sum(length.steps for length in lengths)
    return RunLength(epochs, lengths[0].steps_per_epoch, steps)


@located_at("phases")
def build_phases(
    recipe: Recipe,
    phases: Sequence[PhaseSpec],
    specs: Sequence[GroupSpec],
    groups: Sequence[LayerGroup],
    length: RunLength,
    examples: Examples,
) -> tuple[Phase, ...]:
    """Makes the phases that training takes.

    Args:
        recipe: The recipe.
        phases: What `phase_specs` returned.
        specs: All groups, those included that `with_normalization` added.
        groups: The layer groups made of them.
        length: Length of the whole run.
        examples: The examples; they say whether there are validation metrics to monitor.

    Raises:
        RecipeError: A schedule does not fit into its phase, or a phase monitors a metric that is not computed.
    """
    _check_validation(recipe, examples)
    builder = _Builder(recipe, specs, groups, length)
    built: list[Phase] = []
    for index, phase in enumerate(phases):
        place = place_of(recipe, *(("phases", index) if recipe.phases else ("train",)))
        _check_monitored(phase, examples, place)
        try:
            built.append(builder.phase(phase))
            # Not `every`: a recipe may leave a group untrained in all phases; the plan then says so.
            check_phases(groups, built[-1:], every=False)
        except GroupError as error:
            raise RecipeError(f"{place}: `phases.{index}`: {str(error).removeprefix('phase 1: ')}") from error
    return tuple(built)


def _check_validation(recipe: Recipe, examples: Examples) -> None:
    """Checks that there are validation rows where something of the whole run is decided by them."""
    train = recipe.train
    monitor = train.until.monitor if train.until else "val_loss"
    wrong = {
        "evaluate_every_steps": train.evaluate_every_steps and "evaluates the validation rows",
        "average": train.average and "goes by the validation rows",
        "learning_rate": train.learning_rate == "search" and "(`search`) goes by the validation rows",
        "keep": train.keep == "best" and monitor.startswith("val_") and f"goes by `{monitor}`",
    }
    for key, does in wrong.items():
        if does and examples.validation is None:
            raise RecipeError(
                f"{place_of(recipe, 'train', key)}: `train.{key}` {does}, but there are no validation examples. Set "
                "`train.validation_fraction` or `data.split.validation`, or remove it."
            )


def _check_monitored(phase: PhaseSpec, examples: Examples, place: str) -> None:
    for name in ("until", "reduce_on_plateau"):
        part = getattr(phase, name)
        if part and part.monitor.startswith("val_") and examples.validation is None:
            raise RecipeError(
                f"{place}: `{name}` monitors `{part.monitor}`, but there are no validation examples. Set "
                "`train.validation_fraction`, or monitor `loss`."
            )


class _Builder:
    """Makes phases. Equal schedules become the same object, so that equal phases share a compiled function.

    Training keeps a compiled function for each set of schedules, which it tells apart by identity.
    """

    def __init__(self, recipe: Recipe, specs: Sequence[GroupSpec], groups: Sequence[LayerGroup], length: RunLength):
        self.recipe, self.groups, self.length = recipe, groups, length
        self.specs = {spec.name: spec for spec in specs}
        # What `with_normalization` added is trained in every phase, though no phase names it.
        listed = {spec.name for spec in (recipe.groups if isinstance(recipe.groups, tuple) else specs)}
        self.always_trained = [name for name in self.specs if name not in listed]
        self.schedules: dict[Any, Any] = {}

    def phase(self, phase: PhaseSpec) -> Phase:
        """Makes one phase. Keys that need no translation are passed on by name, so that none can be forgotten."""
        length = phase_length(phase, self.length.steps_per_epoch)  # what a `_fraction` of the phase is a fraction of
        train = phase.train if phase.train == ALL else (*phase.train, *self.always_trained)
        names = Phase(train=train).names(self.groups)
        passed_on = {f.name: getattr(phase, f.name) for f in fields(Phase) if f.name in PhaseSpec.model_fields}
        translated: dict[str, Any] = {
            "train": train,
            # Measured rates replace all others, so schedules for the phase would be built in vain.
            "rates": {} if phase.auto_rgn else dict(self.rates(phase, names, length)),
            "warmup_steps": length.in_steps(*phase.warmup) if phase.warmup else 0,
            "batch_norm": dict(self.batch_norm_modes(phase, names)),
            # Equal field by field; a field that is only in one of the two is an error.
            "until": Until(**dict(phase.until)) if phase.until else None,
            "reduce_on_plateau": Plateau(**dict(phase.reduce_on_plateau)) if phase.reduce_on_plateau else None,
            "dropout_groups": [name for name, spec in self.specs.items() if self.keeps_dropout(spec)],
            "always_train_normalization": self.recipe.train.always_train is not None,
        }
        return Phase(**{**passed_on, **translated})

    def keeps_dropout(self, spec: GroupSpec) -> bool:
        """Whether dropout in a frozen group stays on: off by default in phases, on in a recipe without phases."""
        return spec.dropout == "on" or (self.recipe.phases is None and spec.dropout is None)

    def rates(self, phase: PhaseSpec, names: Sequence[str], length: RunLength) -> Iterator[tuple[str, Any]]:
        """Yields the rates that differ from what the group's optimizer was made with.

        Those are the rates in the phase, and with `clock: phase` also a group's own schedule: its lengths are then
        counted in the phase.
        """
        for name in names:
            if name in phase.rates:
                yield name, self.rate(phase.rates[name], length if phase.clock == "phase" else self.length)
            elif phase.clock == "phase" and not isinstance(self.specs[name].learning_rate, int | float):
                yield name, self.rate(self.specs[name].learning_rate, length)

    def rate(self, rate: Any, length: RunLength) -> Any:
        """Returns a number, or a schedule: the same object for equal schedules of equal lengths."""
        if isinstance(rate, int | float):
            return float(rate)
        key = (repr(rate), length.steps)  # `repr` shows every field of a spec; specs with lists cannot be hashed
        if key not in self.schedules:
            self.schedules[key] = build_rate(rate, length)
        return self.schedules[key]

    def batch_norm_modes(self, phase: PhaseSpec, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yields the modes of BatchNormalization that are written.

        A mode for this group in the phase comes first, then the phase's mode for all trained groups, then the mode in
        the group itself, which holds in a phase that freezes the group only where it makes sense there.
        """
        modes = phase.batch_norm
        for group in self.groups:
            of_group = self.specs[group.name].batch_norm
            if isinstance(modes, dict) and group.name in modes:
                yield group.name, modes[group.name]
            elif isinstance(modes, str) and group.name in names:
                yield group.name, modes
            elif of_group and (group.name in names or of_group in ("statistics", "freeze")):
                yield group.name, of_group
