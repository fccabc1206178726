"""A single phase as a recipe writes it: what is trained, for how long, at which rates, and what ends it early."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from finetune.recipe.fields import (
    Count,
    Fraction,
    Length,
    NotNegative,
    OpenShare,
    Part,
    Positive,
    Rate,
    Text,
    choice,
    fault,
    length_of,
    one_of,
    pick,
    validated_by,
)
from finetune.recipe.groups import BATCH_NORM_MODES
from finetune.recipe.learning_rates import LearningRate

ALL = "all"
_METRIC_MODE = Annotated[Literal["auto", "min", "max"], choice("auto", "min", "max")]


class UntilSpec(Part):
    """Ends a phase early, when a metric no longer gets better.

    Attributes:
        monitor: A metric, with `val_` that of the validation rows.
        patience: Epochs without an improvement that are waited for.
        min_delta: Smaller changes are no improvement.
        mode: Whether lower (`min`) or higher (`max`) is better; `auto` knows by the name.
        restore_best: Whether the weights of the best epoch come back at the end of the phase.
    """

    monitor: Text = "val_loss"
    patience: Annotated[int, Field(ge=0)] = 0
    min_delta: NotNegative = 0.0
    mode: _METRIC_MODE = "auto"
    restore_best: bool = False


class PlateauSpec(Part):
    """Lowers all rates in proportion when a metric no longer gets better, until the phase ends.

    Attributes:
        monitor: A metric, with `val_` that of the validation rows.
        factor: What the rates are multiplied by.
        patience: Epochs without an improvement that are waited for.
        min_delta: Smaller changes are no improvement.
        mode: Whether lower (`min`) or higher (`max`) is better; `auto` knows by the name.
        cooldown: Epochs after a reduction in which none are counted.
    """

    monitor: Text = "val_loss"
    factor: OpenShare = 0.1
    patience: Annotated[int, Field(ge=0)] = 10
    min_delta: NotNegative = 1e-4
    mode: _METRIC_MODE = "auto"
    cooldown: Annotated[int, Field(ge=0)] = 0


def _read_train(value: Any) -> Any:
    if value == ALL:
        return value
    names = value if isinstance(value, list | tuple) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise fault("must be names of groups, or `all`", received=value)
    return tuple(names)


def _read_modes(value: Any) -> Any:
    if not isinstance(value, dict):
        return pick(value, BATCH_NORM_MODES)
    return {name: pick(mode, BATCH_NORM_MODES, at=(name,)) for name, mode in value.items()}


class PhaseSpec(Part):
    """A stretch of training with a fixed set of trained groups; training knows it as `finetune.Phase`.

    Attributes:
        train: Names of groups, or `all`.
        epochs: Length in epochs; exactly one of `epochs` and `steps`.
        steps: Length in steps (batches).
        rates: A number or a schedule for some groups, in place of the rate of the group.
        auto_rgn: The rates follow the relative gradient norms; this is the rate of the group with the largest.
        clock: What schedules count, and what a `_fraction` is a fraction of: the `run` or the `phase`.
        warmup_steps: Length of a linear rise of the rates of groups that were not trained in the phase before. At most
            one of the three spellings.
        warmup_epochs: The same length in epochs.
        warmup_fraction: The same length as a fraction of the phase, in (0, 1].
        batch_norm: A mode for all groups that are trained, or for some groups.
        until: Ends the phase early.
        reduce_on_plateau: Lowers the rates during the phase.
    """

    train: Annotated[tuple[str, ...] | str, validated_by(_read_train)]
    epochs: Count | None = None
    steps: Count | None = None
    rates: dict[str, LearningRate] = Field(default_factory=dict)
    auto_rgn: Rate | None = None
    clock: Annotated[Literal["run", "phase"], choice("run", "phase")] = "run"
    warmup_steps: Count | None = None
    warmup_epochs: Positive | None = None
    warmup_fraction: Fraction | None = None
    batch_norm: Annotated[str | dict[str, str], validated_by(_read_modes)] | None = None
    until: UntilSpec | None = None
    reduce_on_plateau: PlateauSpec | None = None

    @property
    def warmup(self) -> Length | None:
        """The length of the warm-up, whichever way it was spelled."""
        return length_of(self, "warmup")

    @field_validator("steps")
    @classmethod
    def _check_length(cls, value: Any, info: ValidationInfo) -> Any:
        return one_of(value, info, "epochs")

    @field_validator("warmup_fraction")
    @classmethod
    def _check_warmup(cls, value: Any, info: ValidationInfo) -> Any:
        return one_of(value, info, "warmup_steps", "warmup_epochs", default=None)

    @field_validator("auto_rgn")
    @classmethod
    def _check_rates(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("rates"):
            raise fault("measures the rates, and `rates` sets them. Remove one of the two")
        return value
