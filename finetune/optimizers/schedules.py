"""Learning rate schedules: Keras' six and those that Keras lacks, by snake_case name and with the same argument names.

A schedule is a pure function of the step, which may be a number, a tensor or a variable; the rate is float32. Keras'
schedules count steps in float32, so that from step 2**24 on two neighbouring steps are the same number. The schedules
made here count and compute in float64, which is exact up to step 2**53. In a compiled step the staircases of Keras,
like those of TF1 in a session, fall one step late for some `decay_steps` (41, 47, 55, ...; not 10, 50, 100), because
TensorFlow multiplies by a rounded `1 / decay_steps`. The staircase of `natural_exponential_decay` does not.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from finetune.errors import GroupError, did_you_mean, quote
from finetune.optimizers.schedule_arguments import check_names, checked


def exponential_decay(
    initial: float, decay_steps: int, decay_rate: float, *, staircase: bool = False
) -> LearningRateSchedule:
    """Multiplies the rate by `decay_rate` every `decay_steps` steps: `initial * decay_rate ** (step / decay_steps)`.

    With `staircase` the exponent is rounded down: the rate is constant for `decay_steps` steps, then falls. It replaces
    TF1's `tf.compat.v1.train.exponential_decay(learning_rate, global_step, decay_steps, decay_rate, staircase)`. There
    is no `global_step` to pass: the optimizer counts its steps.

    Args:
        initial: Learning rate at step 0. Must be > 0.
        decay_steps: Steps in which the rate falls by the factor `decay_rate`. Must be >= 1.
        decay_rate: That factor. Must be > 0; above 1 the rate rises.
        staircase: Whether the rate falls every `decay_steps` steps instead of at every step.

    Returns:
        Keras' `ExponentialDecay`, for the `learning_rate` of any Keras optimizer.

    Raises:
        GroupError: If an argument is out of its bound. This holds for all functions of this module.

    Examples:
        >>> rate = exponential_decay(1e-4, 100, 0.96, staircase=True)
        >>> [f"{float(rate(step)):.3e}" for step in (0, 99, 100, 200)]
        ['1.000e-04', '1.000e-04', '9.600e-05', '9.216e-05']
        >>> optimizer = keras.optimizers.Adam(learning_rate=rate)
    """
    return keras.optimizers.schedules.ExponentialDecay(*checked(exponential_decay, locals()).values())


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
    arguments = checked(natural_exponential_decay, locals())
    initial, decay_steps, decay_rate, staircase = arguments.values()

    def rate(step: Any) -> Any:
        # Whole numbers are divided as such: a compiler may turn `step / decay_steps` into a rounded product.
        whole_units = tf.cast(step, tf.int64) // decay_steps
        units = _float64(whole_units) if staircase else _float64(step) / decay_steps
        return initial * tf.exp(-decay_rate * units)

    return Schedule("natural_exponential_decay", arguments, rate)


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
    return keras.optimizers.schedules.InverseTimeDecay(*checked(inverse_time_decay, locals()).values())


def polynomial_decay(
    initial: float, decay_steps: int, end: float = 1e-4, power: float = 1.0, *, cycle: bool = False
) -> LearningRateSchedule:
    """Goes from `initial` to `end`: `(initial - end) * (1 - step / decay_steps) ** power + end`. `PolynomialDecay`.

    Args:
        initial: Learning rate at step 0. Must be > 0.
        decay_steps: Steps to `end`, where the rate then stays. Must be >= 1.
        end: Learning rate at the end. Must be >= 0.
        power: 1 is a straight line. Must be > 0.
        cycle: Whether to start anew, in cycles of growing length, instead of remaining at `end`.
    """
    return keras.optimizers.schedules.PolynomialDecay(*checked(polynomial_decay, locals()).values())


def piecewise_constant_decay(boundaries: Sequence[int], values: Sequence[float]) -> LearningRateSchedule:
    """Gives `values[0]` up to and including step `boundaries[0]`, then `values[1]`, ... `PiecewiseConstantDecay`.

    Args:
        boundaries: Last step of each value except the last. Strictly increasing, >= 1.
        values: Learning rates, of which there is 1 more than `boundaries`. Must be > 0.
    """
    return keras.optimizers.schedules.PiecewiseConstantDecay(*checked(piecewise_constant_decay, locals()).values())


def cosine_decay(initial: float, decay_steps: int, alpha: float = 0.0) -> LearningRateSchedule:
    """Falls along half a cosine from `initial` to `alpha * initial`, and stays there. Keras' `CosineDecay`.

    Args:
        initial: Learning rate at step 0. Must be > 0.
        decay_steps: Steps to the end of the fall. Must be >= 1.
        alpha: What is left at the end, as a share of `initial`, in [0, 1].
    """
    return keras.optimizers.schedules.CosineDecay(*checked(cosine_decay, locals()).values())


def cosine_decay_restarts(
    initial: float, first_decay_steps: int, t_mul: float = 2.0, m_mul: float = 1.0, alpha: float = 0.0
) -> LearningRateSchedule:
    """Falls along half a cosine again and again: SGDR's warm restarts. Keras' `CosineDecayRestarts`.

    Args:
        initial: Learning rate at step 0. Must be > 0.
        first_decay_steps: Length of the first fall. Must be >= 1.
        t_mul: Factor by which each fall is longer than the last. Must be >= 1.
        m_mul: How many times higher each fall starts. Must be > 0.
        alpha: What is left at the end of a fall, as a share of `initial`, in [0, 1].

    References:
        Loshchilov & Hutter (2017), SGDR, https://arxiv.org/abs/1608.03983
    """
    return keras.optimizers.schedules.CosineDecayRestarts(*checked(cosine_decay_restarts, locals()).values())


def slanted_triangular(
    peak: float, total_steps: int, cut_fraction: float = 0.1, ratio: float = 32.0
) -> LearningRateSchedule:
    """Rises in a straight line from `peak / ratio` to `peak`, then falls slowly back, and stays there.

    Args:
        peak: Highest learning rate, reached at step `floor(total_steps * cut_fraction)`. Must be > 0.
        total_steps: Length of the training. Must be >= 1; if it is too short for a step of rise, it starts at `peak`.
        cut_fraction: Share of the steps in which the rate rises, in (0, 1).
        ratio: How many times smaller the lowest rate is. Must be >= 1.

    References:
        Howard & Ruder (2018), ULMFiT, equation 3, https://arxiv.org/abs/1801.06146
    """
    arguments = checked(slanted_triangular, locals())
    peak, total_steps, cut_fraction, ratio = arguments.values()
    # Equation 3 of the paper: p rises as t / cut, then falls as 1 - (t - cut) / (cut * (1 / cut_fraction - 1)), and the
    # rate is peak * (1 + p * (ratio - 1)) / ratio.
    cut = math.floor(total_steps * cut_fraction)
    fall = cut * (1 / cut_fraction - 1) if cut else total_steps

    def rate(step: Any) -> Any:
        t = _float64(step)
        # Both branches of `tf.where` are computed: neither may divide by 0, nor fall below p = 0 after the end.
        p = tf.where(t < cut, t / max(cut, 1), tf.maximum(1 - (t - cut) / fall, 0.0))
        return peak * (1 + p * (ratio - 1)) / ratio

    return Schedule("slanted_triangular", arguments, rate)


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
    arguments = checked(one_cycle, locals())
    peak, total_steps, warmup_fraction, div, final_div = arguments.values()
    top = total_steps * warmup_fraction  # the step of the peak, not rounded, as in fastai

    def rate(step: Any) -> Any:
        # Two half cosines, joined at the peak; after the end the rate stays.
        t = tf.minimum(_float64(step), total_steps)
        up = _half_cosine(peak / div, peak, t / top)
        down = _half_cosine(peak, peak / final_div, (t - top) / (total_steps - top))
        return tf.where(t < top, up, down)

    return Schedule("one_cycle", arguments, rate)


def inverse_square_root(peak: float, warmup_steps: int) -> LearningRateSchedule:
    """Rises in a straight line from 0 to `peak`, then falls as `peak * sqrt(warmup_steps / step)`: the transformer's.

    Args:
        peak: Highest learning rate, reached at step `warmup_steps`. Must be > 0.
        warmup_steps: Must be >= 1.

    References:
        Vaswani et al. (2017), Attention is all you need, section 5.3, https://arxiv.org/abs/1706.03762
    """
    arguments = checked(inverse_square_root, locals())
    peak, warmup_steps = arguments.values()

    def rate(step: Any) -> Any:
        # min(t, 1 / sqrt(t)) for t = step / warmup_steps, without dividing by 0 at step 0.
        t = _float64(step) / warmup_steps
        return peak * tf.minimum(t, 1.0) / tf.sqrt(tf.maximum(t, 1.0))

    return Schedule("inverse_square_root", arguments, rate)


def warmup_stable_decay(
    peak: float,
    total_steps: int,
    decay_steps: int,
    warmup_steps: int | None = None,
    alpha: float = 0.0,
    shape: str = "linear",
) -> LearningRateSchedule:
    """Rises in a straight line from 0 to `peak`, stays there, and falls to `alpha * peak` in the last `decay_steps`.

    Until the fall, it does not depend on the length of the training: one that goes on from there for longer has the
    rates of one that was planned so from the start.

    Args:
        peak: The constant learning rate. Must be > 0.
        total_steps: Length of the training; the rate stays at its end afterwards. Must be >= 1.
        decay_steps: Steps of the fall, the last of `total_steps`. Must be >= 1.
        warmup_steps: Steps of the rise. Must be >= 1, or `None` to begin at `peak`.
        alpha: What is left at the end, as a share of `peak`, in [0, 1].
        shape: Of the fall: `linear`, or `1-sqrt`, which falls as 1 minus the square root of the share of its steps.

    References:
        Hu et al. (2024), MiniCPM, section 4, https://arxiv.org/abs/2404.06395
        Hagele et al. (2024), Scaling laws beyond fixed training durations, https://arxiv.org/abs/2405.18392
    """
    arguments = checked(warmup_stable_decay, locals())
    peak, total_steps, decay_steps, warmup_steps, alpha, shape = arguments.values()
    if decay_steps + (warmup_steps or 0) > total_steps:
        raise GroupError(
            "schedule `warmup_stable_decay`: `warmup_steps` and `decay_steps` must fit into `total_steps`. Received "
            f"{warmup_steps or 0}, {decay_steps} and {total_steps}. Make them shorter."
        )

    def rate(step: Any) -> Any:
        # peak * rise * (1 - (1 - alpha) * fallen), in which the constant part is `peak` itself: * 1 and - 0.
        t = _float64(step)
        rise = tf.minimum(t / warmup_steps, 1.0) if warmup_steps else 1.0
        fallen = tf.clip_by_value((t - (total_steps - decay_steps)) / decay_steps, 0.0, 1.0)
        return peak * rise * (1 - (1 - alpha) * (tf.sqrt(fallen) if shape == "1-sqrt" else fallen))

    return Schedule("warmup_stable_decay", arguments, rate)


def constant(initial: float) -> LearningRateSchedule:
    """Gives `initial`, which must be > 0, at every step; for use in `chain` and `with_warmup`."""
    arguments = checked(constant, locals())
    return Schedule("constant", arguments, lambda step: tf.zeros_like(_float64(step)) + arguments["initial"])


def with_warmup(schedule: LearningRateSchedule, warmup_steps: int, start: float = 0.0) -> LearningRateSchedule:
    """Rises in a straight line to the first rate of `schedule`, which then begins.

    Args:
        schedule: Any schedule; it sees the steps since the end of the rise.
        warmup_steps: Length of the rise. Must be >= 1.
        start: Where the rise starts, as a share of the schedule's first rate, in [0, 1].
    """
    arguments = checked(with_warmup, locals())
    schedule, warmup_steps, start = arguments.values()

    def rate(step: Any) -> Any:
        # The schedule is at its step 0 while the rate rises, so that it is not shortened.
        fraction = tf.minimum(_float64(step) / warmup_steps, 1.0)
        return (start + (1 - start) * fraction) * _float64(schedule(_steps_since(warmup_steps, step)))

    return Schedule("with_warmup", arguments, rate)


def chain(schedules: Sequence[LearningRateSchedule], boundaries: Sequence[int]) -> LearningRateSchedule:
    """Runs several schedules in turn; each counts the steps since its start.

    Args:
        schedules: Any schedules; `constant` gives a flat part.
        boundaries: The step at which each schedule except the first starts. Strictly increasing, >= 1.
    """
    arguments = checked(chain, locals())
    schedules, boundaries = arguments.values()

    def rate(step: Any) -> Any:
        # All schedules are computed at every step and the latest that has started is taken: no branch in the graph.
        current = _float64(schedules[0](step))
        for start, schedule in zip(boundaries, schedules[1:], strict=True):
            current = tf.where(_float64(step) >= start, _float64(schedule(_steps_since(start, step))), current)
        return current

    return Schedule("chain", arguments, rate)


def make_schedule(name: str, /, **arguments: Any) -> LearningRateSchedule:
    """Calls the function of this module whose name is `name`.

    Raises:
        GroupError: If there is no such schedule, it does not take these arguments, or an argument is out of its bound.

    Examples:
        >>> float(make_schedule("cosine_decay", initial=1e-3, decay_steps=10)(10))
        0.0
    """
    known = schedule_functions()
    if name not in known:
        hint = did_you_mean(str(name), list(known)) or " Write one of these names."
        raise GroupError(
            f"a schedule is chosen by its name. Received `{name}`. The schedules are "
            f"{quote(known, limit=len(known))}.{hint}"
        )
    check_names(known[name], arguments)
    return known[name](**arguments)


def schedule_functions() -> dict[str, Callable[..., LearningRateSchedule]]:
    """Returns the functions of this module that make a schedule, by name."""
    # No list to keep by hand: a public function that is annotated to return a schedule is one of them.
    functions = {name: f for name, f in globals().items() if inspect.isfunction(f) and f is not make_schedule}
    return {name: f for name, f in functions.items() if f.__annotations__.get("return") is LearningRateSchedule}


@keras.saving.register_keras_serializable("finetune")
@dataclass(frozen=True, eq=False)
class Schedule(LearningRateSchedule):
    """A schedule that Keras lacks; the functions above make it.

    It is saved as the name of that function with its arguments, and made again by calling the function.

    Attributes:
        name: Of the function that made it.
        arguments: Of that function.
        rate: The formula, from a step to a rate in float64.
    """

    name: str
    arguments: dict[str, Any]
    rate: Callable[[Any], Any]

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


# An integer as long as the step is one, so that the schedule inside counts exactly.
def _steps_since(start: int, step: Any) -> Any:
    return tf.maximum(tf.convert_to_tensor(step) - start, 0)


# Goes from `first` at fraction 0 to `last` at 1 with slope 0 at both: first + (last - first) * (1 - cos(pi f)) / 2.
def _half_cosine(first: float, last: float, fraction: Any) -> Any:
    return first + (last - first) * (1 - tf.cos(math.pi * fraction)) / 2
