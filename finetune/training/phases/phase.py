"""One phase of training as data, and whether it fits the layer groups."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import keras

from finetune.errors import GroupError, did_you_mean, quote
from finetune.groups.batch_norm import BATCH_NORM_MODES, TRAINS_GAMMA_AND_BETA
from finetune.groups.layer_tree import Leaf
from finetune.groups.rate_spacing import check_rate
from finetune.groups.selectors import LayerGroup
from finetune.sequences import one_or_more
from finetune.training.freezing import PhaseState, phase_state
from finetune.training.phases.plateau import Plateau
from finetune.training.phases.until import Until

ALL = "all"
CLOCKS = ("run", "phase")


@dataclass(frozen=True)
class Phase:
    """A stretch of training with a fixed set of trained layer groups.

    Attributes:
        train: Names of the groups that are trained, or of a single one, or `all`.
        epochs: Length in epochs, >= 1. Give either this or `steps`.
        steps: Length in batches, >= 1. The epoch in which they end is cut short.
        rates: Learning rates for some groups during this phase, numbers or schedules; the other groups use the rates
            that their optimizers were made with.
        clock: What the steps of a schedule are counted from: the start of the `run` or of the `phase`.
        warmup_steps: In the first so many steps, the rates of groups that the phase before did not train rise from 0.
        batch_norm: Mode of BatchNormalization in some groups: `train`, `freeze`, `affine` (gamma and beta train on
            fixed statistics) or `statistics` (only the moving statistics are updated). By default `train` in a group
            that is trained and `freeze` in another.
        dropout_groups: Groups, or a single one, that keep their dropout while they are frozen; by default none does.
        always_train_normalization: Whether gamma and beta of normalization layers also train in frozen groups, with
            the optimizer and the rate of their group.
        auto_rgn: A learning rate, > 0, that replaces `rates`: before every epoch each group gets this rate times its
            relative gradient norm divided by the largest one.
        until: Ends the phase early.
        reduce_on_plateau: Lowers all rates by the same factor; the next phase begins without that.
    """

    train: Sequence[str] | str = ALL
    epochs: int | None = None
    steps: int | None = None
    rates: Mapping[str, Any] = field(default_factory=dict)
    clock: str = "run"
    warmup_steps: int = 0
    batch_norm: Mapping[str, str] = field(default_factory=dict)
    dropout_groups: Sequence[str] = ()
    always_train_normalization: bool = False
    auto_rgn: float | None = None
    until: Until | None = None
    reduce_on_plateau: Plateau | None = None

    def __post_init__(self) -> None:
        # A single name stands for a list of one: as a sequence, `head` would be four letters.
        if self.train != ALL:
            object.__setattr__(self, "train", one_or_more(self.train))
        object.__setattr__(self, "dropout_groups", one_or_more(self.dropout_groups))

    @property
    def sets_rates(self) -> bool:
        """Whether the rates of this phase can differ from those that the optimizers were made with."""
        # Only then rates are written at all: a run that asks for none of this keeps the bits of a plain `fit`.
        return bool(
            self.rates or self.auto_rgn or self.warmup_steps or self.reduce_on_plateau or self.clock != CLOCKS[0]
        )

    def names(self, groups: Sequence[LayerGroup]) -> tuple[str, ...]:
        """Returns the names of the groups that it trains, input to output."""
        # In the order of the groups, whatever the order in `train`: tables, slots and reports go from input to output.
        return tuple(g.name for g in groups if not g.frozen and (self.train == ALL or g.name in self.train))


def state_of(model: keras.Model, groups: Sequence[LayerGroup], phase: Phase) -> PhaseState:
    """Works out what happens to every weight in a phase.

    Args:
        model: A built model.
        groups: All of its layer groups.
        phase: The phase; it must fit the groups.
    """
    # The rules are in `freezing.py`, for phases and for a plain `freeze` alike.
    return phase_state(
        model,
        groups,
        phase.names(groups),
        batch_norm=phase.batch_norm,
        always_train_normalization=phase.always_train_normalization,
        dropout_groups=phase.dropout_groups,
    )


def frozen_in_all(model: keras.Model, groups: Sequence[LayerGroup], phases: Sequence[Phase]) -> tuple[Leaf, ...]:
    """Returns the weights that a whole run must leave bit-identical.

    These are the weights of the groups that are frozen for good, without the moving statistics that a phase updates
    there, and in the other groups what other code froze.

    Args:
        model: A built model.
        groups: All of its layer groups.
        phases: The phases of the run, at least one.
    """
    each = [{id(leaf.variable) for leaf in state_of(model, groups, phase).frozen} for phase in phases]
    # Frozen in every phase: what a single phase trains or updates may change in the run.
    always = set.intersection(*each)
    leaves = [leaf for group in groups for leaf in group.leaves if group.frozen or leaf.frozen_by]
    return tuple(leaf for leaf in leaves if id(leaf.variable) in always)


def check_phases(groups: Sequence[LayerGroup], phases: Sequence[Phase], *, every: bool = True) -> None:
    """Checks that phases fit the layer groups.

    Args:
        groups: All layer groups.
        phases: The phases.
        every: Whether every group that is not frozen for good must be trained in at least one of them.

    Raises:
        GroupError: There are no phases, a phase names a group that does not exist or is frozen for good, its length is
            missing or given twice, a rate, a length or a setting is not possible, or a group is never trained. Up to
            five problems are reported.
    """
    problems = [f"phase {n}: {problem}" for n, phase in enumerate(phases, 1) for problem in _problems(groups, phase)]
    if not phases:
        problems = ["Training needs at least one phase. Received none. Pass `[Phase(epochs=1)]`, for example."]
    trained = {name for phase in phases for name in phase.names(groups)}
    idle = [group.name for group in groups if not group.frozen and group.name not in trained]
    # Not beside other problems: a misspelled name makes its group idle, and one message says enough.
    if idle and every and not problems:
        problems = [f"no phase trains {quote(idle)}. Add a phase that does, or set `frozen: true` in the group."]
    if problems:
        # All problems at once, so that a list is corrected in one go; more than five are one mistake made often.
        raise GroupError("\n".join(problems[:5]))


def _problems(groups: Sequence[LayerGroup], phase: Phase) -> Iterator[str]:
    for name in ("rates", "batch_norm"):
        if not isinstance(getattr(phase, name), Mapping):
            yield f"`{name}` maps names of groups to values. Received `{getattr(phase, name)!r}`. Write a dictionary."
            return
    known = [group.name for group in groups]
    frozen = [group.name for group in groups if group.frozen]
    named = [] if phase.train == ALL else list(phase.train)
    yield from name_problems(named, known, frozen, "`train`")
    yield from name_problems(list(phase.dropout_groups), known, [], "`dropout_groups`")
    yield from name_problems(list(phase.rates), known, frozen, "`rates`")
    yield from name_problems(list(phase.batch_norm), known, [], "`batch_norm`")
    yield from _number_problems(phase)
    if phase.train != ALL and not named:
        yield "`train` names no group. Name at least one, or write `all`."
    if (phase.epochs is None) == (phase.steps is None):
        yield (
            "the length is given either in `epochs` or in `steps`. Received `epochs: "
            f"{phase.epochs}` and `steps: {phase.steps}`. Give one of the two."
        )
    if phase.clock not in CLOCKS:
        yield f"`clock` must be one of {quote(CLOCKS)}. Received `{phase.clock}`.{did_you_mean(phase.clock, CLOCKS)}"
    for name, mode in phase.batch_norm.items():
        # gamma and beta have a rate only if their group has one in this phase, or all normalization trains.
        may_learn = name in phase.names(groups) or (phase.always_train_normalization and name not in frozen)
        if mode not in BATCH_NORM_MODES:
            yield (
                f"`batch_norm` of `{name}` must be one of {quote(BATCH_NORM_MODES)}. Received `{mode}`."
                f"{did_you_mean(mode, list(BATCH_NORM_MODES))}"
            )
        elif mode in TRAINS_GAMMA_AND_BETA and name in known and not may_learn:
            yield (
                f"`batch_norm: {mode}` trains gamma and beta, and `{name}` is frozen in this phase. Use `statistics` "
                "or `freeze`, or train the group."
            )


def _number_problems(phase: Phase) -> Iterator[str]:
    """Yields a sentence for every rate that is none, and for every length that is no whole number in its bounds."""
    rates = {f"`rates` of `{name}`": rate for name, rate in phase.rates.items() if not callable(rate)}
    for what, rate in (rates | ({} if phase.auto_rgn is None else {"auto_rgn": phase.auto_rgn})).items():
        # The same check, and the same words, as for the rates of an optimizer.
        try:
            check_rate(rate, what)
        except GroupError as error:
            yield str(error)
    for name, least in (("epochs", 1), ("steps", 1), ("warmup_steps", 0)):
        value = getattr(phase, name)
        # `True` is an `int` in Python, and no length.
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (is_whole and int(value) >= least):
            yield f"`{name}` must be a whole number >= {least}. Received `{value!r}`."


def name_problems(names: Sequence[str], known: Sequence[str], frozen: Sequence[str], where: str) -> Iterator[str]:
    """Yields a sentence for every name that does not belong to a group, or to a group that is frozen for good.

    Args:
        names: The names to check.
        known: Names of all groups.
        frozen: Names of the groups that are frozen for good.
        where: What holds the names, for the message, such as "`train`".
    """
    for name in names:
        if name not in known:
            yield f"{where} names `{name}`, which is not a group. Groups are {quote(known)}.{did_you_mean(name, known)}"
        elif name in frozen:
            yield (
                f"{where} names `{name}`, which is frozen in all phases. Write `frozen: false` in the group and give "
                "it an optimizer, or remove the name here."
            )
