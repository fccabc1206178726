"""The `learning_rate` of a recipe: a number, or a schedule, a class for each, selected by its key `schedule`.

The formulas are in `finetune.optimizers.schedules`, in functions of the same names and arguments.

Every length has three spellings, of which exactly one may be used: `<name>_steps`, `<name>_epochs`, or
`<name>_fraction` of the whole run. `length_of(schedule, "decay")` reads whichever it was. The field that pydantic
validates last carries the check, since it alone sees the other two.
"""

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, Discriminator, Tag, ValidationInfo, field_validator

from finetune.errors import quote
from finetune.recipe.fields import (
    AtLeastOne,
    Count,
    Fraction,
    Length,
    ListOf,
    NotNegative,
    OpenShare,
    Part,
    Positive,
    Rate,
    Share,
    choice,
    fault,
    length_of,
    one_of,
    pick,
    validated_by,
)


class _Schedule(Part):
    """Base of every schedule.

    Attributes:
        schedule: Name of the schedule.
        rate_field: The field that holds the first or highest rate; empty for a schedule with several rates.
    """

    rate_field: ClassVar[str] = ""
    schedule: Any  # a `Literal` in every schedule; declared here so that it is dumped first

    @property
    def leading_warmup(self) -> Length | None:
        """The linear warm-up in front of the schedule, if there is one."""
        return None

    def with_rate(self, rate: float) -> Self:
        """Returns the same shape with another `initial` (or `peak`) rate; needs a `rate_field`."""
        # `model_copy` does not validate: rates of a strategy are computed, and checked where they are made.
        return self.model_copy(update={self.rate_field: rate})


class _Initial(_Schedule):
    """A schedule that starts at a rate.

    Attributes:
        initial: The first rate.
    """

    rate_field: ClassVar[str] = "initial"
    initial: Rate


class _Peak(_Schedule):
    """A schedule that has its highest rate later.

    Attributes:
        peak: The highest rate.
    """

    rate_field: ClassVar[str] = "peak"
    peak: Rate


class _Decay(_Schedule):
    """A schedule with a decay of some length.

    Attributes:
        decay_steps: Length of the decay in steps (batches); exactly one of the three spellings.
        decay_epochs: The same length in epochs.
        decay_fraction: The same length as a fraction of the run.
    """

    decay_steps: Count | None = None
    decay_epochs: Positive | None = None
    decay_fraction: Fraction | None = None

    @field_validator("decay_fraction")
    @classmethod
    def _check_decay(cls, value: float | None, info: ValidationInfo) -> float | None:
        return one_of(value, info, "decay_steps", "decay_epochs")


class _Total(_Schedule):
    """A schedule over a whole length, by default that of the run.

    Attributes:
        total_steps: Length of the whole schedule in steps; at most one of the three spellings, by default the run.
        total_epochs: The same length in epochs.
        total_fraction: The same length as a fraction of the run.
    """

    total_steps: Count | None = None
    total_epochs: Positive | None = None
    total_fraction: Fraction | None = None

    @field_validator("total_fraction")
    @classmethod
    def _check_total(cls, value: float | None, info: ValidationInfo) -> float | None:
        return one_of(value, info, "total_steps", "total_epochs", default=1.0)


class _WarmUp(_Schedule):
    """A linear warm-up in front, from `warmup_from` times the first rate up to it.

    Attributes:
        warmup_steps: Length of the linear warm-up in steps; at most one of the three spellings.
        warmup_epochs: The same length in epochs.
        warmup_fraction: The same length as a fraction of the run.
        warmup_from: Where the warm-up begins, as a share of the first rate.
    """

    warmup_steps: Count | None = None
    warmup_epochs: Positive | None = None
    warmup_fraction: Fraction | None = None
    warmup_from: Share = 0.0

    @property
    def leading_warmup(self) -> Length | None:
        return length_of(self, "warmup")

    @field_validator("warmup_fraction")
    @classmethod
    def _check_warmup(cls, value: float | None, info: ValidationInfo) -> float | None:
        return one_of(value, info, "warmup_steps", "warmup_epochs", default=None)

    @field_validator("warmup_from")
    @classmethod
    def _check_warmup_from(cls, value: float, info: ValidationInfo) -> float:
        # A length that is wrong itself is missing from `info.data`; its own error is enough.
        lengths = ("warmup_steps", "warmup_epochs", "warmup_fraction")
        if value and all(name in info.data and info.data[name] is None for name in lengths):
            raise fault(
                "sets the rate at which a warm-up starts, but there is no warm-up. Add its length as `warmup_steps`"
            )
        return value


