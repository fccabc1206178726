"""The `phases` of a recipe: a list of stretches of training, or the name of a strategy that stands for such a list."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from finetune.errors import did_you_mean, quote
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
    Text,
    choice,
    fault,
    length_of,
    one_of,
    pick,
    validated_by,
)
from finetune.recipe.groups import BATCH_NORM_MODES, LearningRate

ALL = "all"
_METRIC_MODE = Annotated[Literal["auto", "min", "max"], choice("auto", "min", "max")]


class UntilSpec(Part):
    """Ends a phase early, when a metric no longer gets better."""

    monitor: Text = "val_loss"
    patience: Annotated[int, Field(ge=0)] = 0
    min_delta: NotNegative = 0.0
    mode: _METRIC_MODE = "auto"
    restore_best: bool = False


class PlateauSpec(Part):
    """Lowers all rates in proportion when a metric no longer gets better, until the phase ends."""

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


Train = Annotated[tuple[str, ...] | str, validated_by(_read_train)]
BatchNorm = Annotated[str | dict[str, str], validated_by(_read_modes)]


class PhaseSpec(Part):
    """One stretch of training; see `finetune.training.phases.loop.Phase`.

    Attributes:
        train: Names of groups, or `all`.
        epochs, steps: How long; one of the two.
        rates: A number or a schedule for some groups, in place of their own.
        auto_rgn: The rates follow the relative gradient norms; this is that of the largest.
        clock: What schedules count, and what a `_fraction` is of: the `run` or the `phase`.
        warmup_steps, warmup_epochs, warmup_fraction: A rise of the rates of groups that enter; a fraction of the phase.
        batch_norm: A mode for all groups that are trained, or for some groups.
    """

    train: Train
    epochs: Count | None = None
    steps: Count | None = None
    rates: dict[str, LearningRate] = Field(default_factory=dict)
    auto_rgn: Rate | None = None
    clock: Annotated[Literal["run", "phase"], choice("run", "phase")] = "run"
    warmup_steps: Count | None = None
    warmup_epochs: Positive | None = None
    warmup_fraction: Fraction | None = None
    batch_norm: BatchNorm | None = None
    until: UntilSpec | None = None
    reduce_on_plateau: PlateauSpec | None = None

    @property
    def warmup(self) -> Length | None:
        return length_of(self, "warmup")

    @field_validator("steps")
    @classmethod
    def _one_length(cls, value: Any, info: ValidationInfo) -> Any:
        return one_of(value, info, "epochs")

    @field_validator("warmup_fraction")
    @classmethod
    def _one_warmup(cls, value: Any, info: ValidationInfo) -> Any:
        return one_of(value, info, "warmup_steps", "warmup_epochs", default=None)

    @field_validator("auto_rgn")
    @classmethod
    def _rates_or_auto(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("rates"):
            raise fault("measures the rates, and `rates` gives them. Leave one of the two out")
        return value


class _Strategy(Part):
    """Base of every strategy; `epochs` is the length of its last phase, by default what is left of `train.epochs`."""

    strategy: Any  # a `Literal` in every strategy; here only so that it is dumped first
    epochs: Count | None = None


class FreezeThenAll(_Strategy):
    """The last group alone, then all: fastai's `fine_tune`, with its one-cycle schedules and ratios.

    Attributes:
        frozen_epochs: Length of the first phase.
        peak: Its rate; by default the last group's own. fastai's is 2e-3.
        ratio: How many times smaller the rate of the first group is than that of the last.
    """

    strategy: Literal["freeze_then_all"]
    frozen_epochs: Count = 1
    peak: Rate | None = None
    ratio: AtLeastOne = 100.0


class GradualUnfreezing(_Strategy):
    """One group more in every phase, last to first: ULMFiT, with its rates and slanted triangles.

    Attributes:
        epochs_per_group: Length of every phase but the last.
        peak: Rate of the last group; by default its own.
        decay: Ratio between neighbours.
    """

    strategy: Literal["gradual_unfreezing"]
    epochs_per_group: Count = 1
    peak: Rate | None = None
    decay: AtLeastOne = 2.6


class LpFt(_Strategy):
    """Linear probing, then fine-tuning: the last group alone, then all, at the groups' own rates.

    Attributes:
        probe_epochs: Length of the first phase; by default as long as the second.
    """

    strategy: Literal["lp_ft"]
    probe_epochs: Count | None = None


class ChainThaw(_Strategy):
    """The last group, then every other one alone, first to last, then all, at the groups' own rates.

    Attributes:
        epochs_per_group: Length of every phase but the last, at most.
        patience: Ends every phase when the validation loss has not fallen for so many epochs.
    """

    strategy: Literal["chain_thaw"]
    epochs_per_group: Count = 1
    patience: Annotated[int, Field(ge=0)] | None = None


class Surgical(_Strategy):
    """One group alone, at its own rate.

    Attributes:
        train: Which of those that are not `frozen`.
    """

    strategy: Literal["surgical"]
    train: Annotated[Literal["first", "middle", "last"], choice("first", "middle", "last")]


class AutoRgnSpec(_Strategy):
    """All groups, at rates in proportion to their relative gradient norms, measured before every epoch.

    Attributes:
        peak: Rate of the group with the largest; by default the highest of the groups' own.
    """

    strategy: Literal["auto_rgn"]
    peak: Rate | None = None


AnyStrategy = FreezeThenAll | GradualUnfreezing | LpFt | ChainThaw | Surgical | AutoRgnSpec
STRATEGIES: dict[str, type[_Strategy]] = {
    get_args(model.model_fields["strategy"].annotation)[0]: model for model in get_args(AnyStrategy)
}


def _read_strategy(value: Any) -> Any:
    if isinstance(value, _Strategy):
        return value
    if isinstance(value, str):
        return STRATEGIES[pick(value, STRATEGIES)].model_validate({"strategy": value})
    if "strategy" not in value:
        raise fault(f"is a list of phases, or says which `strategy`. There are {quote(STRATEGIES, limit=9)}")
    return STRATEGIES[pick(value["strategy"], STRATEGIES, at=("strategy",))].model_validate(value)


def _tag_of_phases(value: Any) -> str:
    return "<strategy>" if isinstance(value, str | dict | _Strategy) else "<list>"


def _list_of_phases(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not value:
        raise fault("must be a list of phases, or a strategy such as `gradual_unfreezing`", received=value)
    return value


Phases = Annotated[
    Annotated[ListOf[PhaseSpec], BeforeValidator(_list_of_phases), Tag("<list>")]
    | Annotated[AnyStrategy, validated_by(_read_strategy), Tag("<strategy>")],
    Discriminator(_tag_of_phases),
]


# -- What the phases and the rest of a recipe say together ------------------------------------------------------------


def check_names(phases: Sequence[PhaseSpec], groups: Mapping[str, bool]) -> None:
    """Holds that phases name groups that are trained, and that every such group is trained in one.

    Args:
        phases: The list.
        groups: Of each group, whether it is frozen in all phases.

    Raises:
        PydanticCustomError: They do not; it tells of the first fault and where it is.
    """
    for index, phase in enumerate(phases):
        for steps, name in _names_in(phase):
            at = (index, *steps)
            if name not in groups:
                hint = did_you_mean(name, list(groups)) or f" There are {quote(groups, limit=20)}."
                raise fault(f"names no group. Received: `{name}`.{hint}", at=at)
            if groups[name] and steps[0] != "batch_norm":
                raise fault(
                    f"names `{name}`, which is frozen in all phases. Take `frozen: true` from the group and give it an "
                    "optimizer and a rate, or leave it out here",
                    at=at,
                )
    trained = {name for phase in phases for name in (groups if phase.train == ALL else phase.train)}
    idle = [name for name, frozen in groups.items() if not frozen and name not in trained]
    if idle:
        raise fault(f"trains {quote(idle)} in none of its phases. Add one that does, or say `frozen: true` there")


def _names_in(phase: PhaseSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if phase.train != ALL:
        yield from ((("train", place), name) for place, name in enumerate(phase.train))
    yield from ((("rates", name), name) for name in phase.rates)
    if isinstance(phase.batch_norm, dict):
        yield from ((("batch_norm", name), name) for name in phase.batch_norm)


def disagreement(phases: Sequence[PhaseSpec], epochs: int | None) -> PydanticCustomError | None:
    """Returns the fault of `train.epochs`, if the phases last longer or less long."""
    if epochs is None or epochs == sum(phase.epochs or 0 for phase in phases):
        return None
    every = [phase.epochs for phase in phases if phase.epochs]
    lasts = f"last {sum(every)} epochs together" if len(every) == len(phases) else "say their length in steps"
    return fault(f"is {epochs}, and `phases` {lasts}. Leave it out: the phases say how long", at=("train", "epochs"))
