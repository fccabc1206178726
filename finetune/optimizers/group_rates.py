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
from finetune.optimizers.saved_schedules import describe_schedule, read_schedule
from finetune.optimizers.schedules import constant

_LARGEST = float(np.finfo(np.float32).max)
_NUMBERS = ("base", "whole", "unfloored", "written")  # of a `GroupRate`, that a file holds


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

    def follow(
        self, schedule: Callable[..., Any], *, from_now: bool, warmup_steps: int, since: int | None = None
    ) -> None:
        """Replaces the schedule in steps that are traced from here on.

        Args:
            schedule: The new schedule.
            from_now: Whether it counts the steps from now, instead of from the first step.
            warmup_steps: Steps from now on in which the rate rises linearly from 0 to that of the schedule.
            since: The step that counts as now; by default the present step.
        """
        self.schedule, self._from_now, self._warmup_steps = schedule, from_now, warmup_steps
        # Assigned if it exists: a step that was compiled in an earlier phase reads this same variable.
        now = int(as_float(self.step)) if since is None else since
        if self._start is not None:
            self._start.assign(now)
        elif from_now or warmup_steps:
            self._start = tf.Variable(tf.constant(now, tf.int64), trainable=False)

    def count_from(self, step: int) -> None:
        """Lets a schedule or warm-up that counts from a later step than the first count from this one."""
        if self._start is not None:
            self._start.assign(step)

    def scheduled(self) -> tf.Tensor:
        """Returns the schedule's rate at the present step, without the multiplier."""
        rate = self._without_warmup()
        if self._warmup_steps:
            rate *= tf.minimum(tf.cast(self._steps_since_start(), tf.float32) / self._warmup_steps, 1.0)
        return rate

    def _without_warmup(self) -> tf.Tensor:
        takes_step = isinstance(self.schedule, keras.optimizers.schedules.LearningRateSchedule)
        step: Any = self._steps_since_start() if self._from_now else self.step
        return tf.cast(self.schedule(step) if takes_step else self.schedule(), tf.float32)

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

    @property
    def compiled(self) -> tuple[Any, ...]:
        """What a traced step has of it as constants; the rest it reads from variables."""
        return self.schedule, self._from_now, self._warmup_steps

    def describe(self, initial: Any) -> dict[str, Any]:
        """Returns what is followed, and since when, as JSON has it; see `describe_schedule`.

        Args:
            initial: The schedule that the child was made with, if any.
        """
        counts = self._start is not None and (self._from_now or self._warmup_steps)
        # Of a phase that is over the step may still be there, and says nothing: a process that goes on has none.
        start = int(as_float(self._start)) if counts else None
        # The rate is all that is left where the schedule cannot be made again.
        schedule = {**describe_schedule(self.schedule, initial, self.step), "rate": as_float(self._without_warmup())}
        return {"schedule": schedule, "from_now": self._from_now, "warmup_steps": self._warmup_steps, "since": start}

    def get_config(self) -> dict[str, Any]:
        """Returns the schedule's config: Keras serializes what an optimizer holds as its rate."""
        return {"schedule": keras.saving.serialize_keras_object(self.schedule)}


