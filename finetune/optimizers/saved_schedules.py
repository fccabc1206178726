"""A learning rate schedule in a file: as what it was made with, as its config, or as the rate it gave last.

A file of weights is data. So a schedule in it is only made again where its class is one of Keras or was registered with
`keras.saving.register_keras_serializable`: nothing is imported because a file names it.
"""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from finetune.errors import reason
from finetune.optimizers.schedules import LearningRateSchedule, constant

_KERAS = "keras.optimizers.schedules"
_numpy: Any = keras.ops.convert_to_numpy  # whose declared type is that of any structure


def describe_schedule(schedule: Callable[..., Any], initial: Any, step: Any) -> dict[str, Any]:
    """Returns a schedule as JSON has it.

    Args:
        schedule: What a group follows now.
        initial: What its optimizer was made with, which an optimizer that reads the file has, too.
        step: The optimizer's step counter.

    Returns:
        `{"initial": true}`, or `{"config": ...}` for a schedule that Keras can save and `{"function": name}` for
        another, both with `samples`, some steps with the rates that it gives there.
    """
    if schedule is initial:
        return {"initial": True}
    now = int(_numpy(step))
    samples = _sample(schedule, sorted({0, 1, now, now + 1, 10 * now + 100}), step)
    return {**_identity(schedule), "samples": samples}


def read_schedule(
    saved: dict[str, Any], initial: Any, present: Callable[..., Any] | None, step: Any, group: str
) -> Callable[..., Any]:
    """Returns the schedule that a file describes, which is `present` itself where that is the same.

    A schedule that cannot be made again is replaced by the rate that it gave when the file was saved, with a warning.

    Args:
        saved: As `describe_schedule` returns it, with the `rate` that it gave; without `samples` in an older file.
        initial: What the group's optimizer was made with.
        present: The schedule that the group follows now, if any.
        step: The optimizer's step counter.
        group: The group's name, for the message.
    """
    if saved.get("initial"):
        return initial
    kind = "config" if "config" in saved else "function"
    difference = ""
    if present is not None and _identity(present).get(kind) == saved[kind]:
        difference = _difference(present, saved, step)
        if not difference:
            return present
    if kind == "function":
        name, why = saved["function"], "a function or has no `get_config`. "
        why += f"Here `{name}` gives another rate: {difference}. " if difference else ""
    else:
        name = _unknown_class(saved["config"])
        why = "a class that is not registered with `keras.saving.register_keras_serializable`. "
    if name is None:
        name = str(saved["config"]["class_name"])
        try:
            schedule = keras.saving.deserialize_keras_object(saved["config"])
            difference = _difference(schedule, saved, step)
            if not difference:
                return schedule
            why = f"a class that gives another rate here: {difference}. "
        except Exception as error:  # the class has changed since; its code may raise anything
            why = f"a class that has changed ({type(error).__name__}: {reason(error)}). "
    warnings.warn(
        f"A file holds a schedule only if Keras can make it again. Group `{group}` followed `{name}`, which is {why}"
        f"It now has the rate of the moment of saving, {saved['rate']:g}, and keeps it. Call "
        f"`optimizer.reschedule({group!r}, schedule)` to go on with the schedule.",
        stacklevel=2,
    )
    return constant(saved["rate"])


def _identity(schedule: Callable[..., Any]) -> dict[str, Any]:
    if isinstance(schedule, LearningRateSchedule):
        try:
            config = keras.saving.serialize_keras_object(schedule)
            return {"config": json.loads(json.dumps(config, default=float))}
        except (NotImplementedError, TypeError):  # a class without `get_config`, or with values that JSON lacks
            pass
    return {"function": getattr(schedule, "__name__", type(schedule).__name__)}


def _sample(schedule: Callable[..., Any], steps: Iterable[int], step: Any) -> list[tuple[int, float]]:
    """Returns the rates that a schedule gives at some steps, without those at which it raises an error."""
    samples, now = [], int(_numpy(step))
    try:
        for each in steps:
            with contextlib.suppress(Exception):  # a list of rates may end, and any code may raise anything
                # A function has no argument; it may read the step from the optimizer, so the counter is set. It holds
                # another step than that of the file where `tf.train.Checkpoint` reads it later than the schedule.
                step.assign(each)
                rate = schedule(each) if isinstance(schedule, LearningRateSchedule) else schedule()
                samples.append((each, float(_numpy(rate))))
    finally:
        step.assign(now)
    return samples


def _difference(schedule: Callable[..., Any], saved: dict[str, Any], step: Any) -> str:
    """Says at which step a schedule gives another rate than the one in a file did; empty where none is known."""
    rates = dict(_sample(schedule, [each for each, _ in saved.get("samples", ())], step))
    for each, before in saved.get("samples", ()):
        now = rates.get(each)
        # Not `==`: another release or machine may round a cosine in another way.
        if now is None or not np.isclose(now, before, rtol=1e-5, atol=0, equal_nan=True):
            return f"{'none' if now is None else f'{now:g}'} at step {each}, and {before:g} when it was saved"
    return ""


def _unknown_class(config: Any) -> str | None:
    """Returns the name of the first class in a config that is neither of Keras' schedules nor registered."""
    unknown = (c for c in _classes(config) if c["module"] != _KERAS and not _is_registered(c))
    return next((f"{c['class_name']}" for c in unknown), None)


def _is_registered(config: dict[str, Any]) -> bool:
    return keras.saving.get_registered_object(str(config.get("registered_name"))) is not None


def _classes(config: Any) -> Iterator[dict[str, Any]]:
    """Yields every object in a config that Keras would make: nested ones, too."""
    if isinstance(config, dict):
        if "class_name" in config:
            yield {"module": None, **config}
        for value in config.values():
            yield from _classes(value)
    elif isinstance(config, list):
        for value in config:
            yield from _classes(value)
