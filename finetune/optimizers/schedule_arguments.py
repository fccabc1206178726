"""Checks of the arguments of learning rate schedules: one rule for each name, one error for all that break theirs.

The messages begin with a small letter because a recipe puts the file, the line and the group in front of them.
"""

import inspect
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from keras.optimizers.schedules import LearningRateSchedule

from finetune.errors import GroupError, did_you_mean, quote


def checked(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Checks the arguments of a function that makes a schedule.

    Args:
        function: The function, for its name, parameters and annotations.
        arguments: Its `locals()` when it was just called.

    Returns:
        The arguments in order, as plain Python numbers and lists: `np.float32(0.1)` could not be saved.

    Raises:
        GroupError: Names all arguments that break their rule.
    """
    # `locals()` is in the order of the parameters, and so are the arguments that are returned.
    rules, types, parameters = _rules(), function.__annotations__, inspect.signature(function).parameters
    left_out = [name for name, value in arguments.items() if value is None and parameters[name].default is None]
    broken = {n: value for n, value in arguments.items() if n not in left_out and not rules[n][1](value)}
    if broken:
        problems = "; ".join(f"`{n}` must be {rules[n][0]}, received `{reprlib.repr(v)}`" for n, v in broken.items())
        raise GroupError(f"schedule `{function.__name__}`: {problems}. {_signature(function)} {_advice(broken)}")
    lengths = {name: len(value) for name, value in arguments.items() if isinstance(value, list | tuple)}
    _check_lengths(function, **lengths)
    whole = (int, int | None, Sequence[int])
    return {name: _plain(value, int if types[name] in whole else float) for name, value in arguments.items()}


def check_names(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Checks that a function that makes a schedule takes arguments of these names.

    Raises:
        GroupError: Says which names are unknown or missing.
    """
    parameters = inspect.signature(function).parameters
    unknown = [name for name in arguments if name not in parameters]
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in arguments]
    problems = [f"does not take {quote(unknown)}"] if unknown else []
    problems += [f"requires {quote(missing)}"] if missing else []
    if problems:
        hints = "".join(did_you_mean(name, list(parameters)) for name in unknown[:5]) or " Write exactly these names."
        raise GroupError(f"schedule `{function.__name__}` {' and '.join(problems)}. {_signature(function)}{hints}")


def _rules() -> dict[str, tuple[str, Callable[[Any], bool]]]:
    """Returns what an argument must be by its name, in words and as a test; a name means the same in all functions."""
    # NumPy numbers are numbers, too; `True` is not, and neither are NaN and infinity.
    count = "a whole number of at least 1", lambda x: _is_number(x) and x >= 1 and x == int(x)
    positive = "a finite number above 0", lambda x: _is_number(x) and x > 0
    factor = "a finite number of at least 1", lambda x: _is_number(x) and x >= 1
    fraction = "a number above 0 and below 1", lambda x: _is_number(x) and 0 < x < 1
    schedule = "a learning rate schedule, as `constant` makes one", lambda x: isinstance(x, LearningRateSchedule)
    return {
        **dict.fromkeys(("decay_steps", "first_decay_steps", "total_steps", "warmup_steps"), count),
        **dict.fromkeys(("initial", "peak", "decay_rate", "power", "m_mul"), positive),
        **dict.fromkeys(("t_mul", "ratio", "div", "final_div"), factor),
        **dict.fromkeys(("alpha", "start"), ("a number from 0 to 1", lambda x: _is_number(x) and 0 <= x <= 1)),
        **dict.fromkeys(("cut_fraction", "warmup_fraction"), fraction),
        **dict.fromkeys(("staircase", "cycle"), ("true or false", lambda x: isinstance(x, bool))),
        "end": ("a finite number of at least 0", lambda x: _is_number(x) and x >= 0),
        "values": ("a list of finite numbers above 0", lambda x: _all(positive[1], x)),
        "boundaries": ("increasing whole numbers of at least 1", lambda x: _all(count[1], x) and [*x] == sorted({*x})),
        "shape": ("`linear` or `1-sqrt`", lambda x: x in ("linear", "1-sqrt")),
        "schedule": schedule,
        "schedules": ("a list of learning rate schedules", lambda x: _all(schedule[1], x)),
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _all(holds: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) > 0 and all(map(holds, values))


def _plain(value: Any, number: Callable[[Any], Any]) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item, number) for item in value]
    return number(value) if _is_number(value) else value


def _check_lengths(function: Callable[..., Any], boundaries: int = 0, **lengths: int) -> None:
    for name, length in lengths.items():
        if length != boundaries + 1:
            raise GroupError(
                f"schedule `{function.__name__}`: `{name}` must have 1 entry more than `boundaries`, which lie between "
                f"them. Received {length} `{name}` and {boundaries} `boundaries`. Write {boundaries + 1} `{name}`."
            )


def _advice(broken: Mapping[str, Any]) -> str:
    if any(isinstance(value, str) for name, value in broken.items() if name != "shape"):
        return "Write numbers as numbers; YAML reads `1e-5` as text, `1.0e-5` as a number."
    if any(name in broken and _is_number(broken[name]) and broken[name] == 0 for name in ("initial", "peak")):
        return "To keep a group unchanged, write `frozen: true`, not a rate of 0."
    return "Correct these arguments; those with a default may be left out."


def _signature(function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    return f"Its form is `{function.__name__}({', '.join(shown)})`."
