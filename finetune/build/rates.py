"""From a learning rate of a recipe to a number or a Keras schedule."""

import inspect
from typing import Any

from finetune.build.data import RunLength
from finetune.optimizers.schedules import chain, make_schedule, schedule_functions, with_warmup
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


def _argument(rate: Any, name: str, length: RunLength) -> Any:
    """Returns an argument of a schedule's function, in steps: `decay_steps` also where `decay_epochs` is written."""
    if name == "boundaries":
        return _boundaries(rate, length)
    written = length_of(rate, name.removesuffix("_steps")) if name.endswith("_steps") else None
    return length.in_steps(*written) if written else getattr(rate, name)


def _boundaries(rate: Any, length: RunLength) -> list[int]:
    return [length.in_steps(*switch) for switch in rate.switches]