@dataclass
class GroupRate:
    """The rate of one group.

    Attributes:
        rate_variable: The child's learning rate; for a scheduled child, the multiplier of its schedule.
        schedule: The child's schedule, if it has one.
        initial: The schedule that the child was made with; `None` for a number.
        base: The value of the rate variable at scale 1.
        whole: The base without the share that `GroupRates.share` multiplied it by.
        unfloored: The base before a floor raised it; `None` where none did.
        written: The value of the rate variable when it was last written here.
    """

    rate_variable: keras.Variable
    schedule: ScaledSchedule | None = None
    initial: Any = field(init=False)
    base: float = field(init=False)
    whole: float = field(init=False)
    unfloored: float | None = field(init=False, default=None)
    written: float = field(init=False)

    def __post_init__(self) -> None:
        self.initial = self.schedule.schedule if self.schedule else None
        self.base = self.whole = self.written = as_float(self.rate_variable)

    @property
    def scheduled(self) -> float:
        """The schedule's rate at the present step; 1 without a schedule."""
        return as_float(self.schedule.scheduled()) if self.schedule else 1.0

    def write(self, value: float) -> None:
        """Sets the rate variable."""
        self.rate_variable.assign(value)
        self.written = as_float(self.rate_variable)  # read back: float32 rounds

    def rebase(self, base: float, *, floored: bool = False) -> None:
        """Sets the base; `floored` says that a floor raised it, which `GroupRates.reset` undoes."""
        self.unfloored = (self.base if self.unfloored is None else self.unfloored) if floored else None
        self.base = base

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
            self.whole = float(rate)
            self.rebase(self.whole)
            return self.rate_variable
        schedule = rate if callable(rate) else constant(rate)
        self.schedule = self.schedule or ScaledSchedule(schedule, step, self.rate_variable)
        self.schedule.follow(schedule, from_now=from_now, warmup_steps=warmup_steps)
        # The schedule has the rate in it: the variable only multiplies.
        self.whole = 1.0
        self.rebase(self.whole)
        return self.schedule

    def describe(self) -> dict[str, Any]:
        """Returns all that `take` needs, as JSON has it."""
        return {
            "made_with": "schedule" if self.initial is not None else "number",
            "follows": self.schedule.describe(self.initial) if self.schedule else None,
            "value": as_float(self.rate_variable),
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    def take(self, saved: dict[str, Any], step: keras.Variable, group: str) -> Any:
        """Takes over a state that `describe` returned, also of another optimizer of the same groups.

        Args:
            saved: The state.
            step: The optimizer's step counter.
            group: The group's name, for messages.

        Returns:
            What the child must hold as its rate, as from `follow`.
        """
        follows = saved["follows"]
        if follows is None:
            self.schedule = None
        else:
            present = self.schedule.schedule if self.schedule else None
            schedule = read_schedule(follows["schedule"], self.initial, present, step, group)
            self.schedule = self.schedule or ScaledSchedule(schedule, step, self.rate_variable)
            settings = {name: follows[name] for name in ("from_now", "warmup_steps", "since")}
            self.schedule.follow(schedule, **settings)
        self.rate_variable.assign(saved["value"])
        for name in _NUMBERS:
            setattr(self, name, saved[name])
        return self.schedule or self.rate_variable


class GroupRates:
    """The rates of all groups.

    Args:
        rates: Input to output.
    """

    def __init__(self, rates: Sequence[GroupRate]):
        self._rates = tuple(rates)
        self._scale = 1.0

    def write_last(self, value: Any, floor: float = 0.0) -> None:
        """Sets the rate of the last group to `value` and scales all others by the same ratio.

        Where the last group's schedule gives 0, as at the first step of many warm-ups, no multiple of it is `value`:
        all rates remain, with a warning unless `value` is 0.

        Args:
            value: The rate of the last group at the present step.
            floor: No group falls below it; a group that is already there or below keeps its rate. Ratios that this
                changes are kept until `reset`.

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
        least = [_least(rate, floor) for rate in self._rates]
        self._scale = scale
        for rate, value, low in zip(self._rates, values, least, strict=True):
            if value < low:
                rate.rebase(low / scale, floored=True)
            rate.write(max(value, low))

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
        rate.rebase(rate.whole * share)
        rate.write(rate.base * self._scale)

    def reset(self) -> None:
        """Undoes what was written to all rates together."""
        self._scale = 1.0
        for rate in self._rates:
            rate.rebase(rate.base if rate.unfloored is None else rate.unfloored)
            rate.write(rate.base)

    @property
    def compiled(self) -> tuple[Any, ...]:
        """What a traced step has of the rates as constants, by group."""
        return tuple(rate.schedule.compiled if rate.schedule else None for rate in self._rates)

    def describe(self, index: int) -> dict[str, Any]:
        """Returns the state of the group at `index`, as JSON has it, with the scale of all groups."""
        return {**self._rates[index].describe(), "scale": self._scale}

    def take(self, index: int, saved: dict[str, Any], step: keras.Variable, group: str) -> Any:
        """Takes over the state of a group that `describe` returned; see `GroupRate.take`.

        Args:
            index: The position of the group.
            saved: The state.
            step: The optimizer's step counter.
            group: The group's name, for messages.
        """
        self._scale = saved["scale"]
        return self._rates[index].take(saved, step, group)

    def carry(self, index: int, saved: dict[str, Any] | None, scale: float) -> None:
        """Takes over what was written to the rate of a group elsewhere; what it follows stays.

        Args:
            index: The position of the group.
            saved: What `describe` returned of the group of that name elsewhere, if there was one.
            scale: What was written to the rates of all groups together.
        """
        self._scale, rate = scale, self._rates[index]
        if saved and saved["whole"]:
            rate.rebase(rate.whole * (saved["base"] / saved["whole"]), floored=False)
        since = (saved["follows"] or {}).get("since") if saved else None
        if rate.schedule and since is not None:
            rate.schedule.count_from(since)
        rate.write(rate.base * scale)

    def _adopt_written(self) -> None:
        """Takes the ratios from the rate variables, where those were written one by one or read from a file."""
        if not self._scale or not any(as_float(rate.rate_variable) for rate in self._rates):
            return  # all rates are 0, which has no ratios: keep those from before
        for rate in self._rates:
            value = as_float(rate.rate_variable)
            is_last_at_zero = rate is self._rates[-1] and not value  # no ratio to 0 exists: keep the one from before
            if value != rate.written and not is_last_at_zero:
                rate.rebase(value / self._scale)
                rate.written = value


def as_float(value: Any) -> float:
    """Returns the value of a number, a scalar tensor or a variable, also one that several replicas hold."""
    # NumPy warns of what the `__array__` of a Keras variable does not take, and cannot read one of several replicas.
    held: Any = value.value if isinstance(value, keras.Variable) else value
    number: Any = held.numpy() if hasattr(held, "numpy") else keras.ops.convert_to_numpy(held)
    return float(number)


def _least(rate: GroupRate, floor: float) -> float:
    """Returns below what the rate variable of a group must not be written where no rate may fall below `floor`."""
    # A rate that is at or below the floor already stays as it is: a floor raises nothing.
    return min(as_float(rate.rate_variable), floor / rate.scheduled) if floor and rate.scheduled else 0.0


def _warn_unreachable(value: float) -> None:
    if value:
        warnings.warn(
            f"The learning rate `{value}` was not written: it is a multiple of the group's schedule, which gives 0 at "
            "this step. Write it at another step, or start the schedule above 0.",
            stacklevel=3,
        )
