"""The `learning_rate` of a recipe: a number, or a schedule, a class for each, selected by its key `schedule`.

The formulas are in `finetune.optimizers.schedules`, in functions of the same names and arguments.

What several schedules share (lengths, warm-ups, boundaries) is in `schedule_parts`.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Discriminator, Tag, field_validator

from finetune.errors import quote
from finetune.recipe.fields import (
    AtLeastOne,
    Count,
    Fraction,
    ListOf,
    NotNegative,
    OpenShare,
    Positive,
    Rate,
    Share,
    choice,
    fault,
    pick,
    validated_by,
)
from finetune.recipe.schedule_parts import (
    BaseSchedule,
    WithBoundaries,
    WithDecay,
    WithInitial,
    WithPeak,
    WithTotal,
    WithWarmUp,
    check_part_count,
    length_check,
)


class _RateOfDecay(WithWarmUp, WithDecay, WithInitial):
    """A schedule that falls by the same factor, or at the same speed, all the time.

    Attributes:
        decay_rate: The rate of the decay.
        staircase: Whether the rate falls in steps, once in every `decay_*`.
    """

    # With `t` = step / decay length, rounded down for a `staircase`: see the formulas of the subclasses.
    decay_rate: Positive
    staircase: bool = False


class ExponentialDecay(_RateOfDecay):
    """Falls by the factor `decay_rate` in every `decay_*`: `initial * decay_rate ** t`."""

    schedule: Literal["exponential_decay"]


class NaturalExponentialDecay(_RateOfDecay):
    """Falls by the factor `exp(-decay_rate)` in every `decay_*`: `initial * exp(-decay_rate * t)`."""

    schedule: Literal["natural_exponential_decay"]


class InverseTimeDecay(_RateOfDecay):
    """Falls like a hyperbola: `initial / (1 + decay_rate * t)`."""

    schedule: Literal["inverse_time_decay"]


class PolynomialDecay(WithWarmUp, WithDecay, WithInitial):
    """Goes from `initial` to `end` along a power of the time left.

    Attributes:
        end: The last rate.
        power: Exponent; 1 is a straight line.
        cycle: Whether the decay starts again, longer, instead of staying at `end`.
    """

    schedule: Literal["polynomial_decay"]
    # rate = end + (initial - end) * (1 - t) ** power
    end: NotNegative = 1e-4
    power: Positive = 1.0
    cycle: bool = False


class PiecewiseConstantDecay(WithWarmUp, WithBoundaries):
    """A constant for each part between boundaries.

    Attributes:
        values: Rate of each part: one more than boundaries.
    """

    schedule: Literal["piecewise_constant_decay"]
    # The validator must follow the boundaries in the class: pydantic validates fields in this order.
    values: ListOf[Rate]

    _fits_the_boundaries = field_validator("values")(check_part_count)


class CosineDecay(WithWarmUp, WithDecay, WithInitial):
    """Falls along half a cosine to `alpha` times the first rate.

    Attributes:
        alpha: The last rate as a share of the first.
    """

    schedule: Literal["cosine_decay"]
    alpha: Share = 0.0


class CosineDecayRestarts(WithWarmUp, WithInitial):
    """Falls along half a cosine again and again (SGDR).

    Attributes:
        first_decay_steps: Length of the first cycle in steps; exactly one of the three spellings.
        first_decay_epochs: The same length in epochs.
        first_decay_fraction: The same length as a fraction of the run.
        t_mul: Ratio of the length of a cycle to that of the cycle before.
        m_mul: Ratio of the first rate of a cycle to that of the cycle before.
        alpha: The lowest rate as a share of the first.
    """

    schedule: Literal["cosine_decay_restarts"]
    first_decay_steps: Count | None = None
    first_decay_epochs: Positive | None = None
    first_decay_fraction: Fraction | None = None
    # Cycle k is `t_mul ** k` times as long as the first, and starts at `m_mul ** k` times the first rate.
    t_mul: AtLeastOne = 2.0
    m_mul: Positive = 1.0
    alpha: Share = 0.0

    _check_first_decay = length_check("first_decay")


class InverseSquareRoot(WithPeak):
    """Rises in a straight line to `peak`, then falls with the square root of the step.

    Attributes:
        warmup_steps: Length of the rise in steps; exactly one of the three spellings.
        warmup_epochs: The same length in epochs.
        warmup_fraction: The same length as a fraction of the run.
    """

    schedule: Literal["inverse_square_root"]
    warmup_steps: Count | None = None
    warmup_epochs: Positive | None = None
    warmup_fraction: Fraction | None = None

    _check_warmup = length_check("warmup")


class SlantedTriangular(WithWarmUp, WithTotal, WithPeak):
    """Rises in a straight line to `peak`, then falls slowly in a straight line (ULMFiT).

    Attributes:
        cut_fraction: Share of the steps in which the rate rises.
        ratio: How many times smaller the lowest rate is than `peak`.
    """

    schedule: Literal["slanted_triangular"]
    # The defaults of the paper: a tenth of the steps rises, and the lowest rate is `peak / 32`.
    cut_fraction: OpenShare = 0.1
    ratio: AtLeastOne = 32.0


class OneCycle(WithTotal, WithPeak):
    """Rises to `peak` and falls again, along half cosines (fastai).

    Attributes:
        warmup_fraction: Share of the steps in which the rate rises.
        div: How many times smaller the first rate is than `peak`.
        final_div: How many times smaller the last rate is than `peak`.
    """

    schedule: Literal["one_cycle"]
    # The defaults of fastai: from `peak / div` up to `peak`, then down to `peak / final_div`.
    warmup_fraction: OpenShare = 0.25
    div: AtLeastOne = 25.0
    final_div: AtLeastOne = 1e5


class WarmupStableDecay(WithTotal, WithPeak):
    """Rises in a straight line to `peak`, stays there, and falls at the end of its length (WSD).

    Until it falls, the rate does not depend on the length of the run, which may then be extended.

    Attributes:
        warmup_steps: Length of the rise in steps; at most one of the three spellings.
        warmup_epochs: The same length in epochs.
        warmup_fraction: The same length as a fraction of the run.
        decay_steps: Length of the fall in steps; at most one of the three spellings, by default a tenth of the run.
        decay_epochs: The same length in epochs.
        decay_fraction: The same length as a fraction of the run.
        alpha: The last rate as a share of `peak`.
        shape: Of the fall: `linear`, or `1-sqrt`.
    """

    schedule: Literal["warmup_stable_decay"]
    warmup_steps: Count | None = None
    warmup_epochs: Positive | None = None
    warmup_fraction: Fraction | None = None
    decay_steps: Count | None = None
    decay_epochs: Positive | None = None
    decay_fraction: Fraction | None = None
    alpha: Share = 0.0
    shape: Annotated[Literal["linear", "1-sqrt"], choice("linear", "1-sqrt")] = "linear"

    _check_warmup = length_check("warmup", default=None)

    _check_decay = length_check("decay", default=0.1)


class Constant(WithWarmUp, WithInitial):
    """The same rate at every step; with a warm-up, or as a part of a chain."""

    schedule: Literal["constant"]


class Chain(WithWarmUp, WithBoundaries):
    """Other schedules, one after the other.

    Attributes:
        schedules: The schedules: one more than boundaries. Each counts the steps since its start.
    """

    schedule: Literal["chain"]
    schedules: "ListOf[Schedule]"

    _fits_the_boundaries = field_validator("schedules")(check_part_count)


AnySchedule = (
    ExponentialDecay
    | NaturalExponentialDecay
    | InverseTimeDecay
    | PolynomialDecay
    | PiecewiseConstantDecay
    | CosineDecay
    | CosineDecayRestarts
    | InverseSquareRoot
    | SlantedTriangular
    | OneCycle
    | WarmupStableDecay
    | Constant
    | Chain
)
SCHEDULES: dict[str, type[BaseSchedule]] = {
    get_args(model.model_fields["schedule"].annotation)[0]: model for model in get_args(AnySchedule)
}


def read_schedule(value: Any) -> Any:
    """Validates a mapping against the class that its `schedule` names.

    Only that class is built by pydantic: building all of them would take most of the time of `finetune check`.

    Raises:
        PydanticCustomError: It is not a mapping, or does not name a schedule.
    """
    if isinstance(value, BaseSchedule):
        return value
    if not isinstance(value, dict):
        raise fault("must be a mapping with `schedule`, e.g. `{schedule: cosine_decay, ...}`", received=value)
    if "schedule" not in value:
        raise fault(f"must say which `schedule`: {quote(SCHEDULES, limit=12)}")
    return SCHEDULES[pick(value["schedule"], SCHEDULES, at=("schedule",))].model_validate(value)


Schedule = Annotated[AnySchedule, validated_by(read_schedule)]


def _check_number(value: Any) -> Any:
    # In Python `True` is an int. Text such as "1e-3" is not converted, as everywhere in a recipe.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fault("must be a number or a mapping with `schedule`", received=value)
    return value


LearningRate = Annotated[
    Annotated[Rate, BeforeValidator(_check_number), Tag("<number>")] | Annotated[Schedule, Tag("<schedule>")],
    Discriminator(lambda value: "<schedule>" if isinstance(value, dict | BaseModel) else "<number>"),
]
