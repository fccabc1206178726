"""The learning rates of an optimizer's groups, written together so that their ratios are kept.

Each rate has one variable, which is all that a compiled step reads of it:

    rate of a group = rate variable                        with `rate variable = base * scale`
                    = schedule(step) * rate variable       for a scheduled group, whose base is 1

`base` is one number per group: the bases hold the ratios. `scale` is one number for all groups: writing the optimizer's
`learning_rate` sets it so that the last group has the rate that was written.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import GroupError, quote
from finetune.optimizers.schedules import constant

_LARGEST = float(np.finfo(np.float32).max)


class ScaledSchedule:
    """`schedule(step) * multiplier`: the learning rate of a scheduled child, which can still be written.

    Keras refuses to write a rate that comes from a schedule. But its setter calls `assign` on what it holds in place of
    the rate's variable, and its getter calls that object, so here `child.learning_rate = x` sets the multiplier.

    The schedule may be replaced, and count from a later step than the first: see `follow`. That step is a variable, so
    that a compiled step which was kept from an earlier phase counts from where the phase begins this time.

    Args:
        schedule: A schedule of Keras, called with the step, or a callable without arguments.
        step: The optimizer's step counter.
        multiplier: A scalar variable.
    """

    def __init__(self, schedule: Callable[..., Any], step: keras.Variable, multiplier: keras.Variable):
        self.schedule, self.step, self.multiplier = schedule, step, multiplier
        self._from_now, self._warmup_steps = False, 0
        self._start: tf.Variable | None = None

    def __call__(self) -> tf.Tensor:
        return self.scheduled() * self.multiplier

    def follow(self, schedule: Callable[..., Any], *, from_now: bool, warmup_steps: int) -> None:
        """Replaces the schedule in steps that are traced from here on.

        Args:
            schedule: The new schedule.
            from_now: Whether it counts the steps from now, instead of from the first step.
            warmup_steps: Steps from now on in which the rate rises linearly from 0 to that of the schedule.
        """
        self.schedule, self._from_now, self._warmup_steps = schedule, from_now, warmup_steps
        # Assigned if it exists: a step that was compiled in an earlier phase reads this same variable.
        now = int(as_float(self.step))
        if self._start is not None:
            self._start.assign(now)
        elif from_now or warmup_steps:
            self._start = tf.Variable(tf.constant(now, tf.int64), trainable=False)

    def scheduled(self) -> tf.Tensor:
        """Returns the schedule's rate at the present step, without the multiplier."""
        takes_step = isinstance(self.schedule, keras.optimizers.schedules.LearningRateSchedule)
        step: Any = self._steps_since_start() if self._from_now else self.step
        rate = tf.cast(self.schedule(step) if takes_step else self.schedule(), tf.float32)
        if self._warmup_steps:
            rate *= tf.minimum(tf.cast(self._steps_since_start(), tf.float32) / self._warmup_steps, 1.0)
        return rate

    def _steps_since_start(self) -> tf.Tensor:
        assert self._start is not None
        return tf.cast(self.step, tf.int64) - self._start

    def assign(self, value: Any) -> None:
        """Sets the multiplier so that the rate is `value` at the present step; warns where the schedule gives 0."""
        scheduled = as_float(self.scheduled())
        if scheduled:
            self.multiplier.assign(as_float(value) / scheduled)
        else:
            _warn_unreachable(as_float(value))

    def get_config(self) -> dict[str, Any]:
        """Returns the schedule's config: Keras serializes what an optimizer holds as its rate."""
        return {"schedule": keras.saving.serialize_keras_object(self.schedule)}


@dataclass
class GroupRate:
    """The rate of one group.

    Attributes:
        rate_variable: The child's learning rate; for a scheduled child, the multiplier of its schedule.
        schedule: The child's schedule, if it has one.
        base: The value of the rate variable at scale 1.
        whole: The base without the share that `GroupRates.share` multiplied it by.
        written: The value of the rate variable when it was last written here.
    """

    rate_variable: keras.Variable
    schedule: ScaledSchedule | None = None
    base: float = field(init=False)
    whole: float = field(init=False)
    written: float = field(init=False)

    def __post_init__(self) -> None:
        self.base = self.whole = self.written = as_float(self.rate_variable)

    @property
    def scheduled(self) -> float:
        """The schedule's rate at the present step; 1 without a schedule."""
        return as_float(self.schedule.scheduled()) if self.schedule else 1.0

    def write(self, value: float) -> None:
        """Sets the rate variable."""
        self.rate_variable.assign(value)
        self.written = as_float(self.rate_variable)  # read back: float32 rounds

    def follow(self, rate: Any, step: keras.Variable, *, from_now: bool, warmup_steps: int) -> Any:
        """Replaces the rate at scale 1. The rate variable remains, so that files hold the same state in every phase.

        Args:
            rate: A number or a schedule.
            step: The optimizer's step counter.
            from_now: Whether a schedule counts the steps from now.
            warmup_steps: Steps from now on in which the rate rises linearly from 0.

        Returns:
            What the child must hold as its rate: the rate variable, or a schedule.
        """
        if not callable(rate) and not warmup_steps:
            self.schedule = None
            self.base = self.whole = float(rate)
            return self.rate_variable
        schedule = rate if callable(rate) else constant(rate)
        self.schedule = self.schedule or ScaledSchedule(schedule, step, self.rate_variable)
        self.schedule.follow(schedule, from_now=from_now, warmup_steps=warmup_steps)
        # The schedule has the rate in it: the variable only multiplies.
        self.base = self.whole = 1.0
        return self.schedule


