"""How the model of a run is fitted in one phase: its observers, its batches, and the call of `model.fit`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from finetune.data.examples import Examples
from finetune.distribution.workers import workers
from finetune.groups.selectors import LayerGroup
from finetune.interruption import deferred
from finetune.plain_shapes import as_written
from finetune.training.callbacks import (
    LastWeights,
    LearningRateLogger,
    MetricsFile,
    ProgressLine,
    StopAtNonFiniteLoss,
    StopAtSignal,
)
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.checkpoints.content import REMOVE
from finetune.training.data_wait import DataWait, reads_from_disk
from finetune.training.fast.fast_loop import FastLoop
from finetune.training.fast.steps_per_call import share_calls
from finetune.training.features.cached_batches import CachedBatches
from finetune.training.finite_weights import FiniteWeights
from finetune.training.group_monitor import GroupMonitor
from finetune.training.monitor_interval import measured_every
from finetune.training.non_finite_gradients import NonFiniteGradients
from finetune.training.phases.phase import Phase, state_of
from finetune.training.phases.records import PhaseStart
from finetune.training.saving import disk_need
from finetune.training.snapshot import seeds
from finetune.training.step_evaluation import EvaluateBySteps
from finetune.training.tensorboard_log import TensorBoardLog
from finetune.training.together import SameWeights, StopTogether
from finetune.training.training_clock import TrainingClock


@dataclass(frozen=True)
class FitOptions:
    """How a model is fitted, beside its phases.

    Attributes:
        epochs: Epochs of the whole run.
        steps_per_epoch: Batches in an epoch.
        batch_size: Rows in a batch.
        shuffle: Whether every epoch has an order of its own.
        seed: Seed of the orders.
        cache: Where the features of the frozen part are kept: `auto`, `memory`, `disk` or `off`.
        cache_passes: Passes over the examples that are kept where the frozen part has random layers.
        steps_per_execution: Steps in a call, or `auto`.
        evaluate_every_steps: Steps between two evaluations of the validation rows within an epoch; `None` for none.
        announce_phases: Whether the phases are printed and numbered in the metrics.
        log_every_steps: Steps between two measurements of the layer groups, `auto` or `off`.
    """

    epochs: int
    steps_per_epoch: int
    batch_size: int
    shuffle: bool
    seed: int
    cache: str
    cache_passes: int
    steps_per_execution: int | str
    announce_phases: bool
    evaluate_every_steps: int | None = None
    log_every_steps: int | str = "off"


class RunFit:
    """Fits the model of a run, from one epoch to another; `run_phases` calls it once for every phase.

    Attributes:
        guard: Stops at a loss that is not finite.
        progress: Prints the epochs.
        metrics: Writes the metrics of every epoch.
    """

    def __init__(
        self,
        model: Any,
        groups: Sequence[LayerGroup],
        phases: Sequence[Phase],
        examples: Examples,
        options: FitOptions,
        folder: Path,
        console: Console,
        wait: DataWait | None,
        weights: LastWeights,
        non_finite: NonFiniteGradients | None,
        checkpoint: Checkpoint | None,
    ):
        self.wait = wait if reads_from_disk(examples) else None
        self.clock: TrainingClock | None = None
        self.model, self.groups, self.phases, self.options, self.console = model, groups, phases, options, console
        self.validation = examples.validation and examples.validation.batches(options.batch_size)
        self.guard = StopAtNonFiniteLoss()
        self.progress = ProgressLine(console, epochs=options.epochs, steps_per_epoch=options.steps_per_epoch)
        self.metrics = MetricsFile(folder / "metrics.csv", self.report)
        self.tensorboard = TensorBoardLog(folder / "tensorboard", self.report, lambda: self.metrics.rows)
        self.monitor: GroupMonitor | None = None
        steps = options.epochs * options.steps_per_epoch
        together, share = workers(), (0, 1)
        every = measured_every(options.log_every_steps, model, batch_size=options.batch_size, steps=steps)
        if together:  # whose machines may have other numbers of cores
            every = together.agree(every, "how often the layer groups are measured")
        if every:
            # Before a checkpoint takes the pretrained weights away.
            self.monitor = GroupMonitor(groups, every_steps=every, path=folder / "steps.csv", report=self.report)
            self.progress.rows = self.monitor.rows_of_epoch
            self.tensorboard.rows_of_steps = self.monitor.rows_since
        self.weights, self.non_finite, self.checkpoint = weights, non_finite, checkpoint
        self.seeds: list[Any] = []  # of the random layers when the phase began, for the features
        # Where the loss shows it, the guard says in which step.
        self.finite_weights = FiniteWeights(groups, unless=lambda: self.guard.stopped_at)
        weights.warned.report = self.report
        if checkpoint:
            checkpoint.in_phases, checkpoint.report = True, self.report
        self.evaluation = None
        if options.evaluate_every_steps and self.validation:
            path = folder / "evaluations.csv"
            self.evaluation = EvaluateBySteps(self.validation, options.evaluate_every_steps, path, self.report)
        self.observers: list[keras.callbacks.Callback] = [
            FastLoop(),
            *([self.monitor] if self.monitor else []),  # behind the loop that makes the calls
            LearningRateLogger(),  # before all that read the rates from the logs
            *([non_finite] if non_finite else []),
            self.guard,
            self.progress,
            self.metrics,
            self.tensorboard,
            self.finite_weights,  # before they are saved
            weights,
            *([self.wait] if self.wait else []),
            *([self.evaluation] if self.evaluation else []),
        ]
        self.ending: list[keras.callbacks.Callback] = [StopAtSignal()]  # behind the checkpoint
        if together:
            share, self.ending = together.share, [SameWeights(together), StopTogether(together)]
            together.pads = (len(examples.train) - 1) % options.batch_size + 1 < len(together)
        self.data = CachedBatches(
            model,
            examples.train,
            mode=options.cache,
            passes=options.cache_passes,
            batch_size=options.batch_size,
            shuffle=options.shuffle,
            seed=options.seed,
            folder=folder / "features",
            report=self.report,
            leaves=[leaf for group in groups for leaf in group.leaves],
            augmentation=examples.augmentation,
            reserve=disk_need(model, options.epochs)[0],  # the weights come first
            share=share,
        )

    def report(self, sentence: str) -> None:
        """Prints a sentence."""
        self.console.print(sentence, highlight=False, markup=False)

    def announce(self, start: PhaseStart) -> None:
        """Prints what is trained, and numbers the phase in the metrics, if the recipe has phases."""
        if self.options.announce_phases:
            self.console.print(str(start), highlight=False, markup=False)
            self.metrics.phase, self.progress.trained = start.number, start.train

    def __call__(
        self, start: PhaseStart, *, epochs: int, initial_epoch: int, callbacks: Sequence[keras.callbacks.Callback]
    ) -> None:
        first_epoch, first_step = initial_epoch, 0
        if self.checkpoint and self.checkpoint.goes_on:
            # Features are those of the begin of the phase, and so are the numbers of the random layers in front.
            self.seeds = self.checkpoint.resumed.document["seeds"]
            with as_written(self.checkpoint.resumed.path, "seeds", REMOVE):
                for variable, value in zip(seeds(self.model), self.seeds, strict=True):
                    variable.assign(value)
            first_epoch, first_step = self.checkpoint.place(self.options.steps_per_epoch)
        else:
            self.seeds = [variable.numpy().tolist() for variable in seeds(self.model)]
        trains = epochs > initial_epoch
        batches = self.data.batches(
            first_epoch=first_epoch,
            first_step=first_step,
            epochs=epochs - start.epoch if trains else 0,
            inference=start.state.inference_layers,
            later=self.phases_to_come(start),
        )
        if self.wait and self.data.features is None:
            batches = self.wait.timed(batches)
        if self.non_finite:
            self.non_finite.set_model(self.model)  # before a step is traced, which `share_calls` does
        clocks = [self.clock] if self.clock else []
        for clock in clocks:
            clock.begin_phase(self.data.features)
        share = self.options.steps_per_execution == "auto" and trains
        every = self.options.evaluate_every_steps if self.evaluation else None
        sharing = share_calls(self.model, batches, self.options.steps_per_epoch, divides=every) if share else []
        of_phase = [*self.observers, *sharing, *callbacks]
        if self.evaluation:
            self.evaluation.place = first_epoch, first_step
            self.evaluation.watchers = [callback for callback in of_phase if hasattr(callback, "on_evaluation")]
        if self.checkpoint:  # behind all whose state it writes
            self.checkpoint.callbacks = [*of_phase]
            of_phase.append(self.checkpoint)
        with deferred():  # a signal stops between two steps
            self.model.fit(
                batches,
                steps_per_epoch=self.options.steps_per_epoch,
                epochs=epochs,
                initial_epoch=initial_epoch,
                validation_data=self.validation,
                shuffle=False,  # the batches come shuffled
                verbose=0,  # pyright: ignore[reportArgumentType] - Keras' default makes it a str
                callbacks=[*of_phase, *self.ending, *clocks],
            )

    def phases_to_come(self, start: PhaseStart) -> Iterator[tuple[list[Any], Sequence[keras.layers.Layer]]]:
        """Yields what each later phase trains, and its layers in inference mode, as far as known now."""
        for phase in self.phases[start.number :]:
            state = state_of(self.model, self.groups, phase)
            yield [leaf.variable for leaf in state.trained], state.inference_layers
