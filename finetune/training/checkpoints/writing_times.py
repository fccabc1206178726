"""When a checkpoint is due: after so many steps or seconds, and before the first step whose rate falls."""

import math
import time

_SHARE = 0.01  # of the training time that writing takes at most, if no interval is given


class WritingTimes:
    """Says after which steps a checkpoint is written.

    Args:
        every_seconds: Seconds after which it is at the latest, > 0.
        every_steps: Steps after which it is, >= 1, and then at no other time within an epoch; `None` for seconds.

    Attributes:
        cooldown_at: The step from which rates fall; `None` where they do not.
    """

    def __init__(self, every_seconds: float, every_steps: int | None):
        self.every_seconds, self.every_steps = every_seconds, every_steps
        self.cooldown_at: int | None = None
        self._next_time, self._next_step, self._copied = 0.0, 0, 0.0
        self._steps_before_epoch, self._longest_call = 0, 1

    def begin_epoch(self, step: int, *, made: int) -> None:
        """Counts from the begin of an epoch on.

        Args:
            step: Steps of the epoch that were made by the process before.
            made: Steps that were made before the epoch.
        """
        self._steps_before_epoch, self._next_step = made, step + (self.every_steps or 0)

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is written after a step of the epoch; asked once for each."""
        if self.every_steps is None:
            return self.seconds_have_passed()
        if step < self._next_step:
            return False
        self._next_step = (step // self.every_steps + 1) * self.every_steps
        return True

    def seconds_have_passed(self) -> bool:
        """Whether the interval in seconds is over, as it is at the begin of a training."""
        return time.monotonic() >= self._next_time

    def is_last_before_cooldown(self, step: int, size: int) -> bool:
        """Whether the next call, of as many steps as any so far, would make a step at a rate that falls.

        Args:
            step: Steps of the epoch that are made.
            size: Steps of the call that made them.
        """
        made, self._longest_call = self._steps_before_epoch + step, max(self._longest_call, size)
        return self.cooldown_at is not None and made <= self.cooldown_at < made + self._longest_call

    def begin_training(self) -> None:
        """Counts the seconds from now on; the first checkpoint is due at once."""
        self._next_time = time.monotonic()

    def copied(self, seconds: float) -> None:
        """Notes how long copying a checkpoint took, which is now being written: until then no other is due."""
        self._next_time, self._copied = math.inf, seconds

    def written(self, seconds: float) -> None:
        """Notes how long writing the checkpoint took. On a CPU a thread takes that from the steps, too."""
        self._next_time = time.monotonic() + min(self.every_seconds, (self._copied + seconds) / _SHARE)
