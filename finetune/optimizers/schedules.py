"""Learning rate schedules: Keras' six and those Keras lacks, by snake_case name and in one vocabulary.

A schedule is a pure function of the step, which may be a number, a tensor or a variable; the rate is float32. Keras'
own count steps in float32: from step 2**24 on, neighbours fall together. Those built here count and compute in float64,
exact to 2**53. In a compiled step Keras' staircases, like TF1's in a session, fall one step late for some `decay_steps`
(41, 47, 55, ...; not 10, 50, 100): TensorFlow multiplies by a rounded `1 / decay_steps`. The one built here does not.
"""

import inspect
import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from finetune.errors import GroupError, did_you_mean, quote


def exponential_decay(
    initial: float, decay_steps: int, decay_rate: float, *, staircase: bool = False
) -> LearningRateSchedule:
    """Multiplies the rate by `decay_rate` every `decay_steps` steps: `initial * decay_rate ** (step / decay_steps)`.

    With `staircase` the exponent is rounded down: the rate stands still for `decay_steps` steps, then falls. It takes
    the place of TF1's
    `tf.compat.v1.train.exponential_decay(learning_rate, global_step, decay_steps, decay_rate, staircase)`;
    there is no `global_step` to pass, the optimizer counts its own steps.

    Args:
        initial: Learning rate at step 0. Must be > 0.
        decay_steps: Steps in which the rate falls by the factor `decay_rate`. Must be >= 1.
        decay_rate: That factor. Must be > 0; above 1 the rate grows.
        staircase: Whether the rate falls in stairs instead of at every step.

    Returns:
        Keras' own `ExponentialDecay`, for the `learning_rate` of any Keras optimizer.

    Raises:
        GroupError: An argument breaks its bound. So does every function of this module.

    >>> rate = exponential_decay(1e-4, 100, 0.96, staircase=True)
    >>> [f"{float(rate(step)):.3e}" for step in (0, 99, 100, 200)]
    ['1.000e-04', '1.000e-04', '9.600e-05', '9.216e-05']
    >>> optimizer = keras.optimizers.Adam(learning_rate=rate)
    """
    return keras.optimizers.schedules.ExponentialDecay(*_checked(exponential_decay, locals()).values())


def natural_exponential_decay(
    initial: float, decay_steps: int, decay_rate: float, *, staircase: bool = False
) -> LearningRateSchedule:
    """Falls by a factor of e every `decay_steps / decay_rate` steps: `initial * exp(-decay_rate * step / decay_steps)`.

    Args:
        initial: Learning rate at step 0. Must be > 0.
        decay_steps: Unit in which the steps are counted. Must be >= 1.
        decay_rate: Speed of the fall. Must be > 0.
        staircase: Whether `step / decay_steps` is rounded down.
    """
    given = _checked(natural_exponential_decay, locals())
    initial, decay_steps, decay_rate, staircase = given.values()

    def rate(step: Any) -> Any:
        # Stairs are counted in whole numbers: a compiler may turn `step / decay_steps` into a rounded product.
        stairs = tf.cast(step, tf.int64) // decay_steps
        units = _float64(stairs) if staircase else _float64(step) / decay_steps
        return initial * tf.exp(-decay_rate * units)

    return Schedule("natural_exponential_decay", given, rate)


def inverse_time_decay(
    initial: float, decay_steps: int, decay_rate: float, *, staircase: bool = False
) -> LearningRateSchedule:
    """Falls like a hyperbola: `initial / (1 + decay_rate * step / decay_steps)`. Keras' `InverseTimeDecay`.

    Args:
        initial: Learning rate at step 0. Must be > 0.
        decay_steps: Unit in which the steps are counted. Must be >= 1.
        decay_rate: Speed of the fall. Must be > 0.
        staircase: Whether `step / decay_steps` is rounded down.
    """
    return keras.optimizers.schedules.InverseTimeDecay(*_checked(inverse_time_decay, locals()).values())


