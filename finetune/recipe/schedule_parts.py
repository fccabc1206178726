"""What the schedules of a recipe are made of: a first or highest rate, lengths, a warm-up in front, boundaries.

Every length has three spellings, of which exactly one may be used: `<name>_steps`, `<name>_epochs`, or
`<name>_fraction` of the whole run. `length_of(schedule, "decay")` reads whichever it was. The field that pydantic
validates last carries the check, since it alone sees the other two.
"""

from itertools import pairwise
from typing import Any, ClassVar, Self

from pydantic import ValidationInfo, field_validator

from finetune.recipe.fields import (
    Count,
    Fraction,
    Length,
    ListOf,
    OpenShare,
    Part,
    Positive,
    Rate,
    Share,
    fault,
    length_of,
    one_of,
)


def length_check(name: str, **default: float | None) -> Any:
    """Returns the validator of a length: exactly one of its spellings is there, or, with a `default`, at most one.

    Args:
        name: The length without its unit: `decay` of `decay_steps`, `decay_epochs` and `decay_fraction`.
        default: As `default`: the fraction without any of them; `None` for no such part.
    """

    def check(value: float | None, info: ValidationInfo) -> float | None:
        return one_of(value, info, f"{name}_steps", f"{name}_epochs", **default)

    return field_validator(f"{name}_fraction")(check)


class BaseSchedule(Part):
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


class WithInitial(BaseSchedule):
    """A schedule that starts at a rate.

    Attributes:
        initial: The first rate.
    """

    rate_field: ClassVar[str] = "initial"
    initial: Rate


class WithPeak(BaseSchedule):
    """A schedule that has its highest rate later.

    Attributes:
        peak: The highest rate.
    """

    rate_field: ClassVar[str] = "peak"
    peak: Rate


class WithDecay(BaseSchedule):
    """A schedule with a decay of some length.

    Attributes:
        decay_steps: Length of the decay in steps (batches); exactly one of the three spellings.
        decay_epochs: The same length in epochs.
        decay_fraction: The same length as a fraction of the run.
    """

    decay_steps: Count | None = None
    decay_epochs: Positive | None = None
    decay_fraction: Fraction | None = None

    _check_decay = length_check("decay")


class WithTotal(BaseSchedule):
    """A schedule over a whole length, by default that of the run.

    Attributes:
        total_steps: Length of the whole schedule in steps; at most one of the three spellings, by default the run.
        total_epochs: The same length in epochs.
        total_fraction: The same length as a fraction of the run.
    """

    total_steps: Count | None = None
    total_epochs: Positive | None = None
    total_fraction: Fraction | None = None

    _check_total = length_check("total", default=1.0)


class WithWarmUp(BaseSchedule):
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
        """The linear warm-up in front of the schedule, if there is one."""
        return length_of(self, "warmup")

    _check_warmup = length_check("warmup", default=None)

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


class WithBoundaries(BaseSchedule):
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


def check_part_count(value: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
    """Checks that there is an entry for each part between the boundaries: `n` boundaries make `n + 1` parts."""
    spellings = ("boundaries", "boundaries_epochs", "boundaries_fraction")
    counts = [len(info.data[name]) for name in spellings if info.data.get(name) is not None]
    # Otherwise the boundaries have an error of their own, or are spelled twice.
    if len(counts) == 1 and len(value) != counts[0] + 1:
        raise fault(f"needs {counts[0] + 1} entries, one more than there are boundaries. Received: {len(value)}")
    return value
