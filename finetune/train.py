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

from finetune.build import build_batches, training_rows
from finetune.errors import TrainingError
from finetune.prepare import Prepared
from finetune.recipe.schema import Recipe
from finetune.sources.batches import training_batches
from finetune.training.cut import Cut, NoCut, find_cut
from finetune.training.feature_store import FeatureStore
from finetune.training.features import Features, cached_features
from finetune.training.loop import CallsOf, FastFunction, FastLoop, choose_steps_per_call
from finetune.training.monitor import (
    LastWeights,
    LearningRateLogger,
    MetricsFile,
    ProgressLine,
    StopAtNonFiniteLoss,
    TensorBoardLog,
)
from finetune.training.phase import state_of
from finetune.training.phase_callbacks import AUTO_RGN_BATCHES
from finetune.training.phases import PhaseRecord, PhaseStart, phase_function, run_phases
from finetune.training.trial import explained

SEE_WHERE = "The option `--debug` shows where."


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


def train(wanted: Recipe, ready: Prepared, folder: Path, console: Console) -> tuple[PhaseRecord, ...]:
    """Trains what is prepared and writes what is observed into the run folder.

    Returns:
        What came of each phase; nothing where there are none.

    Raises:
        TrainingError: If training breaks off, or a loss is no finite number.
    """
    length = ready.length
    observers = _Observers(
        StopAtNonFiniteLoss(),
        ProgressLine(console, epochs=length.epochs, steps_per_epoch=length.steps_per_epoch),
        MetricsFile(folder / "metrics.csv"),
        (TensorBoardLog(folder / "tensorboard"), LastWeights(folder / "checkpoints" / "last.weights.h5")),
    )
    fit = _Fit(wanted, ready, observers, folder / "features", console)
    records: list[PhaseRecord] = []
    with (
        _tidied(ready.model, folder / "features"),
        observers.progress,
        explained(TrainingError, "Training broke off.", f"{SEE_WHERE} What there is of it is in `{folder}`."),
    ):
        if ready.phases:
            records = _in_phases(wanted, ready, fit, observers, console)
        else:
            ready.model.optimizer.build(ready.model.trainable_variables)
            ready.model.train_function = phase_function(ready.model)
            fit(epochs=length.epochs)
    if observers.guard.stopped_at:
        epoch, step, loss = observers.guard.stopped_at
        check_finite(loss, f"in epoch {epoch}, step {step}", folder)
    return tuple(records)


@contextmanager
def _tidied(model: Any, features: Path) -> Iterator[None]:
    """Takes our function out of the model afterwards, so that whoever goes on has Keras' own, and removes features."""
    before = model.steps_per_execution
    try:
        yield
    finally:
        model.train_function, model.steps_per_execution = None, before
        shutil.rmtree(features, ignore_errors=True)


class _Fit:
    """Fits the model of a run on its examples, from one epoch to another."""

    def __init__(self, wanted: Recipe, ready: Prepared, observers: _Observers, folder: Path, console: Console):
        self.wanted, self.ready, self.model, self.observers = wanted, ready, ready.model, observers
        self.console, self.length = console, ready.length
        self.store = FeatureStore(folder)
        self.on_features: dict[Any, FastFunction] = {}
        examples, rows = ready.examples, training_rows(wanted, ready.examples)
        self.x, self.y = examples.x_train[:rows], examples.y_train[:rows]
        self.validation: tuple[Any, Any] = (examples.x_validation, examples.y_validation)
        if examples.x_validation is None:
            self.validation = (examples.x_train[rows:], examples.y_train[rows:])

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
            steps_per_epoch=self.length.steps_per_epoch,
            epochs=epochs,
            initial_epoch=initial_epoch,
            validation_data=self.validation if len(self.validation[0]) else None,
            validation_batch_size=self.wanted.train.batch_size,
            shuffle=False,  # the batches come shuffled
            verbose=0,  # pyright: ignore[reportArgumentType] - Keras' default makes it a str
            callbacks=own,
        )

    def batches(self, start: PhaseStart | None, first_epoch: int, epochs: int) -> tf.data.Dataset:
        """Returns batches of features where the first part of the model is frozen, else of the examples."""
        train = self.wanted.train
        options = {"batch_size": train.batch_size, "shuffle": train.shuffle, "seed": self.wanted.seed}
        options["first_epoch"] = first_epoch
        features = self.features(start, epochs - first_epoch)
        if not isinstance(features, Features):
            return training_batches(self.x, self.y, **options)
        key = self.model.train_function, features.cut.computed
        if key not in self.on_features:
            self.on_features[key] = FastFunction(self.model, forward=features.rest)
        self.model.train_function = self.on_features[key]
        return features.batches(self.y, **options)

    def features(self, start: PhaseStart | None, epochs: int) -> Features | NoCut:
        train, model = self.wanted.train, self.model
        if train.cache == "off" or not isinstance(model.train_function, FastFunction):
            return NoCut("it is not wanted")
        cut = find_cut(model, inference=start.resting if start else (), allow_random=train.cache_passes > 1)
        features = cached_features(
            cut,
            self.x,
            batch_size=train.batch_size,
            mode=train.cache,
            epochs=epochs,
            passes=train.cache_passes,
            also=self.later_cuts(start) if isinstance(cut, Cut) else (),
            store=self.store,
            tell=lambda sentence: self.console.print(f"cache: {sentence}", highlight=False, markup=False),
        )
        if isinstance(features, NoCut) and (train.cache != "auto" or isinstance(cut, Cut)):
            self.console.print(f"cache: none, because {features.reason}", highlight=False, markup=False)
        return features

    def later_cuts(self, start: PhaseStart | None) -> list[Cut | NoCut]:
        """The cuts of phases to come, as far as they can be told now: one run can make the features of them all."""
        found = []
        for phase in self.ready.phases[start.number :] if start else ():
            state = state_of(self.model, self.ready.groups, phase)
            trained = [leaf.variable for leaf in state.trained]
            found.append(find_cut(self.model, trained=trained, inference=state.resting))
        return found

    def in_calls(self, batches: tf.data.Dataset) -> list[keras.callbacks.Callback]:
        """Lets several steps share a call, where that may be chosen."""
        function = self.model.train_function
        if self.wanted.train.steps_per_execution != "auto" or not isinstance(function, FastFunction):
            return []
        return [CallsOf(self.model, choose_steps_per_call(function, batches, self.length.steps_per_epoch))]


def _in_phases(
    wanted: Recipe, ready: Prepared, fit: _Fit, observers: _Observers, console: Console
) -> list[PhaseRecord]:
    """Trains phase by phase; stops after one that a loss or a frozen tensor has spoilt."""
    records: list[PhaseRecord] = []

    def tell(start: PhaseStart) -> None:
        if wanted.phases is not None:  # else there is one, because a group asks for what phases do
            console.print(str(start), highlight=False, markup=False)
            observers.metrics.phase, observers.progress.trained = start.number, start.train

    every = run_phases(
        ready.model,
        ready.groups,
        ready.phases,
        fit,
        steps_per_epoch=ready.length.steps_per_epoch,
        batches=build_batches(wanted, ready.examples).take(AUTO_RGN_BATCHES),
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
