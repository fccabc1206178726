"""One phase of training as data, and whether it fits the layer groups."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from finetune.errors import GroupError, did_you_mean, quote
from finetune.groups.selectors import LayerGroup
from finetune.training.phases.endings import Plateau, Until
from finetune.training.phases.state import BATCH_NORM_MODES, PhaseState, phase_state

ALL = "all"
CLOCKS = ("run", "phase")


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        train: Names of the groups that are trained, or `all`.
        epochs: How long; exactly one of this and `steps`.
        steps: How long, in batches. The epoch in which they end is cut short.
        rates: A number or a schedule for some groups, in place of what their optimizers were made with.
        clock: What schedules count: `run`, all steps made so far, or `phase`, those since the phase's start.
        warmup_steps: Steps in which the rates of groups that were not trained just before rise from 0.
        batch_norm: One of `BATCH_NORM_MODES` for some groups; by default `train` in a trained group, where statistics
            move, and `freeze` in another, where they stand.
        dropping: Groups that keep their dropout while they are frozen; by default none does.
        always_train_normalization: Whether gamma and beta of normalization layers train in frozen groups, too, with
            the optimizer and the rate of their group.
        auto_rgn: Before every epoch the rates become this one times the relative gradient norm of each group, the
            largest of which counts as 1; they take the place of `rates`.
        until: Ends the phase early.
        reduce_on_plateau: Lowers all rates in proportion, until the phase ends.
    """

    train: Sequence[str] | str = ALL
    epochs: int | None = None
    steps: int | None = None
    rates: Mapping[str, Any] = field(default_factory=dict)
    clock: str = "run"
    warmup_steps: int = 0
    batch_norm: Mapping[str, str] = field(default_factory=dict)
    dropping: Sequence[str] = ()
    always_train_normalization: bool = False
    auto_rgn: float | None = None
    until: Until | None = None
    reduce_on_plateau: Plateau | None = None

    @property
    def sets_rates(self) -> bool:
        """Whether rates are another thing in this phase than what the optimizers were made with."""
        return bool(
            self.rates or self.auto_rgn or self.warmup_steps or self.reduce_on_plateau or self.clock != CLOCKS[0]
        )

    def names(self, groups: Sequence[LayerGroup]) -> tuple[str, ...]:
        """The groups it trains, input to output."""
        return tuple(g.name for g in groups if not g.frozen and (self.train == ALL or g.name in self.train))


def state_of(model: keras.Model, groups: Sequence[LayerGroup], phase: Phase) -> PhaseState:
    """Works out what becomes of every weight in a phase."""
    return phase_state(
        model,
        groups,
        phase.names(groups),
        batch_norm=phase.batch_norm,
        always_train_normalization=phase.always_train_normalization,
        dropping=phase.dropping,
    )


def check_phases(groups: Sequence[LayerGroup], phases: Sequence[Phase], *, every: bool = True) -> None:
    """Holds that the phases and the groups fit; with `every`, that every group is trained in one.

    Raises:
        GroupError: A phase names a group that is not there or frozen for good, has no length or two, a setting is none
            of its values, or a group is never trained.
    """
    problems = [f"phase {n}: {problem}" for n, phase in enumerate(phases, 1) for problem in _problems(groups, phase)]
    if not phases:
        problems = ["Training has one phase at least. Received none. Give `[Phase(epochs=1)]`, for example."]
    trained = {name for phase in phases for name in phase.names(groups)}
    idle = [group.name for group in groups if not group.frozen and group.name not in trained]
    if idle and every and not problems:
        problems = [f"no phase trains {quote(idle)}. Add one that does, or say `frozen: true` in the group"]
    if problems:
        raise GroupError("\n".join(problems[:5]))


def _problems(groups: Sequence[LayerGroup], phase: Phase) -> Iterator[str]:
    known = [group.name for group in groups]
    frozen = [group.name for group in groups if group.frozen]
    named = [] if phase.train == ALL else [phase.train] if isinstance(phase.train, str) else list(phase.train)
    yield from name_problems(named, known, frozen, "`train`")
    yield from name_problems(list(phase.rates), known, frozen, "`rates`")
    yield from name_problems(list(phase.batch_norm), known, [], "`batch_norm`")
    if phase.train != ALL and not named:
        yield "`train` names no group. Name one at least, or say `all`."
    if (phase.epochs is None) == (phase.steps is None):
        yield f"has either `epochs` or `steps`. Received `{phase.epochs}` and `{phase.steps}`. Give one of them."
    if phase.clock not in CLOCKS:
        yield f"`clock` is one of {quote(CLOCKS)}. Received `{phase.clock}`.{did_you_mean(phase.clock, CLOCKS)}"
    for name, mode in phase.batch_norm.items():
        may_learn = name in phase.names(groups) or (phase.always_train_normalization and name not in frozen)
        if mode not in BATCH_NORM_MODES:
            yield (
                f"`batch_norm` of `{name}` is one of {quote(BATCH_NORM_MODES)}. Received `{mode}`."
                f"{did_you_mean(mode, list(BATCH_NORM_MODES))}"
            )
        elif mode in ("train", "affine") and not may_learn:
            yield (
                f"`batch_norm: {mode}` trains gamma and beta, and `{name}` is frozen in this phase. Say `statistics` "
                "or `freeze`, or train the group."
            )


def name_problems(names: Sequence[str], known: Sequence[str], frozen: Sequence[str], where: str) -> Iterator[str]:
    """Tells of names that are no groups, or groups that are frozen for good."""
    for name in names:
        if name not in known:
            yield f"{where} names `{name}`, which is no group. There are {quote(known)}.{did_you_mean(name, known)}"
        elif name in frozen:
            yield (
                f"{where} names `{name}`, which is frozen in all phases. Take `frozen: true` from the group and give "
                "it an optimizer, or leave it out here."
            )
