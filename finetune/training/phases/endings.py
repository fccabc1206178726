"""What watches over a phase, moves its rates and ends it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import TrainingError, did_you_mean, quote
from finetune.groups.selectors import LayerGroup
from finetune.optimizers.unwrap import unwrap
from finetune.training.fast.calls import limit_next_call, steps_done
from finetune.training.gradient_norms import auto_rgn, check_ratios, ratio_function
from finetune.training.snapshot import no_trace

AUTO_RGN_BATCHES = 4  # that relative gradient norms are measured over before an epoch


@dataclass(frozen=True)
class Until:
    """Ends a phase when a metric no longer gets better: Keras' `EarlyStopping`, fresh in every phase.

    Attributes:
        monitor: The metric, as the logs call it.
        patience: Epochs without progress that are borne.
        min_delta: The least change that counts as progress.
        mode: Whether less is better (`min`) or more (`max`); `auto` goes by the metric.
        restore_best: Whether the phase ends with the weights of its best epoch.
    """

    monitor: str = "val_loss"
    patience: int = 0
    min_delta: float = 0.0
    mode: str = "auto"
    restore_best: bool = False


@dataclass(frozen=True)
class Plateau:
    """Lowers the rates when a metric no longer gets better: Keras' `ReduceLROnPlateau`, fresh in every phase.

    Attributes:
        monitor: The metric, as the logs call it.
        factor: What all rates are multiplied with, in (0, 1).
        patience: Epochs without progress that are borne.
        min_delta: The least change that counts as progress.
        mode: As in `Until`.
        cooldown: Epochs after a reduction in which nothing is counted.
    """

    monitor: str = "val_loss"
    factor: float = 0.1
    patience: int = 10
    min_delta: float = 1e-4
    mode: str = "auto"
    cooldown: int = 0


def stopping(until: Until | None) -> list[keras.callbacks.Callback]:
    """The callbacks that end a phase."""
    if until is None:
        return []
    early = keras.callbacks.EarlyStopping(
        monitor=until.monitor,
        patience=until.patience,
        min_delta=until.min_delta,  # pyright: ignore[reportArgumentType] - Keras' default makes it an int
        mode=until.mode,
        restore_best_weights=until.restore_best,
    )
    return [_Monitored(until.monitor, "until"), early]


def plateaus(plateau: Plateau | None) -> list[keras.callbacks.Callback]:
    """The callbacks that lower the rates."""
    if plateau is None:
        return []
    reduce = keras.callbacks.ReduceLROnPlateau(
        monitor=plateau.monitor,
        factor=plateau.factor,
        patience=plateau.patience,
        min_delta=plateau.min_delta,
        mode=plateau.mode,
        cooldown=plateau.cooldown,
        verbose=0,
    )
    return [_Monitored(plateau.monitor, "reduce_on_plateau"), reduce]


class _Monitored(keras.callbacks.Callback):
    """Holds that a metric is there; Keras would only warn, and the phase never end."""

    def __init__(self, monitor: str, where: str):
        super().__init__()
        self.monitor, self.where = monitor, where

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        known = [name for name in logs or {} if not name.startswith("learning_rate/")]
        if self.monitor not in known:
            validation = " One that begins with `val_` needs validation examples." * self.monitor.startswith("val_")
            raise TrainingError(
                f"`{self.where}` watches a metric that is measured. Received `{self.monitor}`; there are "
                f"{quote(known)}.{validation}{did_you_mean(self.monitor, known)}"
            )


class Watch(keras.callbacks.Callback):
    """Counts the epochs of a phase, ends it after its steps, and looks after every epoch whether all is as planned.

    Args:
        check: Raises if it is not.
        steps: Steps after which the phase ends; `None` leaves that to the epochs.
    """

    def __init__(self, check: Callable[[], None], steps: int | None):
        super().__init__()
        self.check, self.steps = check, steps
        self.epochs = self._before = self._done = self._first = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epochs += 1
        self._before = self._done

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._first = batch
        if self.steps is not None:
            limit_next_call(self.model, self.steps - self._before - batch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        done = steps_done(self.model, first=self._first, last=batch)
        self._done = self._before + min(done, (self.params or {}).get("steps") or done)
        if self.steps is not None and self._done >= self.steps:
            model: Any = self.model
            model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.check()


class AutoRgn(keras.callbacks.Callback):
    """Measures the relative gradient norms before every epoch and puts rates that are equal in proportion to them.

    Args:
        groups: The groups that are trained, each with the weights that are.
        batches: Batches of inputs and targets to measure over.

    References:
        Lee et al. (2023), Surgical Fine-Tuning Improves Adaptation to Distribution Shifts, section 3 (Auto-RGN),
        https://arxiv.org/abs/2210.11466
    """

    def __init__(self, groups: Sequence[LayerGroup], batches: tf.data.Dataset):
        super().__init__()
        self.groups, self.batches = groups, batches
        self._ratios: Callable[..., tf.Tensor] | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        self._ratios = self._ratios or ratio_function(model, self.groups)
        with no_trace(model):
            measured = [self._ratios(x, y).numpy() for x, y in self.batches]
        found = {group.name: column for group, column in zip(self.groups, np.transpose(measured), strict=True)}
        check_ratios(found)
        optimizer = unwrap(model.optimizer)
        for name, share in auto_rgn({name: float(column.mean()) for name, column in found.items()}, 1.0).items():
            optimizer.share_rate(name, share)
