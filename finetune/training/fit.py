"""The training of a run: its observers, its batches, and the loop over its phases.

If you are reading, go to `train`; `_RunFit` fits one phase. A run without `phases` in its recipe is one phase of all
groups.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from finetune.data.batches import measurement_batches
from finetune.data.examples import Examples
from finetune.distribution.workers import lost_worker, training_together, workers
from finetune.errors import FinetuneError, TrainingError, WriteError, reason
from finetune.groups.selectors import LayerGroup
from finetune.interruption import Stopped, deferred
from finetune.machine_failures import failure_text
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
from finetune.training.fast.steps_per_call import calls_restored, share_calls
from finetune.training.features.cached_batches import CachedBatches
from finetune.training.finite_weights import FiniteWeights
from finetune.training.frozen_proof import FrozenRecords
from finetune.training.group_monitor import GroupMonitor
from finetune.training.monitor_interval import measured_every
from finetune.training.non_finite_gradients import NonFiniteGradients
from finetune.training.phases.auto_rgn import AUTO_RGN_BATCHES
from finetune.training.phases.loop import run_phases
from finetune.training.phases.phase import Phase, state_of
from finetune.training.phases.records import PhaseRecord, PhaseStart
from finetune.training.saving import disk_need
from finetune.training.snapshot import seeds
from finetune.training.step_evaluation import EvaluateBySteps
from finetune.training.tensorboard_log import TensorBoardLog
from finetune.training.time_limit import TimeLimit
from finetune.training.together import SameWeights, StopTogether
from finetune.training.trackers import Trackers
from finetune.training.training_clock import TrainingClock

SEE_WHERE = "The option `--debug` shows where."


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


def train(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    phases: Sequence[Phase],
    examples: Examples,
    options: FitOptions,
    *,
    folder: Path,
    console: Console,
    proof: FrozenRecords | None = None,
    wait: DataWait | None = None,
    weights: LastWeights | None = None,
    checkpoint: Checkpoint | None = None,
    non_finite: NonFiniteGradients | None = None,
    clock: TrainingClock | None = None,
    advice: list[str] | None = None,
    keepers: Sequence[keras.callbacks.Callback] = (),
    time_limit: TimeLimit | None = None,
    trackers: Trackers | None = None,
) -> tuple[PhaseRecord, ...]:
    """Trains a compiled model phase by phase and writes metrics, logs and weights into the run folder.

    Training ends early after a phase in which a loss was not finite or a frozen tensor changed.

    Args:
        model: Compiled with a `GroupedOptimizer`.
        groups: All of its layer groups.
        phases: At least one.
        examples: What it is trained and validated on.
        options: How it is fitted.
        folder: The run folder.
        console: Where to print.
        proof: Takes the checksums of what is frozen, and gets a record of each phase.
        wait: Adds up how long training waits for rows that are made when they are taken.
        weights: Saves the weights, and says afterwards where they are.
        checkpoint: Goes on where its file says, if there is one, and writes the next.
        non_finite: What happens to steps whose gradients are not finite; it counts those that are left out.
        clock: Measures each phase, and may end it early; a run has none.
        advice: Gets sentences on groups that hardly move or move far more than the others.
        keepers: Callbacks that remember weights.
        time_limit: Ends the training after a time.
        trackers: Get the rows of the metrics.

    Returns:
        One record for each phase.

    Raises:
        TrainingError: Training breaks off, or a loss is not a finite number. The weights of the finished steps are
            saved.
        Stopped: A signal asks the process to end. The weights are saved, and `kept` says so.
        WriteError: The metrics cannot be written.
    """
    weights = weights or LastWeights(last_weights(folder))
    fit = _RunFit(model, groups, phases, examples, options, folder, console, wait, weights, non_finite, checkpoint)
    fit.clock = clock
    # Behind those that write the metrics, and before the checkpoint, which holds their state.
    fit.observers += [*keepers, *([time_limit] if time_limit else []), *([trackers] if trackers else [])]
    if trackers:
        trackers.rows_of_epochs = lambda: fit.metrics.rows
        trackers.rows_of_steps = fit.monitor.rows_since if fit.monitor else trackers.rows_of_steps
    if time_limit:
        time_limit.report = fit.report
    proof = proof or FrozenRecords()
    records: list[PhaseRecord] = []
    if checkpoint:
        if checkpoint.goes_on:
            records += [PhaseRecord.from_json(record) for record in checkpoint.resumed.document["records"]]
            proof.take(checkpoint.resumed.document["proof"])
            fit.progress.epochs -= sum(record.epochs_left for record in records)
            # Written anew: what the process before has logged may reach beyond its checkpoint.
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        of_caller = checkpoint.more
        checkpoint.more = lambda: {
            **of_caller(),
            "records": [record.to_json() for record in records],
            "proof": proof.to_json(),
            "seeds": fit.seeds,
        }
    loop = run_phases(
        model,
        groups,
        phases,
        fit,
        steps_per_epoch=options.steps_per_epoch,
        gradient_batches=lambda: (
            lambda epoch: measurement_batches(
                examples.x_train,
                examples.y_train,
                batch_size=options.batch_size,
                seed=options.seed + epoch,  # a run that goes on measures over the same
                sample_weight=examples.weights_train,
                augmentation=examples.augmentation,
            ).take(AUTO_RGN_BATCHES)
        ),
        proof=proof,
        checkpoint=checkpoint,
        on_phase=fit.announce,
    )
    with (
        training_together(),
        _tidied(model, folder / "features"),
        fit.progress,
        closing(fit.tensorboard),
        fit.finished_steps_kept(),
        closing(loop),
    ):
        for record in loop:
            if record.keras_loop and record.keras_loop not in [before.keras_loop for before in records]:
                sentence = f"Keras' own loop made the steps, not the fast one: {record.keras_loop}"
                console.print(sentence, highlight=False, markup=False)
            records.append(record)
            fit.progress.epochs -= record.epochs_left
            is_over = time_limit is not None and time_limit.reached
            if record.epochs_left > 0 and not fit.guard.stopped_at and not is_over:
                fit.report(_ended_early(record, phases, options.announce_phases))
            if fit.guard.stopped_at or is_over or not record.frozen_unchanged:
                break
    if fit.guard.stopped_at:
        epoch, step, loss = fit.guard.stopped_at
        check_finite(loss, f"in epoch {epoch}, step {step}", folder)
    if fit.weights.unsaved:
        fit.report(f"warning: {fit.weights.keep()}")
    try:
        fit.metrics.write()
        if fit.monitor:
            fit.monitor.write()
            (advice if advice is not None else []).extend(fit.monitor.advice.values())
    except WriteError as error:
        raise WriteError(f"{error} {fit.weights.keep()}") from error
    return tuple(records)


def _ended_early(record: PhaseRecord, phases: Sequence[Phase], announced: bool) -> str:
    """Returns a sentence about a phase that `until` has ended."""
    what = f"phase {record.number}" if announced else "training"
    until = phases[record.number - 1].until
    why = f": `{until.monitor}` no longer got better" if until else ""
    best = ", and the weights of its best epoch are back" if until and until.restore_best else ""
    plural = "" if record.epochs_left == 1 else "s"
    return f"{what} ended {record.epochs_left} epoch{plural} early{why}{best}"


@contextmanager
def _tidied(model: Any, features: Path) -> Iterator[None]:
    """Gives the model Keras' own train function back afterwards, and removes the features on disk."""
    try:
        with calls_restored(model):
            yield
    finally:
        model.train_function = None
        shutil.rmtree(features, ignore_errors=True)


