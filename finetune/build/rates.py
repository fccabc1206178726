"""From a learning rate of a recipe to a number or a Keras schedule."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetune.build.data import RunLength
from finetune.errors import GroupError
from finetune.optimizers.schedules import (
    chain,
    constant,
    make_schedule,
    polynomial_decay,
    schedule_functions,
    with_warmup,
)
from finetune.recipe.extensions import Extension
from finetune.recipe.fields import length_of


def build_rate(rate: Any, length: RunLength) -> Any:
    """Returns a number as a `float`, and a schedule of the recipe as a Keras schedule with its lengths in steps.

    Args:
        rate: A number, or one of the classes in `finetune.recipe.learning_rates`.
        length: The run, or the phase whose steps the schedule counts. A `_fraction` is a fraction of it.
    """
    if isinstance(rate, int | float):
        return float(rate)
    if rate.schedule == "chain":
        schedule = chain([build_rate(part, length) for part in rate.schedules], _boundaries(rate, length))
    else:
        # A class of the recipe and the function of the same name have the same arguments; a test compares the two.
        names = inspect.signature(schedule_functions()[rate.schedule]).parameters
        arguments = {name: _argument(rate, name, length) for name in names}
        schedule = make_schedule(rate.schedule, **arguments)
    if rate.leading_warmup:  # `inverse_square_root` and `one_cycle` warm up by themselves and have none in front
        return with_warmup(schedule, length.in_steps(*rate.leading_warmup), start=rate.warmup_from)
    return schedule


def build_run_rate(rate: Any, length: RunLength, extensions: Sequence[Extension]) -> Any:
    """Returns the rate of a group over a whole run, which may have been extended; see `build_rate`.

    Args:
        rate: As for `build_rate`.
        length: The run as long as it is now.
        extensions: How it was extended, in order. Without any, schedules are those of the present length.

    Raises:
        GroupError: The rates are to fall from 0.
    """
    if not extensions:
        return build_rate(rate, length)
    built: Any = build_rate(rate, replace(length, total_steps=extensions[0].total_steps))
    ends = [*(extension.total_steps for extension in extensions[1:]), length.steps]
    for extension, end in zip(extensions, ends, strict=True):
        begin = extension.total_steps if extension.by == "append" else extension.at_steps
        if begin >= end or (extension.by == "append" and not callable(built)):
            continue  # it ends before, or is constant already
        schedule: Any = built if callable(built) else constant(built)
        last = float(schedule(begin - 1)) if callable(built) else built
        if not last:
            raise GroupError(
                f"a run is extended by `{extension.by}` from the rate of its last step, which is 0 in step {begin:,}. "
                "Extend it by `stretch`, or give the group another rate."
            )
        cooled = polynomial_decay(last, end - begin, end=0.0) if extension.by == "cooldown" else constant(last)
        built = chain([schedule, cooled], [begin])
    return built


def _argument(rate: Any, name: str, length: RunLength) -> Any:
    """Returns an argument of a schedule's function, in steps: `decay_steps` also where `decay_epochs` is written."""
    if name == "boundaries":
        return _boundaries(rate, length)
    written = length_of(rate, name.removesuffix("_steps")) if name.endswith("_steps") else None
    return length.in_steps(*written) if written else getattr(rate, name)


def _boundaries(rate: Any, length: RunLength) -> list[int]:
    return [length.in_steps(*switch) for switch in rate.switches]
