"""Ends a training after a time: in the last tenth of it the rates fall to 0, as at the end of a planned training."""

import time
from collections.abc import Callable
from typing import Any

import keras

from finetune.optimizers.group_rates import as_float
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.fast.steps_per_call import steps_done

COOLDOWN_SHARE = 0.1  # of the time, at its end
LEAST_FACTOR = 1e-3  # not 0, from which the rates could not be taken up again where the time is extended
_COOL = 0.1  # a rate below this share of its highest has been cooled down by its schedule


class TimeLimit(keras.callbacks.Callback):
    """Ends a training when its time is over, after a cooldown in the last tenth of it.

    In the cooldown, all rates are multiplied by a factor that falls from 1 to 0 in a straight line with the time. A
    training that will end before the limit is not touched, nor are rates that their schedule has cooled down.

    Args:
        seconds: The limit, > 0, from the begin of the training on, with validation and in all processes.
        total_steps: Steps of the whole training.
        report: Called with a sentence when the cooldown begins.
        clock: Returns the present time in seconds.

    Attributes:
        used: Seconds that were used, also in the processes before.
        steps_made: Steps that were made in them.
        factor: What all rates are multiplied by now.
        reached: Whether the time was over before the training was.
    """

    not_resumed = ("_last", "_first")

    def __init__(
        self,
        seconds: float,
        total_steps: int,
        report: Callable[[str], None] = lambda sentence: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__()
        self.seconds, self.total_steps, self.report, self.clock = seconds, total_steps, report, clock
        self.used, self.steps_made, self.factor, self.reached = 0.0, 0, 1.0, False
        self.cools: bool | None = None  # decided when the cooldown would begin
        self._highest = 0.0
        self._last: float | None = None
        self._first = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._last = self.clock() if self._last is None else self._last

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # Once an epoch: reading a rate takes longer than a small step.
        self._highest = max(self._highest, self._rate())

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._first = batch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        last = min(batch, ((self.params or {}).get("steps") or batch + 1) - 1)
        self.steps_made += steps_done(self.model, first=self._first, last=last) - self._first
        self._tick()
        begin = self.seconds * (1 - COOLDOWN_SHARE)
        if self.used < begin or self.reached:
            return
        if self.cools is None:
            self.cools = self._decide()
        if self.cools:
            left = (self.seconds - self.used) / (self.seconds - begin)
            self._multiply(max(left, LEAST_FACTOR) / self.factor)
        self._stop_if_over()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._tick()
        self._stop_if_over()

    def summary(self) -> str:
        """Returns a sentence about what the limit has cut off; an empty text where it has cut off nothing."""
        if not self.reached:
            return ""
        return (
            f"The time limit of {self.seconds:g} seconds ended the training after {self.steps_made:,} of "
            f"{self.total_steps:,} steps"
            + (", with rates that fell to 0 in its last tenth" if self.cools else "")
            + ". Allow more time, or train for fewer epochs."
        )

    def _tick(self) -> None:
        now = self.clock()
        self.used, self._last = self.used + now - (now if self._last is None else self._last), now

    def _decide(self) -> bool:
        """Whether the training would be cut off, and its rates have not cooled down."""
        seconds_left = (self.total_steps - self.steps_made) * self.used / max(self.steps_made, 1)
        rate = self._rate()
        if seconds_left <= self.seconds - self.used or rate < _COOL * self._highest:
            return False
        self.report(
            f"cooldown: the time limit of {self.seconds:g} seconds ends the training before its {self.total_steps:,} "
            f"steps are made; from step {self.steps_made:,} on the rates fall to 0"
        )
        return True

    def _rate(self) -> float:
        model: Any = self.model
        return as_float(unwrap(model.optimizer).learning_rate)

    def _multiply(self, ratio: float) -> None:
        model: Any = self.model
        rate = self._rate()
        if rate and ratio != 1:
            unwrap(model.optimizer).learning_rate = rate * ratio
            self.factor *= ratio

    def _stop_if_over(self) -> None:
        model: Any = self.model
        if self.used >= self.seconds and self.steps_made < self.total_steps:
            self.reached = model.stop_training = True
