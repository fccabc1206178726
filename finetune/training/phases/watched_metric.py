"""The metric that `until` or `reduce_on_plateau` watches must be measured."""

import math
from collections.abc import Callable
from typing import Any

import keras

from finetune.errors import TrainingError, did_you_mean, quote

Validates = Callable[[int], bool]


def validates_after(epoch: int, frequency: Any) -> bool:
    """Whether `fit` validates after an epoch, counted from 0, as its `validation_freq` says: a number, or epochs."""
    # Keras counts epochs from 1 here, over all phases: a list of epochs is of the whole run.
    return (epoch + 1) % frequency == 0 if isinstance(frequency, int) else epoch + 1 in frequency


class MetricExists(keras.callbacks.Callback):
    """Checks that a metric is measured, and is a number. Keras would only warn, or count it as no progress."""

    def __init__(self, monitor: str, setting: str, validates: Validates):
        super().__init__()
        self.monitor, self.setting, self.validates = monitor, setting, validates
        self.measured, self.finite = 0, 0  # epochs

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.measured, self.finite = 0, 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.monitor.startswith("val_") and not self.validates(epoch):
            return
        # Rates are in the logs for the loggers, and would never be what someone watches.
        measured = [name for name in logs or {} if not name.startswith("learning_rate/")]
        if self.monitor not in measured:
            advice = " Metrics that begin with `val_` need validation examples." * self.monitor.startswith("val_")
            raise TrainingError(
                f"The metric that `{self.setting}` watches must be measured. Received `{self.monitor}`; measured are "
                f"{quote(measured)}.{advice}{did_you_mean(self.monitor, measured)}"
            )
        self.measured += 1
        self.finite += math.isfinite((logs or {})[self.monitor])

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.measured and not self.finite:
            raise TrainingError(
                f"The metric that `{self.setting}` watches must be a number. `{self.monitor}` was none in all "
                f"{self.measured} epochs, so none of them counted as progress. Look at the validation examples and at "
                "the loss, or watch another metric."
            )
