"""`reduce_on_plateau`: a phase lowers its rates when a metric no longer gets better."""

from dataclasses import dataclass
from typing import Any

import keras

from finetune.training.phases.watched_metric import MetricExists, Validates


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
    # It writes `learning_rate` of the optimizer, which scales all groups by the same ratio; see `GroupedOptimizer`.
    reduce = _ReduceOnPlateau(
        monitor=plateau.monitor,
        factor=plateau.factor,
        patience=plateau.patience,
        min_delta=plateau.min_delta,
        mode=plateau.mode,
        cooldown=plateau.cooldown,
        verbose=0,
    )
    # First the check: without the metric, the other would never lower a rate, and say nothing.
    return [MetricExists(plateau.monitor, "reduce_on_plateau", validates), reduce]


class _ReduceOnPlateau(keras.callbacks.ReduceLROnPlateau):
    """Keras' own, except that it does not warn of epochs without validation."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # Epochs without it do not count for the patience either; `MetricExists` has seen to real mistakes.
        if self.monitor in (logs or {}):
            super().on_epoch_end(epoch, logs)
