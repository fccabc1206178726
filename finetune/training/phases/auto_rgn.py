"""`auto_rgn`: before every epoch, the rate of each group follows its relative gradient norm."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.groups.selectors import LayerGroup
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.gradient_norms import auto_rgn, check_ratios, ratio_function
from finetune.training.snapshot import no_trace

Measured = Iterable[tuple[Any, ...]] | Callable[[int], Iterable[tuple[Any, ...]]]
AUTO_RGN_BATCHES = 4  # that relative gradient norms are measured over before an epoch


class AutoRgn(keras.callbacks.Callback):
    """Sets the rates in proportion to the relative gradient norms, which it measures before every epoch.

    The rates are equal before; each group's is then multiplied by its norm divided by the largest one.

    Args:
        groups: The groups that are trained, each with those of its weights that are.
        batches: Batches to measure over, of inputs, targets and weights of rows; iterated over before every epoch. Or a
            function that returns them for the number of an epoch: a training that goes on then measures over the same.

    References:
        Lee et al. (2023), Surgical Fine-Tuning Improves Adaptation to Distribution Shifts, section 3 (Auto-RGN),
        https://arxiv.org/abs/2210.11466
    """

    def __init__(self, groups: Sequence[LayerGroup], batches: Measured):
        super().__init__()
        self.groups, self.batches = groups, batches
        self._ratios: Callable[..., tf.Tensor] | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        # Compiled once for a phase: the weights that are trained are the same in all of its epochs.
        self._ratios = self._ratios or ratio_function(model, self.groups)
        batches = self.batches(epoch) if callable(self.batches) else self.batches
        with no_trace(model):  # the measurement runs the model in training mode, which updates statistics and seeds
            measured = [self._ratios(*batch).numpy() for batch in batches]  # shape `(batches, groups)`
        norms = {group.name: column for group, column in zip(self.groups, np.transpose(measured), strict=True)}
        # rate of a group = rate * mean norm of the group / largest mean norm; without a gradient there is no ratio.
        check_ratios(norms)
        optimizer = unwrap(model.optimizer)
        for name, share in auto_rgn({name: float(column.mean()) for name, column in norms.items()}, 1.0).items():
            optimizer.share_rate(name, share)
