"""Phases: stretches of training, each with a fixed set of trained layer groups, its own rates and its own proof."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError, TrainingError, did_you_mean, quote
from finetune.groups.layer_tree import layers_in_order
from finetune.groups.resolver import LayerGroup
from finetune.optimizers.group_rates import as_float
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.pretrained.checksum import checksum
from finetune.training.freezing import changed_since
from finetune.training.inference import release
from finetune.training.phase_callbacks import AutoRgn, Plateau, Until, Watch, plateaus, stopping
from finetune.training.phase_state import BATCH_NORM_MODES, PhaseState, check, enter, phase_state

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


@dataclass(frozen=True)
class PhaseRecord:
    """What came of a phase.

    Attributes:
        number: From 1.
        train: The groups that were trained.
        epochs: Epochs begun.
        epochs_left: Epochs that were planned and not needed.
        steps: Steps made.
        parameters: Numbers that were trained.
        frozen_tensors: Tensors that had to stand, moving statistics included.
        frozen_changed: Those that are not bit-identical; none, if all is well.
        seconds: Wall time.
    """

    number: int
    train: tuple[str, ...]
    epochs: int
    epochs_left: int
    steps: int
    parameters: int
    frozen_tensors: int
    frozen_changed: tuple[str, ...]
    seconds: float

    @property
    def frozen_unchanged(self) -> bool:
        return not self.frozen_changed

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "frozen_unchanged": self.frozen_unchanged}


@dataclass(frozen=True)
class PhaseStart:
    """What is told when a phase begins.

    Attributes:
        number: From 1, of `count`.
        count: How many phases there are.
        phase: The phase.
        train: The groups that are trained, by name.
        parameters: Numbers that are trained, of `total`.
        total: Numbers in the model.
        epoch: Epochs begun before.
    """

    number: int
    count: int
    phase: Phase
    train: tuple[str, ...]
    parameters: int
    total: int
    epoch: int

    def __str__(self) -> str:
        length = f"{self.phase.epochs} epoch" if self.phase.epochs else f"{self.phase.steps} step"
        plural = "" if (self.phase.epochs or self.phase.steps) == 1 else "s"
        return (
            f"phase {self.number}/{self.count}: train {', '.join(self.train)} "
            f"({self.parameters:,} of {self.total:,} parameters), {length}{plural}"
        )


def prove_phase(record: PhaseRecord) -> None:
    """Raises a TrainingError that names the tensors that were frozen in a phase and changed."""
    if record.frozen_changed:
        raise TrainingError(
            f"Frozen tensors stay bit-identical. {len(record.frozen_changed)} of {record.frozen_tensors} changed in "
            f"phase {record.number}: {quote(record.frozen_changed)}. If no callback of yours assigns to them, please "
            "report this as a bug. Do not trust the trained model."
        )


def phase_function(model: keras.Model) -> Callable[..., Any]:
    """Makes the function that trains on a batch in the phase whose state is in effect; `fit` calls it."""
    model.make_train_function(force=True)
    return model.train_function


def run_phases(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    phases: Sequence[Phase],
    fit: Callable[..., Any],
    *,
    steps_per_epoch: int | None = None,
    batches: tf.data.Dataset | None = None,
    tell: Callable[[PhaseStart], None] = lambda start: None,
) -> Iterator[PhaseRecord]:
    """Trains a compiled model phase by phase; each phase is done when its record comes.

    Slots of groups that stay trained survive; a group that enters after the first phase starts with fresh ones. A
    compiled function is kept for every set of trained weights, so that going back to one compiles nothing.

    Args:
        model: Compiled with a `GroupedOptimizer`.
        groups: All of its layer groups.
        phases: At least one.
        fit: Trains on the examples: called with `epochs`, `initial_epoch` and `callbacks`, as `model.fit` is.
        steps_per_epoch: Batches in an epoch, if known: a phase given in steps then has no more epochs than it needs.
        tell: Told of every phase that begins.

    Yields:
        The record of each phase.

    Raises:
        GroupError: The phases do not fit the groups.
        TrainingError: Somebody else has changed what is trainable.
    """
    check_phases(groups, phases, every=False)
    try:
        yield from _Run(model, groups, phases, steps_per_epoch, batches).records(fit, tell)
    finally:
        release(layers_in_order(model))


class _Run:
    """What passes from one phase to the next: compiled functions, checksums, and which groups were trained."""

    def __init__(
        self,
        model: Any,
        groups: Sequence[LayerGroup],
        phases: Sequence[Phase],
        steps_per_epoch: int | None,
        batches: tf.data.Dataset | None,
    ):
        self.model, self.groups, self.phases = model, groups, phases
        self.steps_per_epoch, self.batches = steps_per_epoch, batches
        self.optimizer = grouped_optimizer(model)
        self.sets_rates = any(phase.sets_rates for phase in phases)
        self.restarted: set[str] = set()
        self.functions: dict[Hashable, Callable[..., Any]] = {}
        self.checksums: dict[str, str] = {}
        self.state: PhaseState | None = None
        self.trained: tuple[str, ...] | None = None
        self.epoch = 0

    def records(self, fit: Callable[..., Any], tell: Callable[[PhaseStart], None]) -> Iterator[PhaseRecord]:
        with self.model.distribute_strategy.scope():
            self.model.optimizer.build(self.model.trainable_variables)
        for number, phase in enumerate(self.phases, start=1):
            self.check_untouched(number - 1)
            start = self.begin(number, phase)
            tell(start)
            yield self.train(start, fit)

    def check_untouched(self, number: int) -> None:
        if self.state:
            check(self.model, self.state, f"phase {number}/{len(self.phases)}")

    def begin(self, number: int, phase: Phase) -> PhaseStart:
        names = phase.names(self.groups)
        state = phase_state(
            self.model,
            self.groups,
            names,
            batch_norm=phase.batch_norm,
            always_train_normalization=phase.always_train_normalization,
            dropping=phase.dropping,
        )
        enter(self.model, state)
        check(self.model, state, f"the start of phase {number}/{len(self.phases)}")
        entering = [name for name in names if name not in (self.trained or ())]
        if self.trained is not None:
            restart(self.optimizer, entering)
            self.restarted |= {*entering}
        rates = dict.fromkeys(names, phase.auto_rgn) if phase.auto_rgn else dict(phase.rates)
        warmed = entering if phase.warmup_steps else []
        if self.sets_rates:
            self.set_rates(phase, rates, warmed)
        key = (state.key, _rates_key(phase, rates, warmed), frozenset(self.restarted & {*names}))
        self.model.train_function = self.functions.get(key)
        if self.model.train_function is None:
            self.functions[key] = phase_function(self.model)
        self.state, self.trained = state, names
        parameters = sum(leaf.variable.shape.num_elements() for leaf in state.trained)
        return PhaseStart(number, len(self.phases), phase, names, parameters, self.model.count_params(), self.epoch)

    def set_rates(self, phase: Phase, rates: Mapping[str, Any], warmed: Sequence[str]) -> None:
        for name in self.optimizer.group_names:
            warmup_steps = phase.warmup_steps if name in warmed else 0
            self.optimizer.reschedule(name, rates.get(name), from_now=phase.clock == "phase", warmup_steps=warmup_steps)
        self.optimizer.reset_rates()

    def train(self, start: PhaseStart, fit: Callable[..., Any]) -> PhaseRecord:
        assert self.state
        began, first_step = time.monotonic(), int(as_float(self.optimizer.iterations))
        before = self.standing_checksums(self.state)
        watch = Watch(lambda: self.check_untouched(start.number), start.phase.steps)
        callbacks = [*self.adjusting(start), *stopping(start.phase.until), watch]
        planned = self.epochs_of(start.phase)
        fit(epochs=self.epoch + planned, initial_epoch=self.epoch, callbacks=callbacks)
        self.check_untouched(start.number)
        self.checksums = self.state.checksums()
        self.epoch += watch.epochs
        return PhaseRecord(
            number=start.number,
            train=start.train,
            epochs=watch.epochs,
            epochs_left=planned - watch.epochs,
            steps=int(as_float(self.optimizer.iterations)) - first_step,
            parameters=start.parameters,
            frozen_tensors=len(before),
            frozen_changed=tuple(changed_since(before, self.checksums)),
            seconds=round(time.monotonic() - began, 3),
        )

    def standing_checksums(self, state: PhaseState) -> dict[str, str]:
        """Those at the start of a phase; of what stood in the last one, from its end: nothing may change in between."""
        return {
            leaf.name: self.checksums[leaf.name] if leaf.name in self.checksums else checksum(leaf.variable)
            for leaf in state.standing
        }

    def adjusting(self, start: PhaseStart) -> list[keras.callbacks.Callback]:
        """What moves the rates during a phase."""
        found = plateaus(start.phase.reduce_on_plateau)
        if start.phase.auto_rgn:
            assert self.state
            assert self.batches is not None
            ids = {id(leaf.variable) for leaf in self.state.trained}
            parts = [replace(g, leaves=tuple(x for x in g.leaves if id(x.variable) in ids)) for g in self.groups]
            found.append(AutoRgn([part for part in parts if part.leaves], start.phase.auto_rgn, self.batches))
        return found

    def epochs_of(self, phase: Phase) -> int:
        if phase.epochs:
            return phase.epochs
        assert phase.steps
        return ceil(phase.steps / self.steps_per_epoch) if self.steps_per_epoch else phase.steps


def _rates_key(phase: Phase, rates: Mapping[str, Any], warmed: Sequence[str]) -> Hashable:
    """Rates that are numbers are variables, which a compiled function reads; schedules are compiled into it."""
    schedules = sorted((name, id(rate)) for name, rate in rates.items() if callable(rate))
    numbers = sorted(name for name, rate in rates.items() if not callable(rate))
    return phase.clock, tuple(schedules), tuple(numbers), (phase.warmup_steps, tuple(warmed)) if warmed else ()


def grouped_optimizer(model: Any) -> GroupedOptimizer:
    """The optimizer of a compiled model, without the wrapper of mixed precision."""
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not isinstance(optimizer, GroupedOptimizer):
        raise GroupError(
            f"Phases train layer groups, each with its optimizer. `{model.name}` is compiled with "
            f"`{type(optimizer).__name__}`. Compile it with a `finetune.GroupedOptimizer`, which keeps what it knows "
            "of a group while that is frozen."
        )
    return optimizer


def restart(optimizer: GroupedOptimizer, names: Sequence[str]) -> None:
    """Gives groups that enter fresh slots."""
    if names and hasattr(optimizer, "restart"):
        optimizer.restart(names)


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