class _RunFit:
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

    @contextmanager
    def finished_steps_kept(self) -> Iterator[None]:
        """Saves the weights of the finished steps where training breaks off, and says so in the error.

        Raises:
            Stopped: A signal asks the process to end.
            TrainingError: For any error that is not a `FinetuneError` itself.
        """
        try:
            yield
        except Stopped as stop:
            stop.kept = self.weights.keep()
            if self.checkpoint and self.checkpoint.save():
                stop.kept += f" `finetune resume {self.weights.path.parents[1]}` goes on from there."
            raise
        except FinetuneError as error:
            # An error of training itself comes to all workers, and some have ended before this one looks.
            if (lost := lost_worker(seconds=0)) and lost in str(error):
                raise TrainingError(f"{error} {self._kept_after_loss()}") from error
            if self.non_finite and self.non_finite.stopped_at:
                self.weights.limit(self.non_finite.stopped_at.step - 1)  # no later step was made
            kept = self.weights.keep(newest=not self.finite_weights.failed)
            raise type(error)(f"{error} {kept}") from error
        except Exception as error:
            if lost := lost_worker():
                raise TrainingError(f"{lost} {self._kept_after_loss()}") from error
            what = failure_text(error) or f"{type(error).__name__}: {reason(error)}."
            raise TrainingError(
                f"Training stopped with an error. {what} {self.weights.keep()} {SEE_WHERE} What was written so far is "
                f"in `{self.weights.path.parents[1]}`."
            ) from error
        finally:
            if self.checkpoint:
                self.checkpoint.wait()  # before the folder is no longer this process's

    def _kept_after_loss(self) -> str:
        """Returns what is kept where a worker is gone, and how to go on: a step that it left may be made in part."""
        if self.checkpoint is None or not self.checkpoint.writes:
            return "Begin all workers anew with `--resume`."
        kept = self.weights.keep(newest=False)
        if self.checkpoint.path is None:
            return f"{kept} Begin the run anew: there is no checkpoint yet."
        return f"{kept} Begin all workers anew with `--resume`, which goes on from `{self.checkpoint.path}`."

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


def last_weights(folder: Path) -> Path:
    """Returns the file of the latest weights in a run folder."""
    return folder / "checkpoints" / "last.weights.h5"


def check_finite(loss: float, where: str, folder: Path) -> None:
    """Checks a loss.

    Args:
        loss: The loss.
        where: Where it was measured, for the message, such as `in epoch 2, step 7`.
        folder: The run folder.

    Raises:
        TrainingError: It is not a finite number.
    """
    if not isfinite(loss):
        raise TrainingError(
            f"A loss must be a finite number. It became `{loss}` {where}. Lower the learning rates, or set "
            f"`train.global_clipnorm: 1.0`. The metrics so far are in `{folder / 'metrics.csv'}`."
        )
