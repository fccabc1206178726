"""When the rates of a training begin to fall at its end, where until then they do not depend on its length."""

from collections.abc import Sequence
from typing import Any

from finetune.optimizers.schedules import Schedule


def cooldown_start(rates: Sequence[Any]) -> int | None:
    """Returns the step from which rates fall that do not depend on the length of the training until then.

    Args:
        rates: Numbers and schedules: those of all layer groups.

    Returns:
        The earliest such step of a `warmup_stable_decay`; `None` where there is none, or another rate is neither such a
        schedule nor constant.
    """
    starts = [
        rate.arguments["total_steps"] - rate.arguments["decay_steps"]
        for rate in rates
        if isinstance(rate, Schedule) and rate.name == "warmup_stable_decay"
    ]
    constant_rates = [rate for rate in rates if not callable(rate) or _is_constant(rate)]
    return min(starts) if starts and len(starts) + len(constant_rates) == len(rates) else None


def _is_constant(rate: Any) -> bool:
    name = getattr(rate, "name", "")
    return name == "constant" or (name == "with_warmup" and _is_constant(rate.arguments["schedule"]))