def polynomial_decay(
    initial: float, decay_steps: int, end: float = 1e-4, power: float = 1.0, *, cycle: bool = False
) -> LearningRateSchedule:
    """Goes from `initial` to `end`: `(initial - end) * (1 - step / decay_steps) ** power + end`. `PolynomialDecay`.

    Args:
        initial: Learning rate at step 0. Must be > 0.
        decay_steps: Steps to `end`, where the rate then stays. Must be >= 1.
        end: Learning rate at the end. Must be >= 0.
        power: 1 is a straight line. Must be > 0.
        cycle: Whether to start anew, with ever longer cycles, instead of staying at `end`.
    """
    return keras.optimizers.schedules.PolynomialDecay(*_checked(polynomial_decay, locals()).values())


def piecewise_constant_decay(boundaries: Sequence[int], values: Sequence[float]) -> LearningRateSchedule:
    """Gives `values[0]` up to and including step `boundaries[0]`, then `values[1]`, ... `PiecewiseConstantDecay`.

    Args:
        boundaries: Last step of each value but the last one. Strictly increasing, >= 1.
        values: Learning rates, one more than `boundaries`. Must be > 0.
    """
    return keras.optimizers.schedules.PiecewiseConstantDecay(*_checked(piecewise_constant_decay, locals()).values())


def cosine_decay(initial: float, decay_steps: int, alpha: float = 0.0) -> LearningRateSchedule:
    """Falls along half a cosine from `initial` to `alpha * initial`, and stays there. Keras' `CosineDecay`.

    Args:
        initial: Learning rate at step 0. Must be > 0.
        decay_steps: Steps to the end of the fall. Must be >= 1.
        alpha: What is left at the end, as a share of `initial`, in [0, 1].
    """
    return keras.optimizers.schedules.CosineDecay(*_checked(cosine_decay, locals()).values())


def cosine_decay_restarts(
    initial: float, first_decay_steps: int, t_mul: float = 2.0, m_mul: float = 1.0, alpha: float = 0.0
) -> LearningRateSchedule:
    """Falls along half a cosine again and again: SGDR's warm restarts. Keras' `CosineDecayRestarts`.

    Args:
        initial: Learning rate at step 0. Must be > 0.
        first_decay_steps: Length of the first fall. Must be >= 1.
        t_mul: How many times longer each fall is than the one before. Must be >= 1.
        m_mul: How many times higher each fall starts. Must be > 0.
        alpha: What is left at the end of a fall, as a share of `initial`, in [0, 1].

    References:
        Loshchilov & Hutter (2017), SGDR, https://arxiv.org/abs/1608.03983
    """
    return keras.optimizers.schedules.CosineDecayRestarts(*_checked(cosine_decay_restarts, locals()).values())


def slanted_triangular(
    peak: float, total_steps: int, cut_fraction: float = 0.1, ratio: float = 32.0
) -> LearningRateSchedule:
    """Rises in a straight line from `peak / ratio` to `peak`, then falls slowly back, and stays there.

    Args:
        peak: Highest learning rate, reached at step `floor(total_steps * cut_fraction)`. Must be > 0.
        total_steps: Length of the training. Must be >= 1; when too short for one step of rise, it starts at `peak`.
        cut_fraction: Share of the steps in which the rate rises, in (0, 1).
        ratio: How many times smaller the lowest rate is. Must be >= 1.

    References:
        Howard & Ruder (2018), ULMFiT, equation 3, https://arxiv.org/abs/1801.06146
    """
    given = _checked(slanted_triangular, locals())
    peak, total_steps, cut_fraction, ratio = given.values()
    cut = math.floor(total_steps * cut_fraction)
    fall = cut * (1 / cut_fraction - 1) if cut else total_steps

    def rate(step: Any) -> Any:
        t = _float64(step)
        p = tf.where(t < cut, t / max(cut, 1), tf.maximum(1 - (t - cut) / fall, 0.0))
        return peak * (1 + p * (ratio - 1)) / ratio

    return Schedule("slanted_triangular", given, rate)


