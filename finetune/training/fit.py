"""The training of a run: its batches, its observers, and what is fitted in each phase."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from rich.console import Console

from finetune.data.arrays import Examples
from finetune.data.batches import training_batches
from finetune.errors import TrainingError
from finetune.groups.selectors import LayerGroup
from finetune.training.callbacks import (
    LastWeights,
    LearningRateLogger,
    MetricsFile,
    ProgressLine,
    StopAtNonFiniteLoss,
    TensorBoardLog,
)
from finetune.training.check_examples import explained
from finetune.training.fast.calls import calls_restored, share_calls
from finetune.training.fast.loop import FastLoop, takes_forward, train_function
from finetune.training.features.cache import Features, cached_features
from finetune.training.features.cut import Cut, NoCut, find_cut
from finetune.training.features.store import FeatureStore
from finetune.training.phases.endings import AUTO_RGN_BATCHES
from finetune.training.phases.loop import PhaseRecord, PhaseStart, run_phases
from finetune.training.phases.phase import Phase, state_of

SEE_WHERE = "The option `--debug` shows where."


@dataclass(frozen=True)
class FitOptions:
    """How a model is fitted, beside its phases.

    Attributes:
        epochs: Epochs of the whole run.
        steps_per_epoch: Batches in an epoch.
        batch_size: Rows in a batch.
        shuffle: Whether every epoch has an order of its own.
        seed: What the orders follow.
        cache: Where the features of the frozen part are kept: `auto`, `memory`, `disk` or `off`.
        cache_passes: Passes over the examples with random layers, at most 1 without.
        steps_per_execution: Steps in a call, or `auto`.
        announce_phases: Whether each phase is told on the console and in the metrics.
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


@dataclass(frozen=True)
class _Observers:
    """The callbacks of a run."""

    guard: StopAtNonFiniteLoss
    progress: ProgressLine
    metrics: MetricsFile
    others: tuple[keras.callbacks.Callback, ...]

    @property
    def every(self) -> list[keras.callbacks.Callback]:
        return [FastLoop(), LearningRateLogger(), self.guard, self.progress, self.metrics, *self.others]


def train(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    phases: Sequence[Phase],
    examples: Examples,
    options: FitOptions,
    *,
    gradient_batches: tf.data.Dataset,
    folder: Path,
    console: Console,
) -> tuple[PhaseRecord, ...]:
    """Trains a compiled model and writes what is observed into the run folder.

    Args:
        model: Compiled with a `GroupedOptimizer`, frozen as `groups` say.
        groups: All of its layer groups.
        phases: The phases; none to train all groups all the time.
        examples: What it is trained and validated on.
        options: How it is fitted.
        gradient_batches: Batches to measure relative gradient norms over, where a phase asks for that.
        folder: The run folder.
        console: Where to tell what happens.

    Returns:
        What came of each phase; nothing where there are none.

    Raises:
        TrainingError: If training breaks off, or a loss is no finite number.
    """
    observers = _Observers(
        StopAtNonFiniteLoss(),
        ProgressLine(console, epochs=options.epochs, steps_per_epoch=options.steps_per_epoch),
        MetricsFile(folder / "metrics.csv"),
        (TensorBoardLog(folder / "tensorboard"), LastWeights(folder / "checkpoints" / "last.weights.h5")),
    )
    fit = _Fit(model, groups, phases, examples, options, observers, folder / "features", console)
    records: list[PhaseRecord] = []
    with (
        _tidied(model, folder / "features"),
        observers.progress,
        explained(TrainingError, "Training broke off.", f"{SEE_WHERE} What there is of it is in `{folder}`."),
    ):
        if phases:
            records = _in_phases(fit, gradient_batches)
        else:
            fit.model.optimizer.build(model.trainable_variables)
            fit.model.train_function = train_function(model)
            fit(epochs=options.epochs)
    if observers.guard.stopped_at:
        epoch, step, loss = observers.guard.stopped_at
        check_finite(loss, f"in epoch {epoch}, step {step}", folder)
    return tuple(records)


@contextmanager
def _tidied(model: Any, features: Path) -> Iterator[None]:
    """Takes our function out of the model afterwards, so that whoever goes on has Keras' own, and removes features."""
    try:
        with calls_restored(model):
            yield
    finally:
        model.train_function = None
        shutil.rmtree(features, ignore_errors=True)