class GroupRates:
    """The rates of all groups.

    Args:
        rates: Input to output.
    """

    def __init__(self, rates: Sequence[GroupRate]):
        self._rates = tuple(rates)
        self._scale = 1.0

    def write_last(self, value: Any) -> None:
        """Sets the rate of the last group to `value` and scales all others by the same ratio.

        Where the last group's schedule gives 0, as at the first step of many warm-ups, no multiple of it is `value`:
        all rates remain, with a warning unless `value` is 0.

        Raises:
            GroupError: If `value` is a schedule, or the rate of a group would be negative or not finite.
        """
        if callable(value):
            raise GroupError(
                f"Each group has its own rate or schedule. Received `{value!r}` for all of them. Write a number, or "
                "pass the schedule to a group's optimizer when you create the optimizer."
            )
        value = as_float(value)
        # Ratios that were written one by one since the last time are the ratios to keep.
        self._adopt_written()
        unit = self._rates[-1].base * self._rates[-1].scheduled
        if unit == 0.0:
            _warn_unreachable(value)
            return
        # All values are computed and checked before the first is written.
        scale = value / unit
        values = [rate.base * scale for rate in self._rates]
        if not all(0 <= value <= _LARGEST for value in values):
            raise GroupError(
                f"A learning rate is finite and not negative, in every group. Received `{value}` for the last group, "
                f"{scale:g} times its rate: the groups would get {quote(f'{rate:g}' for rate in values)}. No rate was "
                "changed."
            )
        self._scale = scale
        for rate, value in zip(self._rates, values, strict=True):
            rate.write(value)

    def follow(self, index: int, rate: Any, step: keras.Variable, *, from_now: bool, warmup_steps: int) -> Any:
        """Replaces the rate of the group at `index`, scaled like all others; see `GroupRate.follow`.

        Args:
            index: The position of the group.
            rate: A number or a schedule.
            step: The optimizer's step counter.
            from_now: Whether a schedule counts the steps from now.
            warmup_steps: Steps from now on in which the rate rises linearly from 0.
        """
        held = self._rates[index].follow(rate, step, from_now=from_now, warmup_steps=warmup_steps)
        self._rates[index].write(self._rates[index].base * self._scale)
        return held

    def share(self, index: int, share: float) -> None:
        """Multiplies the rate of a group by a share of 1; compiled steps see it, since only the variable changes."""
        rate = self._rates[index]
        rate.base = rate.whole * share
        rate.write(rate.base * self._scale)

    def reset(self) -> None:
        """Undoes what was written to all rates together."""
        self._scale = 1.0
        for rate in self._rates:
            rate.write(rate.base)

    def _adopt_written(self) -> None:
        """Takes the ratios from the rate variables, where those were written one by one or read from a file."""
        if not self._scale or not any(as_float(rate.rate_variable) for rate in self._rates):
            return  # all rates are 0, which has no ratios: keep those from before
        for rate in self._rates:
            value = as_float(rate.rate_variable)
            is_last_at_zero = rate is self._rates[-1] and not value  # no ratio to 0 exists: keep the one from before
            if value != rate.written and not is_last_at_zero:
                rate.base, rate.written = value / self._scale, value


def as_float(value: Any) -> float:
    """Returns the value of a number, a scalar tensor or a variable, also one that several replicas hold."""
    number: Any = keras.ops.convert_to_numpy(value)
    return float(number)


def _warn_unreachable(value: float) -> None:
    if value:
        warnings.warn(
            f"The learning rate `{value}` was not written: it is a multiple of the group's schedule, which gives 0 at "
            "this step. Write it at another step, or start the schedule above 0.",
            stacklevel=3,
        )
