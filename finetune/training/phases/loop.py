"""Phases: stretches of training, each with a fixed set of trained layer groups, its own rates and its own proof."""

import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

import keras
import tensorflow as tf

from finetune.checksum import checksum
from finetune.errors import GroupError, TrainingError, quote
from finetune.groups.layer_tree import layers_in_order
from finetune.groups.selectors import LayerGroup
from finetune.optimizers.group_rates import as_float
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap import unwrap
from finetune.training.fast.loop import FastLoop, train_function
from finetune.training.freezing import changed_since, freeze
from finetune.training.inference import release
from finetune.training.phases.endings import AUTO_RGN_BATCHES, AutoRgn, Watch, plateaus, stopping
from finetune.training.phases.phase import Phase, check_phases, state_of
from finetune.training.phases.state import PhaseState, check, enter
from finetune.training.phases.strategies import phases_of_strategy, steps_in_epoch


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
        resting: Layers that are called in inference mode though they could be trained.
    """

    number: int
    count: int
    phase: Phase
    train: tuple[str, ...]
    parameters: int
    total: int
    epoch: int
    resting: tuple[keras.layers.Layer, ...] = ()

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


def train_phases(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    phases: Sequence[Phase] | str | Mapping[str, Any],
    x: Any,
    y: Any = None,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    tell: Callable[[PhaseStart], None] = lambda start: None,
    **fit: Any,
) -> list[PhaseRecord]:
    """Trains a compiled model phase by phase, and proves that what a phase froze is bit-identical after it.

    What is trained is as `groups` say again afterwards.

    Args:
        model: Compiled with a `GroupedOptimizer`; it may be one that was frozen before.
        groups: All of its layer groups.
        phases: At least one; every group that is not frozen for good is trained in one of them. Or a strategy: its name
            such as `"gradual_unfreezing"`, or a mapping such as `{"strategy": "lp_ft", "probe_epochs": 2}`, with the
            names and settings that `phases` has in a recipe.
        x: Inputs, or a `tf.data.Dataset` of batches of inputs and targets.
        y: Targets.
        epochs: Length of the whole run, for a strategy; a list of phases says itself how long each phase is.
        batch_size: As for `model.fit`.
        callbacks: Keras callbacks, which see the epochs of all phases counted through. One that stops the training ends
            a phase.
        tell: Told of every phase that begins; `print` shows what is trained.
        fit: More of what `model.fit` takes, such as `validation_data`.

    Returns:
        What came of each phase.

    Raises:
        GroupError: The phases do not fit the groups, or the optimizer is none of layer groups.
        TrainingError: A frozen tensor changed, or somebody else has changed what is trainable.

    Example:
        >>> import numpy as np
        >>> from finetune import Selector, resolve_groups
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="body"), keras.layers.Dense(2)])
        >>> selectors = [Selector("body", prefixes=("body",)), Selector("head", rest=True)]
        >>> body, head = groups = resolve_groups(model, selectors)
        >>> adam = keras.optimizers.Adam
        >>> model.compile(GroupedOptimizer({"body": (adam(1e-4), body), "head": (adam(1e-3), head)}), loss="mse")
        >>> phases = [Phase(["head"], epochs=1), Phase("all", epochs=2, rates={"head": 5e-4})]
        >>> records = train_phases(model, groups, phases, np.ones((8, 4)), np.ones((8, 2)), tell=print)
        phase 1/2: train head (18 of 58 parameters), 1 epoch
        phase 2/2: train body, head (58 of 58 parameters), 2 epochs
        >>> records[0].frozen_tensors, records[0].frozen_unchanged
        (2, True)
    """
    if isinstance(phases, str | Mapping):
        rates, steps = grouped_optimizer(model).initial_rates, steps_in_epoch(x, batch_size or 32, fit)
        phases = phases_of_strategy(phases, groups, rates, epochs=epochs, steps_per_epoch=steps)
    elif epochs is not None:
        raise GroupError(
            f"A list of phases says how long each phase is. Received `epochs={epochs}` beside it. Remove `epochs`, or "
            "pass a strategy such as `gradual_unfreezing` in place of the list."
        )
    check_phases(groups, phases)
    settings = {"verbose": 0, **fit, **({} if batch_size is None else {"batch_size": batch_size})}

    def fit_phase(start: PhaseStart, **more: Any) -> None:
        model.fit(x, y, **{**settings, **more, "callbacks": [FastLoop(), *callbacks, *more["callbacks"]]})

    records = []
    try:
        for record in run_phases(model, groups, phases, fit_phase, batches=_some(x, y, batch_size or 32), tell=tell):
            prove_phase(record)
            records.append(record)
    finally:
        freeze(model, groups)
        model.make_train_function(force=True)
    return records


def _some(x: Any, y: Any, batch_size: int) -> tf.data.Dataset:
    """A few batches to measure gradients over."""
    batches = x if isinstance(x, tf.data.Dataset) else tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    return batches.take(AUTO_RGN_BATCHES)


def run_phases(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    phases: Sequence[Phase],
    fit: Callable[..., Any],
    *,
    steps_per_epoch: int | None = None,
    batches: tf.data.Dataset | None = None,
    tell: Callable[[PhaseStart], None] = lambda start: None,
) -> Generator[PhaseRecord, None, None]:
    """Trains a compiled model phase by phase; each phase is done when its record comes.

    Slots of groups that stay trained survive; a group that enters after the first phase starts with fresh ones. A
    compiled function is kept for every set of trained weights, so that going back to one compiles nothing.

    Args:
        model: Compiled with a `GroupedOptimizer`.
        groups: All of its layer groups.
        phases: At least one.
        fit: Trains on the examples: called with the start of the phase, and with `epochs`, `initial_epoch` and
            `callbacks` as `model.fit` is.
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
        state = state_of(self.model, self.groups, phase)
        enter(self.model, state)
        check(self.model, state, f"the start of phase {number}/{len(self.phases)}")
        entering = [name for name in names if name not in (self.trained or ())]
        if self.trained is not None:
            self.optimizer.restart(entering)
            self.restarted |= {*entering}
        ids = {id(leaf.variable) for leaf in state.trained}
        changed = [group.name for group in self.groups if any(id(leaf.variable) in ids for leaf in group.leaves)]
        rates = dict.fromkeys(changed, phase.auto_rgn) if phase.auto_rgn else dict(phase.rates)
        warmed = entering if phase.warmup_steps else []
        if self.sets_rates:
            self.set_rates(phase, rates, warmed)
        key = (state.key, _rates_key(phase, rates, warmed), frozenset(self.restarted & {*names}))
        if key not in self.functions:
            self.functions[key] = train_function(self.model)
        self.model.train_function = self.functions[key]
        self.state, self.trained = state, names
        parameters = sum(leaf.variable.shape.num_elements() for leaf in state.trained)
        total = self.model.count_params()
        return PhaseStart(number, len(self.phases), phase, names, parameters, total, self.epoch, state.resting)

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
        fit(start, epochs=self.epoch + planned, initial_epoch=self.epoch, callbacks=callbacks)
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
            found.append(AutoRgn([part for part in parts if part.leaves], self.batches))
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
    optimizer = unwrap(getattr(model, "optimizer", None))
    if not isinstance(optimizer, GroupedOptimizer):
        raise GroupError(
            f"Phases train layer groups, each with its optimizer. `{model.name}` is compiled with "
            f"`{type(optimizer).__name__}`. Compile it with a `finetune.GroupedOptimizer`, which keeps what it knows "
            "of a group while that is frozen."
        )
    return optimizer