class _Boundaries(_Schedule):
    """A schedule of several parts.

    Attributes:
        boundaries: Steps after which the next part begins, rising; exactly one of the three spellings.
        boundaries_epochs: The same in epochs.
        boundaries_fraction: The same as fractions of the run.
    """

    boundaries: ListOf[Count] | None = None
    boundaries_epochs: ListOf[Positive] | None = None
    boundaries_fraction: ListOf[OpenShare] | None = None

    @property
    def switches(self) -> tuple[Length, ...]:
        """Where one stretch ends and the next begins, counted from the start of the schedule."""
        spelled = {"steps": self.boundaries, "epochs": self.boundaries_epochs, "fraction": self.boundaries_fraction}
        return next(tuple(Length(at, unit) for at in places) for unit, places in spelled.items() if places)

    @field_validator("boundaries", "boundaries_epochs", "boundaries_fraction")
    @classmethod
    def _check_growth(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        # Strictly, since equal boundaries would make a part of no steps.
        if value is not None and not (value and all(a < b for a, b in pairwise(value))):
            raise fault(f"must be a list in which every entry is larger than the one before. Received: `{list(value)}`")
        return value

    @field_validator("boundaries_fraction")
    @classmethod
    def _check_boundaries(cls, value: Any, info: ValidationInfo) -> Any:
        return one_of(value, info, "boundaries", "boundaries_epochs")


def _check_count(value: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
    """Checks that there is an entry for each part between the boundaries: `n` boundaries make `n + 1` parts."""
    spellings = ("boundaries", "boundaries_epochs", "boundaries_fraction")
    counts = [len(info.data[name]) for name in spellings if info.data.get(name) is not None]
    # Otherwise the boundaries have an error of their own, or are spelled twice.
    if len(counts) == 1 and len(value) != counts[0] + 1:
        raise fault(f"needs {counts[0] + 1} entries, one more than there are boundaries. Received: {len(value)}")
    return value


class _RateOfDecay(_WarmUp, _Decay, _Initial):
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


class PolynomialDecay(_WarmUp, _Decay, _Initial):
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


class PiecewiseConstantDecay(_WarmUp, _Boundaries):
    """A constant for each part between boundaries.

    Attributes:
        values: Rate of each part: one more than boundaries.
    """

    schedule: Literal["piecewise_constant_decay"]
    # The validator must follow the boundaries in the class: pydantic validates fields in this order.
    values: ListOf[Rate]

    _fits_the_boundaries = field_validator("values")(_check_count)


class CosineDecay(_WarmUp, _Decay, _Initial):
    """Falls along half a cosine to `alpha` times the first rate.

    Attributes:
        alpha: The last rate as a share of the first.
    """

    schedule: Literal["cosine_decay"]
    alpha: Share = 0.0


class CosineDecayRestarts(_WarmUp, _Initial):
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

    @field_validator("first_decay_fraction")
    @classmethod
    def _check_first_decay(cls, value: float | None, info: ValidationInfo) -> float | None:
        return one_of(value, info, "first_decay_steps", "first_decay_epochs")


class InverseSquareRoot(_Peak):
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

    @field_validator("warmup_fraction")
    @classmethod
    def _check_warmup(cls, value: float | None, info: ValidationInfo) -> float | None:
        return one_of(value, info, "warmup_steps", "warmup_epochs")


class SlantedTriangular(_WarmUp, _Total, _Peak):
    """Rises in a straight line to `peak`, then falls slowly in a straight line (ULMFiT).

    Attributes:
        cut_fraction: Share of the steps in which the rate rises.
        ratio: How many times smaller the lowest rate is than `peak`.
    """

    schedule: Literal["slanted_triangular"]
    # The defaults of the paper: a tenth of the steps rises, and the lowest rate is `peak / 32`.
    cut_fraction: OpenShare = 0.1
    ratio: AtLeastOne = 32.0


class OneCycle(_Total, _Peak):
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


class WarmupStableDecay(_Total, _Peak):
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

    @field_validator("warmup_fraction")
    @classmethod
    def _check_warmup(cls, value: float | None, info: ValidationInfo) -> float | None:
        return one_of(value, info, "warmup_steps", "warmup_epochs", default=None)

    @field_validator("decay_fraction")
    @classmethod
    def _check_decay(cls, value: float | None, info: ValidationInfo) -> float | None:
        return one_of(value, info, "decay_steps", "decay_epochs", default=0.1)


class Constant(_WarmUp, _Initial):
    """The same rate at every step; with a warm-up, or as a part of a chain."""

    schedule: Literal["constant"]


class Chain(_WarmUp, _Boundaries):
    """Other schedules, one after the other.

    Attributes:
        schedules: The schedules: one more than boundaries. Each counts the steps since its start.
    """

    schedule: Literal["chain"]
    schedules: "ListOf[Schedule]"

    _fits_the_boundaries = field_validator("schedules")(_check_count)


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
SCHEDULES: dict[str, type[_Schedule]] = {
    get_args(model.model_fields["schedule"].annotation)[0]: model for model in get_args(AnySchedule)
}


def read_schedule(value: Any) -> Any:
    """Validates a mapping against the class that its `schedule` names.

    Only that class is built by pydantic: building all of them would take most of the time of `finetune check`.

    Raises:
        PydanticCustomError: It is not a mapping, or does not name a schedule.
    """
    if isinstance(value, _Schedule):
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