class _Fit:
    """Fits the model of a run on its examples, from one epoch to another."""

    def __init__(
        self,
        model: Any,
        groups: Sequence[LayerGroup],
        phases: Sequence[Phase],
        examples: Examples,
        options: FitOptions,
        observers: _Observers,
        folder: Path,
        console: Console,
    ):
        self.model, self.groups, self.phases, self.options = model, groups, phases, options
        self.observers, self.console = observers, console
        self.store = FeatureStore(folder)
        self.on_features: dict[Any, Any] = {}
        self.x, self.y = examples.x_train, examples.y_train
        self.validation = None if examples.x_validation is None else (examples.x_validation, examples.y_validation)

    def __call__(
        self,
        start: PhaseStart | None = None,
        *,
        epochs: int,
        initial_epoch: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        batches = self.batches(start, initial_epoch, epochs)
        own = [*self.observers.every, *self.in_calls(batches), *callbacks]
        self.model.fit(
            batches,
            steps_per_epoch=self.options.steps_per_epoch,
            epochs=epochs,
            initial_epoch=initial_epoch,
            validation_data=self.validation,
            validation_batch_size=self.options.batch_size,
            shuffle=False,  # the batches come shuffled
            verbose=0,  # pyright: ignore[reportArgumentType] - Keras' default makes it a str
            callbacks=own,
        )

    def batches(self, start: PhaseStart | None, first_epoch: int, epochs: int) -> tf.data.Dataset:
        """Returns batches of features where the first part of the model is frozen, else of the examples."""
        options: dict[str, Any] = {name: getattr(self.options, name) for name in ("batch_size", "shuffle", "seed")}
        options["first_epoch"] = first_epoch
        features = self.features(start, epochs - first_epoch)
        if not isinstance(features, Features):
            return training_batches(self.x, self.y, **options)
        key = self.model.train_function, features.cut.computed
        if key not in self.on_features:
            self.on_features[key] = train_function(self.model, forward=features.rest)
        self.model.train_function = self.on_features[key]
        return features.batches(self.y, **options)

    def features(self, start: PhaseStart | None, epochs: int) -> Features | NoCut:
        options, model = self.options, self.model
        if options.cache == "off" or not takes_forward(model):
            return NoCut("it is not wanted")
        cut = find_cut(model, inference=start.resting if start else (), allow_random=options.cache_passes > 1)
        features = cached_features(
            cut,
            self.x,
            batch_size=options.batch_size,
            mode=options.cache,
            epochs=epochs,
            passes=options.cache_passes,
            also=self.later_cuts(start) if isinstance(cut, Cut) else (),
            store=self.store,
            tell=lambda sentence: self.console.print(f"cache: {sentence}", highlight=False, markup=False),
        )
        if isinstance(features, NoCut) and (options.cache != "auto" or isinstance(cut, Cut)):
            self.console.print(f"cache: none, because {features.reason}", highlight=False, markup=False)
        return features

    def later_cuts(self, start: PhaseStart | None) -> list[Cut | NoCut]:
        """The cuts of phases to come, as far as they can be told now: one run can make the features of them all."""
        found = []
        for phase in self.phases[start.number :] if start else ():
            state = state_of(self.model, self.groups, phase)
            trained = [leaf.variable for leaf in state.trained]
            found.append(find_cut(self.model, trained=trained, inference=state.resting))
        return found

    def in_calls(self, batches: tf.data.Dataset) -> list[keras.callbacks.Callback]:
        """Lets several steps share a call, where that may be chosen."""
        if self.options.steps_per_execution != "auto":
            return []
        return share_calls(self.model, batches, self.options.steps_per_epoch)


def _in_phases(fit: _Fit, gradient_batches: tf.data.Dataset) -> list[PhaseRecord]:
    """Trains phase by phase; stops after one that a loss or a frozen tensor has spoilt."""
    records: list[PhaseRecord] = []
    observers = fit.observers

    def tell(start: PhaseStart) -> None:
        if fit.options.announce_phases:
            fit.console.print(str(start), highlight=False, markup=False)
            observers.metrics.phase, observers.progress.trained = start.number, start.train

    every = run_phases(
        fit.model,
        fit.groups,
        fit.phases,
        fit,
        steps_per_epoch=fit.options.steps_per_epoch,
        batches=gradient_batches.take(AUTO_RGN_BATCHES),
        tell=tell,
    )
    with closing(every):
        for record in every:
            records.append(record)
            observers.progress.epochs -= record.epochs_left
            if observers.guard.stopped_at or not record.frozen_unchanged:
                break
    return records


def check_finite(loss: float, where: str, folder: Path) -> None:
    """Raises a TrainingError unless a loss is a finite number."""
    if not isfinite(loss):
        raise TrainingError(
            f"A loss is a finite number. It became `{loss}` {where}. Lower the learning rates, or set "
            f"`train.global_clipnorm: 1.0`. What was measured is in `{folder / 'metrics.csv'}`."
        )
