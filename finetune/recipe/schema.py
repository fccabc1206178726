"""The shape of a recipe, checked strictly and without TensorFlow or Keras.

What is raised here completes a sentence that begins with the path of the key; `finetune.recipe.messages` writes it.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from finetune.recipe.fields import (
    Arguments,
    Count,
    FilePath,
    OneOrMore,
    OpenShare,
    Part,
    Positive,
    choice,
    fault,
    one_of,
    pick,
)
from finetune.recipe.groups import OPTIMIZERS, Groups, GroupSpec, Named, OptimizerSpec, Strategy
from finetune.recipe.model import APPLICATIONS, Builder, Head, ModelSource
from finetune.recipe.phase_strategies import written_out
from finetune.recipe.phases import Phases, check_names, disagreement
from finetune.recipe.restore import Restore

__all__ = [
    "APPLICATIONS",
    "OPTIMIZERS",
    "PATH_FIELDS",
    "DataSource",
    "GroupSpec",
    "Head",
    "ModelSource",
    "Named",
    "OptimizerSpec",
    "Recipe",
    "Restore",
    "Strategy",
    "Train",
]
PATH_FIELDS = (
    *(("model", key) for key in ("keras_file", "preset", "hub", "weights")),
    ("data", "npz"),
    ("restore", "from"),
    ("restore", "verify"),
)


class _Source(Part):
    builder: Builder | None = None
    arguments: Arguments = Field(default_factory=dict)

    @field_validator("arguments")
    @classmethod
    def _of_a_builder(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if value and info.data.get("builder", "faulty") is None:
            raise fault("are for a `builder`, and there is none. Leave them out")
        return value


class DataSource(_Source):
    """Where the examples come from: a `builder` with `arguments`, or an `npz` file."""

    npz: FilePath | None = None

    @field_validator("npz")
    @classmethod
    def _one_source(cls, value: Any, info: ValidationInfo) -> Any:
        return one_of(value, info, "builder")


def _auto(value: Any) -> Any:
    if value not in (None, "auto"):
        raise fault("may only be `auto`, which measures it before training. Rates stand in the groups", received=value)
    return value


def _count_or_auto(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise fault("must be a whole number of at least 1, or `auto`, which measures it", received=value)


def _cache(value: Any) -> Any:
    modes = ("auto", "off", "memory", "disk")
    value = "off" if value is False else value  # as YAML reads `off`
    if value not in modes:
        pick(value, modes)
    return value


class Train(Part):
    """How long and in which way all groups are trained together.

    Attributes:
        epochs: Given exactly when there are no `phases`, or a strategy of them that does not say its own.
        always_train: `normalization` trains gamma and beta of normalization layers in frozen groups, too.
        learning_rate: `auto` lets an LR range test choose the rate of the last group before training; the rates of the
            groups then only say their ratios.
        steps_per_execution: Steps in one call, between which no callback is called; `auto` takes as many as last a
            twentieth of a second. The results are the same.
        cache: Where the output of a frozen first part of the network is kept, so that it is run once for every example.
        cache_passes: How many passes with other random numbers are kept, where that part augments the examples.
    """

    epochs: Count | None = None
    batch_size: Count = 32
    learning_rate: Annotated[Literal["auto"] | None, BeforeValidator(_auto)] = None
    always_train: Annotated[Literal["normalization"] | None, choice("normalization", None)] = None
    loss: Named
    metrics: OneOrMore[Named] = ()
    clipnorm: Positive | None = None
    clipvalue: Positive | None = None
    global_clipnorm: Positive | None = None
    gradient_accumulation_steps: Annotated[Count, Field(ge=2)] | None = None
    use_ema: bool = False
    ema_momentum: OpenShare = 0.99
    mixed_precision: Annotated[Literal[False, "bfloat16", "float16"], choice(False, "bfloat16", "float16")] = False
    steps_per_execution: Annotated[int | Literal["auto"], BeforeValidator(_count_or_auto)] = "auto"
    cache: Annotated[Literal["auto", "off", "memory", "disk"], BeforeValidator(_cache)] = "auto"
    cache_passes: Count = 1
    jit_compile: bool = False
    shuffle: bool = True
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @field_validator("global_clipnorm")
    @classmethod
    def _one_way_to_clip(cls, value: Any, info: ValidationInfo) -> Any:
        return one_of(value, info, "clipnorm", "clipvalue", default=None)


class Recipe(Part):
    """A whole recipe, with `extends` and overrides worked in."""

    keys_read_before: ClassVar[tuple[str, ...]] = ("extends",)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    model: ModelSource
    data: DataSource
    restore: Restore | None = None
    groups: Groups
    phases: Phases | None = None
    train: Train
    _tree: Any = PrivateAttr(default=None)  # where everything was written, for `finetune.recipe.loader`

    @field_validator("train", mode="wrap")
    @classmethod
    def _needs_epochs(cls, value: Any, handler: Any, info: ValidationInfo) -> Any:
        """Only phases know themselves how long they are; what else is wrong is told at once."""
        lacks = isinstance(value, dict) and value.get("epochs") is None and info.data.get("phases", "faulty") is None
        details: list[Any] = []
        try:
            made = handler(value)
        except ValidationError as error:
            details = error.errors(include_url=False)
        else:
            if not lacks:
                return made
        if lacks:
            kind = "int_type" if "epochs" in value else "missing"
            details.append({"type": kind, "loc": ("epochs",), "input": value.get("epochs")})
        raise ValidationError.from_exception_data("Train", [_again(one) for one in details])

    @model_validator(mode="after")
    def _agrees(self) -> "Recipe":
        if self.phases is not None:
            self._check_phases()
        if isinstance(self.phases, tuple):
            own = next((n for n, phase in enumerate(self.phases) if phase.rates or phase.auto_rgn), None)
            if own is not None and self.train.learning_rate:
                raise fault(
                    "has rates of its own, which `train.learning_rate: auto` does not measure. Leave out one of them",
                    at=("phases", own),
                )
        return self

    def _check_phases(self) -> None:
        """Checks what can be without the model; groups made by a strategy have no names yet."""
        assert self.phases is not None
        phases: Any = self.phases
        try:
            if isinstance(self.groups, tuple):
                trained = [group.name for group in self.groups if not group.frozen]
                phases = written_out(phases, dict.fromkeys(trained, 1.0), self.train.epochs)
                if isinstance(self.phases, tuple):
                    check_names(phases, {group.name: group.frozen for group in self.groups})
        except PydanticCustomError as error:
            context = error.context or {}
            raise fault(context["predicate"], at=("phases", *context["at"]), about=context["about"]) from None
        if isinstance(phases, tuple) and (wrong := disagreement(phases, self.train.epochs)):
            raise wrong

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.__dict__ == other.__dict__


def _again(one: Any) -> InitErrorDetails:
    kind = PydanticCustomError("fault", "fault", one["ctx"]) if one["type"] == "fault" else one["type"]
    return InitErrorDetails(type=kind, loc=one["loc"], input=one["input"], ctx=one.get("ctx", {}))
