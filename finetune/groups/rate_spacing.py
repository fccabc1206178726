"""Learning rates across groups, and lengths of training: plain numbers in, plain numbers out."""

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from finetune.errors import GroupError, did_you_mean, quote

_UNITS = ("steps", "epochs", "fraction")
_NUMERIC = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.I)


def discriminative_rates(
    peak: float, num_groups: int, *, decay: float | None = None, layer_decay: float | None = None
) -> tuple[float, ...]:
    """Spaces learning rates geometrically, smallest for the group nearest the input.

    Examples:
        >>> discriminative_rates(0.08, 3, decay=2)
        (0.02, 0.04, 0.08)
        >>> discriminative_rates(0.08, 3, layer_decay=0.5)
        (0.02, 0.04, 0.08)

    Args:
        peak: Learning rate of the last group, per step. Must be > 0.
        num_groups: How many groups, input to output. Must be >= 1.
        decay: Ratio of a group's rate to that of the group before it, >= 1, as in ULMFiT; `1` gives every group `peak`.
            By default 2.6.
        layer_decay: The same the other way around, as timm, BEiT and AutoGluon say it, in (0, 1]: ratio of a group's
            rate to that of the group behind it. Instead of `decay`.

    Returns:
        A rate for each group, input to output; length `num_groups`.

    Raises:
        GroupError: A bound is broken, both ratios are given, or the smallest rate would be 0.

    References:
        Howard & Ruder (2018), ULMFiT, section 3.1, https://arxiv.org/abs/1801.06146
    """
    peak, num_groups = check_rate(peak, "peak"), _check_count(num_groups, "num_groups")
    if layer_decay is not None:
        if decay is not None:
            raise GroupError(
                f"`decay` and `layer_decay` say the same thing. Received: `decay={decay!r}` and "
                f"`layer_decay={layer_decay!r}`. Give one of them."
            )
        if not 0 < _number(layer_decay) <= 1:
            raise GroupError(
                f"`layer_decay` is the ratio of a group's learning rate to that of the group behind it, above 0 and at "
                f"most 1. Received: `{layer_decay!r}`. Give `0.75` as timm does, or use `decay` for ratios >= 1."
            )
        rates = tuple(peak * float(layer_decay) ** (num_groups - 1 - group) for group in range(num_groups))
        return _checked(rates, f"`layer_decay` of `{layer_decay}`", "larger")
    decay = 2.6 if decay is None else decay
    if not 1 <= _number(decay) < math.inf:
        raise GroupError(
            f"`decay` is the ratio of a group's learning rate to that of the group before, a finite number >= 1. "
            f"Received: `{decay!r}`. Give `2.6` as ULMFiT does, or `1` for equal rates."
        )
    # rate of group i, counted from 0: peak / decay ** (num_groups - 1 - i)
    rates = tuple(peak * float(decay) ** -(num_groups - 1 - group) for group in range(num_groups))
    return _checked(rates, f"`decay` of `{decay}`", "smaller")


def _checked(rates: tuple[float, ...], ratio: str, direction: str) -> tuple[float, ...]:
    if rates[0] == 0:
        raise GroupError(
            f"Every group needs a learning rate above 0. With a {ratio} over {len(rates)} groups the first gets 0. "
            f"Give a {direction} {ratio.partition(' ')[0]}, or make fewer groups."
        )
    return rates


def spread_rates(low: float, high: float, num_groups: int) -> tuple[float, ...]:
    """Spaces learning rates geometrically from `low` to `high`, as fastai's `slice(low, high)` does.

    Examples:
        >>> spread_rates(0.001, 0.1, 2)
        (0.001, 0.1)

    Args:
        low: Learning rate of the first group, per step. Must be > 0.
        high: Learning rate of the last group; a single group has it, too. Must be >= `low`.
        num_groups: How many groups, input to output. Must be >= 1.

    Returns:
        A rate for each group, input to output; length `num_groups`.

    Raises:
        GroupError: A bound is broken.

    References:
        `even_mults` in fastcore, https://github.com/fastai/fastcore/blob/main/fastcore/basics.py
    """
    low, high = check_rate(low, "low"), check_rate(high, "high")
    num_groups = _check_count(num_groups, "num_groups")
    if low > high:
        raise GroupError(
            f"A spread goes from the rate of the first group to that of the last, low to high. Received: `{low}` and "
            f"`{high}`. Write `[{high}, {low}]`."
        )
    if num_groups == 1:
        return (high,)
    # rate of group i: low * (high / low) ** (i / last); both ends are exact, not rounded
    last = num_groups - 1
    return (low, *(low * (high / low) ** (group / last) for group in range(1, last)), high)