def one_cycle(
    peak: float, total_steps: int, warmup_fraction: float = 0.25, div: float = 25.0, final_div: float = 1e5
) -> LearningRateSchedule:
    """Rises along half a cosine from `peak / div` to `peak`, then falls to `peak / final_div`, as fastai does it.

    Args:
        peak: Highest learning rate. Must be > 0.
        total_steps: Length of the training; the rate stays at its end afterwards. Must be >= 1.
        warmup_fraction: Share of the steps in which the rate rises, in (0, 1).
        div: How many times smaller the first rate is. Must be >= 1.
        final_div: How many times smaller the last rate is. Must be >= 1.

    References:
        Smith & Topin (2018), Super-Convergence, https://arxiv.org/abs/1708.07120
    """
    given = _checked(one_cycle, locals())
    peak, total_steps, warmup_fraction, div, final_div = given.values()
    top = total_steps * warmup_fraction

    def rate(step: Any) -> Any:
        t = tf.minimum(_float64(step), total_steps)
        up = _half_cosine(peak / div, peak, t / top)
        down = _half_cosine(peak, peak / final_div, (t - top) / (total_steps - top))
        return tf.where(t < top, up, down)

    return Schedule("one_cycle", given, rate)


def inverse_square_root(peak: float, warmup_steps: int) -> LearningRateSchedule:
    """Rises in a straight line from 0 to `peak`, then falls as `peak * sqrt(warmup_steps / step)`: the transformer's.

    Args:
        peak: Highest learning rate, reached at step `warmup_steps`. Must be > 0.
        warmup_steps: Must be >= 1.

    References:
        Vaswani et al. (2017), Attention is all you need, section 5.3, https://arxiv.org/abs/1706.03762
    """
    given = _checked(inverse_square_root, locals())
    peak, warmup_steps = given.values()

    def rate(step: Any) -> Any:
        t = _float64(step) / warmup_steps
        return peak * tf.minimum(t, 1.0) / tf.sqrt(tf.maximum(t, 1.0))

    return Schedule("inverse_square_root", given, rate)


def constant(initial: float) -> LearningRateSchedule:
    """Gives `initial` (> 0) at every step; of use in `chain` and `with_warmup`."""
    given = _checked(constant, locals())
    return Schedule("constant", given, lambda step: tf.zeros_like(_float64(step)) + given["initial"])


def with_warmup(schedule: LearningRateSchedule, warmup_steps: int, start: float = 0.0) -> LearningRateSchedule:
    """Rises in a straight line to the first rate of `schedule`, which then begins.

    Args:
        schedule: Any schedule; it sees the steps since the end of the rise.
        warmup_steps: Length of the rise. Must be >= 1.
        start: Where the rise starts, as a share of the schedule's first rate, in [0, 1].
    """
    given = _checked(with_warmup, locals())
    schedule, warmup_steps, start = given.values()

    def rate(step: Any) -> Any:
        risen = tf.minimum(_float64(step) / warmup_steps, 1.0)
        return (start + (1 - start) * risen) * _float64(schedule(_since(warmup_steps, step)))

    return Schedule("with_warmup", given, rate)


def chain(schedules: Sequence[LearningRateSchedule], boundaries: Sequence[int]) -> LearningRateSchedule:
    """Runs one schedule after the other; each sees the steps since its own start.

    Args:
        schedules: Any schedules; `constant` is a flat one.
        boundaries: Where each but the first one starts; one fewer than `schedules`. Strictly increasing, >= 1.
    """
    given = _checked(chain, locals())
    schedules, boundaries = given.values()

    def rate(step: Any) -> Any:
        now = _float64(schedules[0](step))
        for begin, schedule in zip(boundaries, schedules[1:], strict=True):
            now = tf.where(_float64(step) >= begin, _float64(schedule(_since(begin, step))), now)
        return now

    return Schedule("chain", given, rate)


def make_schedule(name: str, /, **arguments: Any) -> LearningRateSchedule:
    """Calls the function of this module that is called `name`.

    Raises:
        GroupError: There is none, it does not take these arguments, or an argument breaks its bound.

    >>> float(make_schedule("cosine_decay", initial=1e-3, decay_steps=10)(10))
    0.0
    """
    known = schedule_functions()
    if name not in known:
        hint = did_you_mean(str(name), list(known)) or " Write one of these names."
        raise GroupError(
            f"a schedule is called by its name. Received `{name}`. There are {quote(known, limit=len(known))}.{hint}"
        )
    _must_take(known[name], arguments)
    return known[name](**arguments)


