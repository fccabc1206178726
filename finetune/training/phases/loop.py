"""The loop over phases: each trains a fixed set of layer groups, at its own rates, and proves what it left alone.

If you are reading, `_PhaseLoop.begin` and `_PhaseLoop.train` are what happens in a phase. `run_phases` repeats them for
any function that fits; `train_phases.py` has the public entry, which fits with `model.fit`.
"""

import time
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import keras

from finetune.distribution.strategy import scope_of
from finetune.errors import GroupError
from finetune.groups.layer_tree import layers_in_order
from finetune.groups.selectors import LayerGroup
from finetune.optimizers.group_rates import as_float
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.saved_state import PhasePosition
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.checkpoints.resumed_file import Position
from finetune.training.fast.fast_loop import train_function, why_not_fast
from finetune.training.freezing import PhaseState, apply_state, check_state
from finetune.training.frozen_proof import FrozenRecords
from finetune.training.inference import undo_inference_mode
from finetune.training.phases.auto_rgn import AutoRgn, Measured
from finetune.training.phases.backup import check_position
from finetune.training.phases.phase import Phase, check_phases, state_of
from finetune.training.phases.phase_length import EpochWatch, StopAfterSteps
from finetune.training.phases.plateau import plateau_callbacks
from finetune.training.phases.records import PhaseRecord, PhaseStart
from finetune.training.phases.until import until_callbacks
from finetune.training.phases.watched_metric import Validates


def run_phases(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    phases: Sequence[Phase],
    fit: Callable[..., Any],
    *,
    steps_per_epoch: int | None = None,
    gradient_batches: Callable[[], Measured] | None = None,
    validates: Validates = lambda epoch: True,
    proof: FrozenRecords | None = None,
    restore: Callable[[], int] = lambda: 0,
    checkpoint: Checkpoint | None = None,
    batches_per_epoch: int | None = None,
    on_phase: Callable[[PhaseStart], None] = lambda start: None,
) -> Generator[PhaseRecord, None, None]:
    """Trains a compiled model phase by phase. A phase is over when its record is yielded.

    Slots of groups that stay trained are kept; a group that enters after the first phase starts with fresh ones. A
    compiled function is kept for every set of trained weights, so that going back to one compiles nothing.

    Args:
        model: Compiled with a `GroupedOptimizer`.
        groups: All of its layer groups.
        phases: At least one.
        fit: Trains on the examples: called with the start of the phase, and with `epochs`, `initial_epoch` and
            `callbacks` as `model.fit` is.
        steps_per_epoch: Batches in an epoch, if known: a phase given in steps then has no more epochs than it needs.
        gradient_batches: Makes the batches that a phase with `auto_rgn` measures gradients over, of inputs, targets and
            weights of rows: called once, and iterated over before every epoch. Or a function of the epoch that does.
        validates: Says whether an epoch, counted from 0, is followed by a validation.
        proof: Takes the checksums of what is frozen, and gets a record of each phase.
        restore: Loads a backup of the model, if there is one, and returns the epoch with which to go on.
        checkpoint: Goes on where its file says, if there is one; `fit` puts it among the callbacks.
        batches_per_epoch: Batches in an epoch, if known, where `steps_per_epoch` is not given: what is made of a phase
            is counted by it.
        on_phase: Called with every phase that begins.

    Yields:
        The record of each phase; none for a phase that was over before the backup or checkpoint.

    Raises:
        GroupError: The phases do not fit the groups, or the optimizer is not a `GroupedOptimizer`.
        TrainingError: Other code changed what is trainable.
    """
    # Not `every`: a caller may train some groups elsewhere, and a list that goes on with a run is shorter.
    check_phases(groups, phases, every=False)
    loop = _PhaseLoop(model, groups, phases, steps_per_epoch, gradient_batches, validates, proof or FrozenRecords())
    loop.batches_per_epoch = steps_per_epoch or batches_per_epoch
    try:
        with scope_of(model):
            # Slots of all groups are made before the first phase is traced, also of those that it freezes.
            loop.model.optimizer.build(model.trainable_variables)
        if checkpoint and checkpoint.goes_on:
            first, is_begun, restore = loop.find_checkpoint(checkpoint), True, lambda: checkpoint.restore(model).epoch
        else:
            first, is_begun = loop.find_backup(restore)
        for number, phase in enumerate(phases, start=1):
            if number < first:
                loop.skip(phase)
                continue
            loop.check_untouched(f"phase {number - 1}/{len(phases)}")
            start = loop.begin(number, phase)
            on_phase(start)
            if is_begun and number == first:
                # Once more: what the begin of the phase has reset is as it was in the middle of it.
                loop.epoch = restore()
            yield loop.train(start, fit)
    finally:
        undo_inference_mode(layers_in_order(model))


