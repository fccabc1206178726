"""The metric that `until` or `reduce_on_plateau` watches must be measured."""

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
    """Checks that a metric is measured. Keras would only warn, and the phase would never end."""

    def __init__(self, monitor: str, setting: str, validates: Validates):
        super().__init__()
        self.monitor, self.setting, self.validates = monitor, setting, validates

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
