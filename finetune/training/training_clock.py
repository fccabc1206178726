"""How long the parts of training take: steps, validation, and what comes between two epochs; phase by phase.

A run has no clock. `finetune.training.rehearsal` gives `train` one, which also ends a phase as soon as it knows enough.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import keras

from finetune.training.fast.steps_per_call import steps_done
from finetune.training.features.cache import Features


@dataclass(frozen=True)
class EpochTimes:
    """Where the wall time of an epoch went, in seconds.

    Attributes:
        steps: From the beginning of the epoch to the end of its last step.
        validation: The validation.
        rest: Everything else: metrics, logs, weights that are saved.
        begin: How much of `steps` comes once in an epoch: by how much its first call took longer than the others.
        validation_begin: How much of `validation` comes once in it, likewise.
    """

    steps: float
    validation: float
    rest: float
    begin: float = 0.0
    validation_begin: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the epoch."""
        return self.steps + self.validation + self.rest


@dataclass
class PhaseTimes:
    """What was measured in a phase.

    Attributes:
        epochs: The epochs, of which the first includes what is compiled in it.
        step_seconds: Seconds of a step, for each call after the first epoch; a call may make several steps.
        features: The cached features that the phase is trained on, if it is.
    """

    epochs: list[EpochTimes] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    features: Features | None = None


class TrainingClock(keras.callbacks.Callback):
    """Measures each phase, and ends it when its epochs after the first have taken long enough.

    Put it last in the list of callbacks, so that what the others do at the end of an epoch is measured, too.

    Args:
        seconds: How long to measure, beyond the first epoch. At least one epoch is measured.

    Attributes:
        phases: What was measured, phase by phase.
    """

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.phases: list[PhaseTimes] = []

    def begin_phase(self, features: Features | None) -> None:
        """Notes that a phase begins, after its features were computed."""
        self.phases.append(PhaseTimes(features=features))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._begun = self._stepped = time.perf_counter()
        self._validated, self._first = 0.0, 0
        self._calls: list[tuple[float, int]] = []  # seconds and steps
        self._test_calls: list[tuple[float, int]] = []

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._first = batch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        before, self._stepped = self._stepped, time.perf_counter()
        # Keras gives the last step of the planned call, also where the epoch ended in it.
        last = min(batch, ((self.params or {}).get("steps") or batch + 1) - 1)
        steps = steps_done(self.model, first=self._first, last=last) - self._first
        self._calls.append((self._stepped - before, max(steps, 1)))
        if self.phases[-1].epochs:
            self.phases[-1].step_seconds.append((self._stepped - before) / max(steps, 1))

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._test_begun = self._tested = time.perf_counter()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        before, self._tested = self._tested, time.perf_counter()
        self._test_calls.append((self._tested - before, 1))

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._validated += time.perf_counter() - self._test_begun

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        epochs, steps = self.phases[-1].epochs, self._stepped - self._begun
        rest = time.perf_counter() - self._begun - steps - self._validated
        once = _more_in_first(self._calls), _more_in_first(self._test_calls)
        epochs.append(EpochTimes(steps, self._validated, rest, *once))
        if len(epochs) > 1 and sum(each.total for each in epochs[1:]) >= self.seconds:
            model: Any = self.model
            model.stop_training = True


def _more_in_first(calls: Sequence[tuple[float, int]]) -> float:
    """Returns by how many seconds the first call of an epoch took longer than its steps do in the others."""
    others = [seconds / steps for seconds, steps in calls[1:]]
    return max(calls[0][0] - calls[0][1] * median(others), 0.0) if len(others) > 1 else 0.0