def rates_by_group(rate: Any, base: Mapping[str, float]) -> dict[str, float]:
    """Returns the learning rate of each group, from any of the forms in which rates of all groups are written.

    >>> rates_by_group(0.5, {"body": 0.25, "head": 1.0})
    {'body': 0.125, 'head': 0.5}
    >>> rates_by_group(slice(0.001, 0.1), {"body": 1.0, "head": 1.0})
    {'body': 0.001, 'head': 0.1}
    >>> rates_by_group(slice(0.1), {"stem": 1.0, "body": 1.0, "head": 1.0})
    {'stem': 0.01, 'body': 0.01, 'head': 0.1}

    Args:
        rate: A number: the rate of the last group, to which the others keep their ratio in `base`. A slice as in
            fastai: `slice(low, high)` is spread geometrically from the first to the last group, and `slice(high)` gives
            the last group `high` and all others a tenth. Rates of some groups by name. Or a sequence with a rate for
            each group.
        base: The present rate of each group that is trained, input to output, by name.

    Raises:
        GroupError: A rate is no finite number above 0, a group does not exist, or the form is none of these.
    """
    names = list(base)
    if isinstance(rate, slice):
        if rate.stop is None or rate.step is not None:
            raise GroupError(
                "A slice of learning rates is `slice(low, high)` or `slice(high)`, as in fastai. Received: "
                f"`{rate!r}`. Write `slice(1e-5, 1e-3)`, for example."
            )
        if rate.start is not None:
            return dict(zip(names, spread_rates(rate.start, rate.stop, len(names)), strict=True))
        high = check_rate(rate.stop)
        return {name: high if name == names[-1] else high / 10 for name in names}
    if isinstance(rate, Mapping):
        unknown = [name for name in rate if name not in base]
        if unknown:
            raise GroupError(
                f"Learning rates by name are those of groups that are trained: {quote(names)}. Received: "
                f"{quote(unknown)}.{did_you_mean(str(unknown[0]), names)}"
            )
        return {
            name: check_rate(rate[name], f"the learning rate of `{name}`") if name in rate else base[name]
            for name in names
        }
    if isinstance(rate, Sequence) and not isinstance(rate, str):
        if len(rate) != len(names):
            raise GroupError(
                f"A list of learning rates has a rate for each group, input to output: {quote(names, limit=9)}. "
                f"Received {len(rate)} for {len(names)} groups. Write `slice(low, high)`, which fits any number."
            )
        each = zip(names, rate, strict=True)
        return {name: check_rate(of_group, f"the learning rate of `{name}`") for name, of_group in each}
    number: Any = rate  # or what is none, which is refused
    peak, last = check_rate(number), base[names[-1]]
    return {name: peak if name == names[-1] else peak * each / last for name, each in base.items()}


def check_rate(value: float, what: str = "learning_rate") -> float:
    """Returns a learning rate as a `float`.

    Args:
        value: The rate, per step. Must be finite and > 0.
        what: What to call it in the error, e.g. "group `body`: learning_rate".

    Raises:
        GroupError: It is not such a number. Text such as `1e-4`, which YAML does not read as a number, is named.
    """
    rate = _number(value)
    if 0 < rate < math.inf:
        return rate
    rule = f"{_in_backticks(what)} must be a finite number above 0. Received: `{value!r}`."
    raise GroupError(f"{rule} {_advice(value)}")


def length_in_steps(
    value: float, unit: str, *, steps_per_epoch: int | None = None, total_steps: int | None = None
) -> int:
    """Converts a length of training to whole steps, at least 1.

    >>> length_in_steps(0.5, "epochs", steps_per_epoch=100)
    50

    Args:
        value: How long. Must be > 0; whole when in steps, at most 1 when a fraction.
        unit: `steps`, `epochs`, or `fraction` of the whole training.
        steps_per_epoch: Needed for `epochs`. Must be >= 1.
        total_steps: Steps of the whole training, needed for `fraction`. Must be >= 1.

    Raises:
        GroupError: A bound is broken, the unit is unknown, or what it refers to is missing.
    """
    if unit not in _UNITS:
        raise GroupError(
            f"The unit of a length must be one of {quote(_UNITS)}. Received: `{unit}`.{did_you_mean(str(unit), _UNITS)}"
        )
    length = _number(value)
    if not 0 < length < math.inf:
        raise GroupError(f"A length in {unit} must be a finite number above 0. Received: `{value!r}`.")
    if unit == "steps":
        if not length.is_integer():
            raise GroupError(
                f"A length in steps must be whole. Received: `{value}`. Use `epochs` or `fraction` instead."
            )
        return int(value)
    if unit == "fraction" and length > 1:
        raise GroupError(
            f"A fraction of the training is at most 1. Received: `{value}`. Use `steps` or `epochs` instead."
        )
    name, whole = ("steps_per_epoch", steps_per_epoch) if unit == "epochs" else ("total_steps", total_steps)
    if whole is None:
        raise GroupError(f"A length in `{unit}` needs `{name}`. Received none. Give it, or give the length in `steps`.")
    return max(1, round(length * _check_count(whole, name)))


def _number(value: object) -> float:
    """Returns a real number as a `float`, and anything else as NaN, which no bound admits."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _check_count(value: int, what: str) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool) and value >= 1:
        return int(value)
    raise GroupError(f"`{what}` must be a whole number >= 1. Received: `{value!r}`.")


def _in_backticks(what: str) -> str:
    return what if "`" in what else f"`{what}`"


def _advice(value: object) -> str:
    if _number(value) == 0:
        return (
            "To keep a group unchanged, set `frozen: true`: with a rate of 0 its moving statistics would "
            "still be updated."
        )
    if isinstance(value, str) and _NUMERIC.fullmatch(value):
        return "That is text. Write it without quotes and with a decimal point, `1.0e-4`: YAML reads `1e-4` as text."
    return "Write a number such as `1.0e-4`."