def schedule_functions() -> dict[str, Callable[..., LearningRateSchedule]]:
    """The functions of this module that make a schedule, by name."""
    functions = {name: f for name, f in globals().items() if inspect.isfunction(f) and f is not make_schedule}
    return {name: f for name, f in functions.items() if f.__annotations__.get("return") is LearningRateSchedule}


@keras.saving.register_keras_serializable("finetune")
@dataclass(frozen=True, eq=False)
class Schedule(LearningRateSchedule):
    """What the functions above return where Keras has nothing of its own."""

    name: str  # of the function that made it
    arguments: dict[str, Any]  # what that function was given
    rate: Callable[[Any], Any]  # its formula, from a step to float64

    def __call__(self, step: Any) -> Any:
        return tf.cast(self.rate(step), tf.float32)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": keras.saving.serialize_keras_object(self.arguments)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LearningRateSchedule:
        return make_schedule(config["name"], **keras.saving.deserialize_keras_object(config["arguments"]))


def _float64(value: Any) -> Any:
    return tf.cast(value, tf.float64)


def _since(begin: int, step: Any) -> Any:
    return tf.maximum(tf.convert_to_tensor(step) - begin, 0)


def _half_cosine(first: float, last: float, fraction: Any) -> Any:
    return first + (last - first) * (1 - tf.cos(math.pi * fraction)) / 2


def _checked(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments in order, as plain numbers and lists; one error tells of all that break their rule."""
    rules, types = _rules(), function.__annotations__
    broken = {name: value for name, value in given.items() if not rules[name][1](value)}
    if broken:
        told = "; ".join(f"`{n}` must be {rules[n][0]}, received `{reprlib.repr(v)}`" for n, v in broken.items())
        raise GroupError(f"schedule `{function.__name__}`: {told}. {_form(function)} {_advice(broken)}")
    _fit(function, **{name: len(value) for name, value in given.items() if isinstance(value, list | tuple)})
    return {name: _plain(value, int if types[name] in (int, Sequence[int]) else float) for name, value in given.items()}


def _rules() -> dict[str, tuple[str, Callable[[Any], bool]]]:
    """What an argument must be, by its name: a word means the same in every function."""
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
        "boundaries": ("rising whole numbers from 1 on", lambda x: _all(count[1], x) and [*x] == sorted({*x})),
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


def _fit(function: Callable[..., Any], boundaries: int = 0, **pieces: int) -> None:
    for name, number in pieces.items():
        if number != boundaries + 1:
            raise GroupError(
                f"schedule `{function.__name__}`: `{name}` must be one more than `boundaries`, which divide them. "
                f"Received {number} `{name}` and {boundaries} `boundaries`. Give {boundaries + 1} `{name}`."
            )


def _advice(broken: dict[str, Any]) -> str:
    if any(isinstance(value, str) for value in broken.values()):
        return "Write numbers as numbers; YAML reads `1e-5` as text, `1.0e-5` as a number."
    if any(name in broken and _is_number(broken[name]) and broken[name] == 0 for name in ("initial", "peak")):
        return "To keep a group still, say `frozen: true`, not a rate of 0."
    return "Correct what is named here; what has a default may be left out."


def _form(function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    return f"Its form is `{function.__name__}({', '.join(shown)})`."


def _must_take(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    unknown = [name for name in arguments if name not in parameters]
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in arguments]
    told = ([f"does not take {quote(unknown)}"] if unknown else []) + ([f"lacks {quote(missing)}"] if missing else [])
    if told:
        hints = "".join(did_you_mean(name, list(parameters)) for name in unknown[:5]) or " Write exactly these names."
        raise GroupError(f"schedule `{function.__name__}` {' and '.join(told)}. {_form(function)}{hints}")
