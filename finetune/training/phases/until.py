"""`until`: a phase ends early when a metric no longer gets better."""

from dataclasses import dataclass
from typing import Any

import keras

from finetune.training.phases.watched_metric import MetricExists, Validates


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
    # First the check: without the metric, the other would never stop the phase, and say nothing.
    return [MetricExists(until.monitor, "until", validates), early_stopping]


class _EarlyStopping(keras.callbacks.EarlyStopping):
    """Keras' own, except that it does not warn of epochs without validation."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # Epochs without it do not count for the patience either; `MetricExists` has seen to real mistakes.
        self.on_evaluation(epoch, 0, logs or {})

    def on_evaluation(self, epoch: int, step: int, logs: dict[str, Any]) -> None:
        """Looks at the metrics of an evaluation.

        Args:
            epoch: The epoch, from 0.
            step: Steps of the epoch that are made; 0 at its end.
            logs: The metrics.
        """
        if self.monitor in logs:
            super().on_epoch_end(epoch, logs)