class _PhaseLoop:
    """What passes from one phase to the next: compiled functions, the proof, and which groups were trained."""

    def __init__(
        self,
        model: Any,
        groups: Sequence[LayerGroup],
        phases: Sequence[Phase],
        steps_per_epoch: int | None,
        gradient_batches: Callable[[], Measured] | None,
        validates: Validates,
        proof: FrozenRecords,
    ):
        self.model, self.groups, self.phases = model, groups, phases
        self.steps_per_epoch, self.gradient_batches, self.proof = steps_per_epoch, gradient_batches, proof
        self.validates = validates
        self.optimizer = grouped_optimizer(model)
        self.sets_rates = any(phase.sets_rates for phase in phases)
        # Batches that `auto_rgn` measures over; made once, as every iteration over them has its own order.
        self.measured_on: Measured | None = None
        self.restarted: set[str] = set()  # groups that entered after the first phase, with fresh slots and a clock
        self.functions: dict[Hashable, Callable[..., Any]] = {}
        self.state: PhaseState | None = None  # of the latest phase
        self.trained: tuple[str, ...] | None = None  # in the latest phase
        self.epoch = 0
        self.batches_per_epoch: int | None = None
        self.place: Position | None = None  # of the checkpoint in the phase that begins

    def find_checkpoint(self, checkpoint: Checkpoint) -> int:
        """Loads a checkpoint and returns the number of the phase it was written in; also at its very end."""
        self.place = checkpoint.restore(self.model)
        position = self.optimizer.saved_state.phase
        check_position(position, self.place.epoch + 1, self.phases, what="`Checkpoint`")
        assert position
        self.epoch = position.epoch
        return position.number

    def find_backup(self, restore: Callable[[], int]) -> tuple[int, bool]:
        """Loads a backup, if there is one.

        Returns:
            The number of the phase to go on with, and whether the backup was made in the middle of it.
        """
        # A model that was trained before has the phase of that training, which is not that of a backup.
        self.optimizer.saved_state.phase = None
        # The optimizer's state, and with it the position, is read by `restore`; so the order matters.
        epoch, position = restore(), self.optimizer.saved_state.phase
        check_position(position, epoch, self.phases)
        if position is None:
            return 1, False
        phase = self.phases[position.number - 1]
        # A backup at the very end of a phase is of a phase that is over: its successor begins.
        steps, epochs = self.steps_made() - position.step, epoch - position.epoch
        is_over = steps >= phase.steps if phase.steps else epochs >= (phase.epochs or 0)
        self.epoch = epoch if is_over else position.epoch
        return position.number + is_over, not is_over

    def skip(self, phase: Phase) -> None:
        """Passes over a phase that was trained before the backup."""
        names = phase.names(self.groups)
        # In a run without an interruption `begin` restarted these; their clocks came with the backup.
        if self.trained is not None:
            self.restarted |= {*names} - {*self.trained}
        self.trained = names

    def check_untouched(self, moment: str) -> None:
        """Checks that the state of the latest phase is still in effect."""
        if self.state:
            check_state(self.model, self.state, moment)

    def begin(self, number: int, phase: Phase) -> PhaseStart:
        """Puts a phase into effect.

        The order matters: a train function is traced with the frozen layers, the restarted groups and the schedules of
        the moment in which it is first called.
        """
        names = phase.names(self.groups)
        state = state_of(self.model, self.groups, phase)
        apply_state(self.model, state)
        check_state(self.model, state, f"the start of phase {number}/{len(self.phases)}")
        entering = [name for name in names if name not in (self.trained or ())]
        if self.trained is not None:
            self.optimizer.restart(entering)
            self.restarted |= {*entering}
        rates_key = self.set_rates(phase, state, entering)
        # What is compiled into a function and not read from a variable is part of the key. A group that was restarted
        # counts the steps of its bias correction from its entry, a group that was never restarted from 0.
        key = (state.key, rates_key, frozenset(self.restarted & {*names}))
        if key not in self.functions:
            self.functions[key] = train_function(self.model)
        self.model.train_function = self.functions[key]
        self.state, self.trained = state, names
        self.optimizer.saved_state.phase = PhasePosition(number, self.epoch, self.steps_made())
        parameters = sum(leaf.variable.shape.num_elements() for leaf in state.trained)
        total = self.model.count_params()
        return PhaseStart(number, len(self.phases), phase, names, parameters, total, self.epoch, state)

    def set_rates(self, phase: Phase, state: PhaseState, entering: Sequence[str]) -> Hashable:
        """Gives every group its rate for this phase; returns what of the rates is compiled into a train function.

        Rates that are numbers are variables, which a compiled function reads; schedules are compiled into it.
        """
        trained = {id(leaf.variable) for leaf in state.trained}
        # More than `phase.train` where normalization layers also train in the other groups.
        changing = [group.name for group in self.groups if any(id(leaf.variable) in trained for leaf in group.leaves)]
        # With Auto-RGN all groups begin with one rate, which the callback then shares out.
        rates = dict.fromkeys(changing, phase.auto_rgn) if phase.auto_rgn else dict(phase.rates)
        # Groups that were trained in the phase before are warm.
        warmed = tuple(entering) if phase.warmup_steps else ()
        for name in self.optimizer.group_names if self.sets_rates else ():
            warmup_steps = phase.warmup_steps if name in warmed else 0
            from_now = phase.clock == "phase"
            self.optimizer.reschedule(name, rates.get(name), from_now=from_now, warmup_steps=warmup_steps)
        if self.sets_rates:
            self.optimizer.reset_rates()
        # By identity: two schedules with equal settings are two constants of a traced step. In the order of the names,
        # not in that in which the rates are written.
        schedules = tuple(sorted((name, id(rate)) for name, rate in rates.items() if callable(rate)))
        numbers = tuple(sorted(name for name, rate in rates.items() if not callable(rate)))
        return phase.clock, schedules, numbers, (phase.warmup_steps, warmed) if warmed else ()

    def train(self, start: PhaseStart, fit: Callable[..., Any]) -> PhaseRecord:
        """Fits until the phase ends, and records what came of it."""
        phase, state, title = start.phase, start.state, f"phase {start.number}"
        began, first_step = time.monotonic(), self.steps_made()
        before = self.proof.begin(state.frozen)
        # After every epoch and not only at the end: hours of training in a wrong state would be lost.
        watch = EpochWatch(lambda: self.check_untouched(f"{title}/{start.count}"))
        # A phase that goes on where a backup or a checkpoint was written has begun before.
        position = self.optimizer.saved_state.phase or PhasePosition(start.number, self.epoch, first_step)
        from_checkpoint, place, self.place = self.place is not None, self.place or Position(), None
        epochs_before, steps_before = self.epoch - position.epoch, first_step - position.step
        if self.batches_per_epoch:
            # Not the steps of the optimizer: a loss scale passes over some.
            steps_before = epochs_before * self.batches_per_epoch + place.step
        # The callbacks see the steps before the place pass once more. Where the length of an epoch is not known, how
        # many steps were made before it is in the checkpoint: the optimizer's count lacks those that were passed over.
        unknown = not self.batches_per_epoch
        left = (phase.steps or 0) - (0 if unknown and from_checkpoint else steps_before - place.step)
        stop = [StopAfterSteps(left, resumes=unknown)] if phase.steps else []
        planned = phase.epochs or self.epochs_for(phase.steps or 0)
        fit(
            start,
            epochs=self.epoch if place.ended or place.stopped else position.epoch + planned,
            initial_epoch=self.epoch,
            callbacks=[
                *plateau_callbacks(phase.reduce_on_plateau, self.validates),
                *self.auto_rgn(phase, state),
                *until_callbacks(phase.until, self.validates),
                *stop,
                watch,
            ],
        )
        self.check_untouched(f"{title}/{start.count}")
        frozen = self.proof.end(title, state.frozen, before)
        self.epoch += watch.epochs
        return PhaseRecord(
            number=start.number,
            train=start.train,
            epochs=epochs_before + watch.epochs,
            epochs_left=planned - epochs_before - watch.epochs,
            steps=self.steps_made() - position.step,
            parameters=start.parameters,
            frozen_tensors=frozen.tensors,
            frozen_changed=frozen.changed,
            seconds=round(time.monotonic() - began, 3),
            keras_loop=why_not_fast(self.model),
        )

    def auto_rgn(self, phase: Phase, state: PhaseState) -> list[keras.callbacks.Callback]:
        """Returns the callback that sets rates by relative gradient norms, if the phase asks for it."""
        if not phase.auto_rgn:
            return []
        assert self.gradient_batches
        if self.measured_on is None:
            self.measured_on = self.gradient_batches()
        trained = {id(leaf.variable) for leaf in state.trained}
        parts = [replace(g, leaves=tuple(x for x in g.leaves if id(x.variable) in trained)) for g in self.groups]
        return [AutoRgn([part for part in parts if part.leaves], self.measured_on)]

    def epochs_for(self, steps: int) -> int:
        """Returns in how many epochs at most a number of steps is made."""
        return ceil(steps / self.steps_per_epoch) if self.steps_per_epoch else steps

    def steps_made(self) -> int:
        """Returns how many steps the optimizer has made in all phases."""
        return int(as_float(self.optimizer.iterations))


def grouped_optimizer(model: Any) -> GroupedOptimizer:
    """Returns the optimizer of a compiled model, without the wrapper of mixed precision.

    Raises:
        GroupError: It is not a `GroupedOptimizer`.
    """
    optimizer = unwrap(getattr(model, "optimizer", None))
    if not isinstance(optimizer, GroupedOptimizer):
        raise GroupError(
            f"Phases train layer groups, each with its optimizer. `{model.name}` is compiled with "
            f"`{type(optimizer).__name__}`. Compile it with a `finetune.GroupedOptimizer`, which keeps the state of a "
            "group while the group is frozen."
        )
    return optimizer
