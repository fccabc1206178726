"""The metric that `until` or `reduce_on_plateau` watches must be measured."""

from collections.abc import Callable
from typing import Any

import keras

from finetune.errors import TrainingError, did_you_mean, quote

Validates = Callable[[int], bool]


class MetricExists(keras.callbacks.Callback):
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
