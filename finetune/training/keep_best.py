"""Keeps the weights with which a metric was best, to be those of the trained model."""

from typing import Any

import keras

_NEVER = 2**31  # a patience


class KeepBest(keras.callbacks.EarlyStopping):
    """Remembers the best weights of a training: Keras' `EarlyStopping`, which never stops here.

    Args:
        monitor: Name of the metric in the logs, such as `val_loss`.
        min_delta: The least change that counts as better, >= 0.
        mode: `min`, `max`, or `auto`, which decides by the metric.

    Attributes:
        place: The epoch of the best weights, from 1, and the step in it; 0 for its end.
    """

    def __init__(self, monitor: str, min_delta: float = 0.0, mode: str = "auto"):
        super().__init__(monitor, min_delta, patience=_NEVER, mode=mode, restore_best_weights=True)  # pyright: ignore[reportArgumentType] - Keras' default makes it an int
        self.place: tuple[int, int] = (0, 0)
        self._begun = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self._begun:  # `fit` is called once for every phase
            super().on_train_begin(logs)
            self._begun = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.on_evaluation(epoch, 0, logs or {})

    def on_evaluation(self, epoch: int, step: int, logs: dict[str, Any]) -> None:
        """Looks at the metrics of an evaluation.

        Args:
            epoch: The epoch, from 0.
            step: Steps of the epoch that are made; 0 at its end.
            logs: The metrics.
        """
        if self.monitor in logs:
            before = self.best_weights, self.best
            super().on_epoch_end(epoch, logs)
            if before[0] is None or self.best != before[1]:
                self.place = epoch + 1, step

    @property
    def _value(self) -> float:
        best: Any = self.best  # `None` before the first evaluation
        return float(best)

    def restore(self, model: keras.Model) -> str:
        """Gives the model the best weights; returns what is said of it, an empty text where nothing was measured."""
        if self.best_weights is None:
            return ""
        model.set_weights(self.best_weights)
        epoch, step = self.place
        after = f"step {step} of epoch {epoch}" if step else f"epoch {epoch}"
        return f"kept: the weights after {after}, with the best {self.monitor}, {self._value:.4f}"

    def to_json(self) -> dict[str, Any] | None:
        """Returns metric, value and place of the best weights; `None` where nothing was measured."""
        if self.best_weights is None:
            return None
        return {"monitor": self.monitor, "value": self._value, "epoch": self.place[0], "step": self.place[1]}
