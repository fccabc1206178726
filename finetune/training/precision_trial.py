"""How long a training step takes in a type, and how good its loss is, for `train.mixed_precision: auto`."""

import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from finetune.data.batches import training_batches
from finetune.data.examples import Examples
from finetune.training.fast.fast_loop import loop_of_replicas

MOST_STEPS = 30
MOST_SECONDS = 5.0  # behind the first step, which traces
_FASTER = 0.9  # a smaller gain is within what the same step varies by
_WORSE = 0.02  # of the loss: what two orders of the same batches differ by


@dataclass(frozen=True)
class PrecisionTrial:
    """What steps in a type showed.

    Attributes:
        steps: How many were made.
        milliseconds: What the fastest of them took: other programs only ever make one slower.
        first: The loss of the first batch, before any update.
        loss: The mean loss of all steps.
    """

    steps: int
    milliseconds: float
    first: float
    loss: float

    def is_faster_than(self, other: "PrecisionTrial") -> bool:
        """Whether the steps are faster than those of another trial by more than they vary."""
        return self.milliseconds <= _FASTER * other.milliseconds

    def is_as_good_as(self, other: "PrecisionTrial") -> bool:
        """Whether the loss is that of another trial of as many steps, but for what does not decide anything."""
        size = max(abs(other.first), abs(other.loss))
        return bool(self.loss <= other.loss + _WORSE * size)  # no number is not


def try_precision(
    model: Any, examples: Examples, *, batch_size: int, most_steps: int = MOST_STEPS, most_seconds: float = MOST_SECONDS
) -> PrecisionTrial:
    """Trains a model for a few steps; it is of no use afterwards.

    Args:
        model: Compiled.
        examples: What it is trained on; the same rows are taken each time.
        batch_size: Rows in a batch, >= 1.
        most_steps: Steps to make, >= 2, unless they take too long.
        most_seconds: Seconds behind the first step after which no further one begins.
    """
    rows = len(examples.train)
    few = examples.train.select(np.linspace(0, rows - 1, min(most_steps * batch_size, rows)).astype(int))
    options: dict[str, Any] = {"sample_weight": few.weights, "augmentation": examples.augmentation}
    batches = training_batches(few.x, few.y, batch_size=batch_size, **options)
    watch = _StepTimes(most_seconds)
    model.steps_per_execution, model.train_function = 1, None
    model.fit(
        batches,
        steps_per_epoch=most_steps,
        epochs=1,
        verbose=0,
        shuffle=False,
        callbacks=[*loop_of_replicas(model), watch],
    )
    steady = watch.seconds[2:] or watch.seconds[1:] or watch.seconds  # Keras may trace the second step again
    return PrecisionTrial(len(watch.losses), 1000 * min(steady), watch.losses[0], watch.losses[-1])


class _StepTimes(keras.callbacks.Callback):
    """Notes the seconds of each step, and the mean loss up to it; ends training when there was time enough."""

    def __init__(self, most_seconds: float):
        super().__init__()
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._most_seconds = most_seconds

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.losses.append(float((logs or {})["loss"]))  # waits for the step
        self.seconds.append(time.perf_counter() - self._begun)
        if sum(self.seconds[1:]) > self._most_seconds:
            model: Any = self.model
            model.stop_training = True
