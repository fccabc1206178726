"""The Keras callbacks of a phase: what ends it, what moves its rates, and what watches it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import TrainingError, did_you_mean, quote
from finetune.groups.selectors import LayerGroup
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.fast.steps_per_call import limit_next_call, steps_done
from finetune.training.gradient_norms import auto_rgn, check_ratios, ratio_function
from finetune.training.snapshot import no_trace

Validates = Callable[[int], bool]
AUTO_RGN_BATCHES = 4  # that relative gradient norms are measured over before an epoch


@dataclass(frozen=True)
class Until:
    """Ends a phase when a metric no longer gets better: Keras' `EarlyStopping`, new in every phase.

    Attributes:
        monitor: Name of the metric in the logs, such as `val_loss`.
        patience: Epochs without progress after which the phase still goes on, >= 0. With `validation_freq`, only epochs
            with a validation count.
        min_delta: The least change that counts as progress, >= 0.
        mode: Whether less is better (`min`) or more (`max`); `auto` decides by the metric.
        restore_best: Whether the phase ends with the weights of its best epoch.
    """

    monitor: str = "val_loss"
    patience: int = 0
    min_delta: float = 0.0
    mode: str = "auto"
    restore_best: bool = False


@dataclass(frozen=True)
class Plateau:
    """Lowers all rates when a metric no longer gets better: Keras' `ReduceLROnPlateau`, new in every phase.

    Attributes:
        monitor: Name of the metric in the logs, such as `val_loss`.
        factor: What all rates are multiplied by, between 0 and 1, both excluded.
        patience: Epochs without progress after which the rates are still kept, >= 0.
        min_delta: The least change that counts as progress, >= 0.
        mode: As in `Until`.
        cooldown: Epochs after a reduction in which nothing is counted, >= 0.
    """

    monitor: str = "val_loss"
    factor: float = 0.1
    patience: int = 10
    min_delta: float = 1e-4
    mode: str = "auto"
    cooldown: int = 0


def until_callbacks(until: Until | None, validates: Validates = lambda epoch: True) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that end a phase when its metric no longer gets better; none for `None`.

    Args:
        until: The metric, and how long is waited.
        validates: Says whether an epoch, counted from 0, is followed by a validation. In the others a metric that
            begins with `val_` is not looked at.
    """
    if until is None:
        return []
    early_stopping = _EarlyStopping(
        monitor=until.monitor,
        patience=until.patience,
        min_delta=until.min_delta,  # pyright: ignore[reportArgumentType] - Keras' default makes it an int
        mode=until.mode,
        restore_best_weights=until.restore_best,
    )
    return [_MetricExists(until.monitor, "until", validates), early_stopping]


def plateau_callbacks(
    plateau: Plateau | None, validates: Validates = lambda epoch: True
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that lower the rates when a metric no longer gets better; none for `None`.

    Args:
        plateau: The metric, and what is done.
        validates: As for `until_callbacks`.
    """
    if plateau is None:
        return []
    reduce = _ReduceOnPlateau(
        monitor=plateau.monitor,
        factor=plateau.factor,
        patience=plateau.patience,
        min_delta=plateau.min_delta,
        mode=plateau.mode,
        cooldown=plateau.cooldown,
        verbose=0,
    )
    return [_MetricExists(plateau.monitor, "reduce_on_plateau", validates), reduce]


class _EarlyStopping(keras.callbacks.EarlyStopping):
    """Keras' own, except that it does not warn of epochs without validation."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.monitor in (logs or {}):
            super().on_epoch_end(epoch, logs)


class _ReduceOnPlateau(keras.callbacks.ReduceLROnPlateau):
    """Keras' own, except that it does not warn of epochs without validation."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.monitor in (logs or {}):
            super().on_epoch_end(epoch, logs)


class _MetricExists(keras.callbacks.Callback):
    """Checks that a metric is measured. Keras would only warn, and the phase would never end."""

    def __init__(self, monitor: str, setting: str, validates: Validates):
        super().__init__()
        self.monitor, self.setting, self.validates = monitor, setting, validates

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.monitor.startswith("val_") and not self.validates(epoch):
            return
        measured = [name for name in logs or {} if not name.startswith("learning_rate/")]
        if self.monitor not in measured:
            advice = " Metrics that begin with `val_` need validation examples." * self.monitor.startswith("val_")
            raise TrainingError(
                f"The metric that `{self.setting}` watches must be measured. Received `{self.monitor}`; measured are "
                f"{quote(measured)}.{advice}{did_you_mean(self.monitor, measured)}"
            )


class EpochWatch(keras.callbacks.Callback):
    """Counts the epochs of a phase, and checks after each of them that the model is still as planned.

    Args:
        check: Raises an error if it is not.

    Attributes:
        epochs: Epochs begun.
    """

    def __init__(self, check: Callable[[], None]):
        super().__init__()
        self.check = check
        self.epochs = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epochs += 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.check()


class StopAfterSteps(keras.callbacks.Callback):
    """Ends a phase after a number of steps, in the middle of an epoch if need be.

    Args:
        steps: The number, >= 1.
    """

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps
        self._of_former_epochs = self._made = self._first = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._of_former_epochs = self._made

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._first = batch
        limit_next_call(self.model, self.steps - self._of_former_epochs - batch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        done = steps_done(self.model, first=self._first, last=batch)
        # A call of Keras' own function may be planned beyond the end of the epoch.
        self._made = self._of_former_epochs + min(done, (self.params or {}).get("steps") or done)
        if self._made >= self.steps:
            model: Any = self.model
            model.stop_training = True


class AutoRgn(keras.callbacks.Callback):
    """Sets the rates in proportion to the relative gradient norms, which it measures before every epoch.

    The rates are equal before; each group's is then multiplied by its norm divided by the largest one.

    Args:
        groups: The groups that are trained, each with those of its weights that are.
        batches: Batches to measure over, of inputs, targets and weights of rows; iterated over before every epoch.

    References:
        Lee et al. (2023), Surgical Fine-Tuning Improves Adaptation to Distribution Shifts, section 3 (Auto-RGN),
        https://arxiv.org/abs/2210.11466
    """

    def __init__(self, groups: Sequence[LayerGroup], batches: Iterable[tuple[Any, ...]]):
        super().__init__()
        self.groups, self.batches = groups, batches
        self._ratios: Callable[..., tf.Tensor] | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        self._ratios = self._ratios or ratio_function(model, self.groups)
        with no_trace(model):  # the measurement runs the model in training mode, which updates statistics and seeds
            measured = [self._ratios(*batch).numpy() for batch in self.batches]  # shape `(batches, groups)`
        norms = {group.name: column for group, column in zip(self.groups, np.transpose(measured), strict=True)}
        check_ratios(norms)
        optimizer = unwrap(model.optimizer)
        for name, share in auto_rgn({name: float(column.mean()) for name, column in norms.items()}, 1.0).items():
            optimizer.share_rate(name, share)
