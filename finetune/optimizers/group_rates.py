"""The learning rates of an optimizer's groups, written together so that their ratios are kept."""

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
    """`schedule(step) x multiplier`: the learning rate of a scheduled child, and still writable.

    Keras refuses to write a rate that comes from a schedule. Its setter calls `assign` on whatever is held in place of
    the rate's variable and its getter calls it, so this object lets `child.learning_rate = x` set the multiplier.

    The schedule may be exchanged, and count from a later step than the first: see `follow`. That step is a variable, so
    that a compiled step which was kept from an earlier phase counts from where the phase begins now.
    """

    def __init__(self, schedule: Callable[..., Any], step: keras.Variable, multiplier: keras.Variable):
        self.schedule, self.step, self.multiplier = schedule, step, multiplier
        self._from_now, self._warmup_steps = False, 0
        self._now: tf.Variable | None = None

    def __call__(self) -> tf.Tensor:
        return self.scheduled() * self.multiplier

    def follow(self, schedule: Callable[..., Any], *, from_now: bool, warmup_steps: int) -> None:
        """Exchanges the schedule for steps that are traced from here on.

        Args:
            schedule: The new one.
            from_now: Whether it sees the steps since now, instead of those since the first.
            warmup_steps: Steps from now on in which the rate rises in a straight line from 0 to the schedule's.
        """
        self.schedule, self._from_now, self._warmup_steps = schedule, from_now, warmup_steps
        now = int(as_float(self.step))
        if self._now is not None:
            self._now.assign(now)
        elif from_now or warmup_steps:
            self._now = tf.Variable(tf.constant(now, tf.int64), trainable=False)

    def scheduled(self) -> tf.Tensor:
        """The schedule's own rate at the present step, without the multiplier."""
        takes_step = isinstance(self.schedule, keras.optimizers.schedules.LearningRateSchedule)
        step: Any = self._since() if self._from_now else self.step
        rate = tf.cast(self.schedule(step) if takes_step else self.schedule(), tf.float32)
        if self._warmup_steps:
            rate *= tf.minimum(tf.cast(self._since(), tf.float32) / self._warmup_steps, 1.0)
        return rate

    def _since(self) -> tf.Tensor:
        assert self._now is not None
        return tf.cast(self.step, tf.int64) - self._now

    def assign(self, value: Any) -> None:
        scheduled = as_float(self.scheduled())
        if scheduled:
            self.multiplier.assign(as_float(value) / scheduled)
        else:
            _tell_unreachable(as_float(value))

    def get_config(self) -> dict[str, Any]:
        return {"schedule": keras.saving.serialize_keras_object(self.schedule)}


@dataclass
class GroupRate:
    """One group's rate: the variable that moves it, and what that variable is when nobody has moved it.

    Attributes:
        rate_variable: The child's learning rate; of a scheduled child the multiplier of its schedule.
        schedule: The child's schedule, if it has one.
        base: The rate_variable at scale 1. The bases hold the ratios between the groups, also while all rates are 0.
        whole: The base when no share of the rate was asked for.
        seen: The rate_variable when it was last written from here.
    """

    rate_variable: keras.Variable
    schedule: ScaledSchedule | None = None
    base: float = field(init=False)
    whole: float = field(init=False)
    seen: float = field(init=False)

    def __post_init__(self) -> None:
        self.base = self.whole = self.seen = as_float(self.rate_variable)

    @property
    def scheduled(self) -> float:
        """The schedule's rate at the present step; 1 without a schedule."""
        return as_float(self.schedule.scheduled()) if self.schedule else 1.0

    def write(self, value: float) -> None:
        self.rate_variable.assign(value)
        self.seen = as_float(self.rate_variable)

    def follow(self, rate: Any, step: keras.Variable, *, from_now: bool, warmup_steps: int) -> Any:
        """Exchanges the rate at scale 1, a number or a schedule; returns what the child holds as its rate.

        The rate_variable stays the variable that it was, so that files hold the same state whatever the phase.
        """
        if not callable(rate) and not warmup_steps:
            self.schedule = None
            self.base = self.whole = float(rate)
            return self.rate_variable
        schedule = rate if callable(rate) else constant(rate)
        self.schedule = self.schedule or ScaledSchedule(schedule, step, self.rate_variable)
        self.schedule.follow(schedule, from_now=from_now, warmup_steps=warmup_steps)
        self.base = self.whole = 1.0
        return self.schedule


class GroupRates:
    """The rates of all groups, input to output."""

    def __init__(self, rates: Sequence[GroupRate]):
        self._rates = tuple(rates)
        self._scale = 1.0

    def write_last(self, value: Any) -> None:
        """Gives the last group the rate `value` and scales all others by the same ratio.

        Where the last group's schedule gives 0, as at the first step of many a warm-up, no multiple of it is `value`:
        all rates stay, with a warning unless `value` is 0.
        """
        if callable(value):
            raise GroupError(
                f"Every group has a rate or schedule of its own. Received `{value!r}` for all of them. Write a number, "
                "or give the schedule to a group's optimizer when it is made."
            )
        value = as_float(value)
        self._adopt_moved()
        unit = self._rates[-1].base * self._rates[-1].scheduled
        if unit == 0.0:
            _tell_unreachable(value)
            return
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
        """Exchanges the rate of one group; what scales all groups scales it, too."""
        held = self._rates[index].follow(rate, step, from_now=from_now, warmup_steps=warmup_steps)
        self._rates[index].write(self._rates[index].base * self._scale)
        return held

    def share(self, index: int, share: float) -> None:
        """Lets one group have a part of its rate; a compiled step heeds it, for the rate_variable alone is moved."""
        rate = self._rates[index]
        rate.base = rate.whole * share
        rate.write(rate.base * self._scale)

    def reset(self) -> None:
        """Takes back all that was written to the rates."""
        self._scale = 1.0
        for rate in self._rates:
            rate.write(rate.base)

    def _adopt_moved(self) -> None:
        """Takes rate_variables that were moved one by one, or restored from a file, for the new ratios."""
        if not self._scale or not any(as_float(rate.rate_variable) for rate in self._rates):
            return  # all rates are 0: that tells nothing about their ratios
        for rate in self._rates:
            value = as_float(rate.rate_variable)
            silenced_last = rate is self._rates[-1] and not value  # a ratio to 0 is none: keep the one it had
            if value != rate.seen and not silenced_last:
                rate.base, rate.seen = value / self._scale, value


def as_float(value: Any) -> float:
    """Reads a number, a tensor or a variable, also one that several replicas hold."""
    number: Any = keras.ops.convert_to_numpy(value)
    return float(number)


def _tell_unreachable(value: float) -> None:
    if value:
        warnings.warn(
            f"The learning rate `{value}` was not written: it is a multiple of the group's schedule, which gives 0 at "
            "this step. Write it at another step, or start the schedule above 0.",
            stacklevel=3,
        )
