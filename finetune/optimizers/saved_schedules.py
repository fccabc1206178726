"""A learning rate schedule in a file: as what it was made with, as its config, or as the rate it gave last.

A file of weights is data. So a schedule in it is only made again where its class is one of Keras or was registered with
`keras.saving.register_keras_serializable`: nothing is imported because a file names it.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras

from finetune.errors import reason
from finetune.optimizers.schedules import LearningRateSchedule, constant

_KERAS = "keras.optimizers.schedules"


def describe_schedule(schedule: Callable[..., Any], initial: Any) -> dict[str, Any]:
    """Returns a schedule as JSON has it.

    Args:
        schedule: What a group follows now.
        initial: What its optimizer was made with, which an optimizer that reads the file has, too.

    Returns:
        One of `{"initial": true}`, `{"config": ...}` for a schedule that Keras can save, `{"function": name}`.
    """
    if schedule is initial:
        return {"initial": True}
    if isinstance(schedule, LearningRateSchedule):
        try:
            config = keras.saving.serialize_keras_object(schedule)
            return {"config": json.loads(json.dumps(config, default=float))}
        except (NotImplementedError, TypeError):  # a class without `get_config`, or with values that JSON lacks
            pass
    return {"function": getattr(schedule, "__name__", type(schedule).__name__)}


def read_schedule(saved: dict[str, Any], initial: Any, present: Any, group: str) -> Callable[..., Any]:
    """Returns the schedule that a file describes, which is `present` itself where that is the same.

    A schedule that cannot be made again is replaced by the rate that it gave when the file was saved, with a warning.

    Args:
        saved: As `describe_schedule` returns it, `{"function": name}` with the `rate` that it gave.
        initial: What the group's optimizer was made with.
        present: The schedule that the group follows now, if any.
        group: The group's name, for the message.
    """
    if saved.get("initial"):
        return initial
    here = describe_schedule(present, initial) if present is not None else {}
    kind = "config" if "config" in saved else "function"
    if present is not None and here.get(kind) == saved[kind]:
        return present
    if kind == "function":
        name, why = saved["function"], "a function or has no `get_config`. "
    else:
        name = _unknown_class(saved["config"])
        why = "a class that is not registered with `keras.saving.register_keras_serializable`. "
    if name is None:
        try:
            return keras.saving.deserialize_keras_object(saved["config"])
        except Exception as error:  # the class has changed since; its code may raise anything
            name = str(saved["config"]["class_name"])
            why = f"a class that has changed ({type(error).__name__}: {reason(error)}). "
    warnings.warn(
        f"A file holds a schedule only if Keras can make it again. Group `{group}` followed `{name}`, which is {why}"
        f"It now has the rate of the moment of saving, {saved['rate']:g}, and keeps it. Call "
        f"`optimizer.reschedule({group!r}, schedule)` to go on with the schedule.",
        stacklevel=2,
    )
    return constant(saved["rate"])


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
