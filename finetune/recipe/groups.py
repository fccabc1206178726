"""The `groups` of a recipe: a list of layer groups, or a strategy that makes them."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from finetune.errors import quote
from finetune.recipe.fields import (
    Arguments,
    AtLeastOne,
    Identifier,
    ListOf,
    OneOrMore,
    Part,
    Rate,
    Regex,
    Text,
    choice,
    fault,
    matched,
    one_of,
    pick,
    validated_by,
)
from finetune.recipe.learning_rates import SCHEDULES, AnySchedule, PolynomialDecay, Schedule, read_schedule

OPTIMIZERS = (
    *("sgd", "momentum", "adam", "adamw", "rmsprop", "adagrad", "adadelta", "adamax", "nadam", "ftrl", "lion", "lamb"),
    *("muon", "adafactor", "schedule_free_adamw"),
)
BATCH_NORM_MODES = ("train", "freeze", "affine", "statistics")
_UNDER_TRAIN = "belongs under `train`: it is for all groups together"
_MISPLACED = {
    "learning_rate": "belongs beside `optimizer`, not inside it",
    "global_clipnorm": _UNDER_TRAIN,
    "gradient_accumulation_steps": _UNDER_TRAIN,
    "use_ema": _UNDER_TRAIN,
    "ema_momentum": _UNDER_TRAIN,
    "loss_scale_factor": "cannot be set. Leave it out: `train.mixed_precision` takes care of it",
}


class Named(Part):
    """A thing of Keras by its name: `mse`, or `{name: huber, delta: 0.5}`.

    Attributes:
        name: Keras' name of it.
        arguments: The keyword arguments written beside the name.
    """

    name: Identifier
    arguments: Arguments = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Named):
            return value
        if not isinstance(value, dict):
            raise fault("must be a name, or a mapping with `name`", received=value)
        arguments = {key: item for key, item in value.items() if key != "name"}
        return {key: value[key] for key in ("name",) if key in value} | {"arguments": arguments}

    @model_serializer
    def _join(self) -> Any:
        return {"name": self.name, **self.arguments} if self.arguments else self.name


def _optimizer_name(name: str) -> str:
    plain = {known.replace("_", ""): known for known in OPTIMIZERS}
    return plain.get(name.lower().replace("_", "")) or pick(name, OPTIMIZERS)


def _optimizer_argument(key: str) -> str:
    if key in _MISPLACED:
        raise fault(_MISPLACED[key])
    return key


class OptimizerSpec(Named):
    """A group's optimizer; `name` is one of `OPTIMIZERS` however it was written."""

    name: Annotated[Identifier, AfterValidator(_optimizer_name)]
    arguments: dict[Annotated[Identifier, AfterValidator(_optimizer_argument)], Any] = Field(default_factory=dict)


def _tag_of_learning_rate(value: Any) -> str:
    return "<schedule>" if isinstance(value, dict | BaseModel) else "<number>"


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fault("must be a number or a mapping with `schedule`", received=value)
    return value


LearningRate = Annotated[
    Annotated[Rate, BeforeValidator(_number), Tag("<number>")] | Annotated[Schedule, Tag("<schedule>")],
    Discriminator(_tag_of_learning_rate),
]


def _index_or_slice(value: Any) -> Any:
    is_known = isinstance(value, int | str) and not isinstance(value, bool)
    if not is_known or not re.fullmatch(r"-?[0-9]{1,9}|(-?[0-9]{1,9})?:(-?[0-9]{1,9})?", str(value)):
        raise fault('must be an index or a slice, e.g. `5`, `"0:40"`, `"40:"`', received=value)
    return value


Index = Annotated[int | str, BeforeValidator(_index_or_slice)]


class GroupSpec(Part):
    """A layer group: what selects its weights, and how they are trained.

    Attributes:
        name: Unique among the groups.
        prefixes, regex, layers, variables, rest: Selectors, as in `finetune.groups.selectors.Selector`.
        frozen: The group is not trained; then `optimizer` and `learning_rate` are `None`, else neither is.
        optimizer: Its optimizer.
        learning_rate: A number or a schedule.
        decay_bias_and_norm: Weight decay is for biases and normalisation parameters too.
        batch_norm: What BatchNormalization does while the group is trained; `statistics`, also while it is frozen.
        dropout: Whether dropout inside the group is `on` or `off` while it is frozen; `None`: off in phases.
    """

    name: Annotated[str, matched(r"[A-Za-z0-9_][\w-]*", "must be a name of letters, digits, `_` and `-`")]
    prefixes: OneOrMore[Text] = ()
    regex: OneOrMore[Regex] = ()
    layers: OneOrMore[Index] = ()
    variables: OneOrMore[Index] = ()
    rest: bool = False
    frozen: bool = False
    optimizer: OptimizerSpec | None = None
    learning_rate: LearningRate | None = None
    decay_bias_and_norm: bool = False
    batch_norm: Annotated[str | None, choice(*BATCH_NORM_MODES, None)] = None
    dropout: Annotated[str | None, choice("on", "off", None)] = None

    @field_validator("batch_norm")
    @classmethod
    def _learns_nothing_frozen(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value in ("train", "affine") and info.data.get("frozen"):
            raise fault(
                "trains gamma and beta, and the group is frozen. Say `statistics` to estimate those alone, or "
                "`train: {always_train: normalization}`",
                received=value,
            )
        return value

    @field_validator("rest")
    @classmethod
    def _selects(cls, value: bool, info: ValidationInfo) -> bool:
        selectors = ("prefixes", "regex", "layers", "variables")
        if not value and all(info.data.get(name) == () for name in selectors):
            raise fault(f"selects nothing. Give it {quote(selectors)} or `rest: true`", about="mapping")
        return value

    @field_validator("optimizer", "learning_rate")
    @classmethod
    def _trained_or_frozen(cls, value: Any, info: ValidationInfo) -> Any:
        frozen = info.data.get("frozen")
        if frozen and value is not None:
            raise fault("does not belong in a frozen group. Leave out either this or `frozen`")
        if frozen is False and value is None:
            raise fault("is missing. Give the group an `optimizer` and a `learning_rate`, or say `frozen: true`")
        return value

    @field_validator("decay_bias_and_norm")
    @classmethod
    def _decays_nothing_frozen(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("frozen"):
            raise fault("does not belong in a frozen group. Leave out either this or `frozen`")
        return value


def _read_shape(value: Any) -> Any:
    model = SCHEDULES.get(str(value.get("schedule"))) if isinstance(value, dict) else None
    if model is None:
        return read_schedule(value)
    if not model.rate_field:
        raise fault("has rates of its own, so it cannot follow a strategy. List the groups", at=("schedule",))
    if model.rate_field in value:
        raise fault("comes from the strategy's `peak` or `spread`. Leave it out", at=(model.rate_field,))
    if model is PolynomialDecay and "end" not in value:
        raise fault("needs `end` in a strategy: the usual 0.0001 may be above the lowest rates")
    return read_schedule({**value, model.rate_field: 1.0})


Shape = Annotated[AnySchedule, validated_by(_read_shape)]


class Strategy(Part):
    """A group for each layer or block, with rates that grow from input to output.

    Attributes:
        by: What makes a group.
        peak: Rate of the last group.
        decay: Ratio between neighbours; given with `peak`.
        spread: Rates of the first and the last group, the others geometrically between; instead of `peak`.
        optimizer: The optimizer of every group.
        learning_rate: The schedule of every group, whose `rate_field` is 1: use `with_rate`. `None` for constant rates.
        decay_bias_and_norm: Weight decay is for biases and normalisation parameters too.
    """

    by: Annotated[Literal["layer", "block"], choice("layer", "block")]
    peak: Rate | None = None
    spread: ListOf[Rate] | None = None
    decay: AtLeastOne | None = None
    optimizer: OptimizerSpec
    learning_rate: Shape | None = None
    decay_bias_and_norm: bool = False

    @field_validator("spread")
    @classmethod
    def _peak_or_spread(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and (len(value) != 2 or value[0] > value[1]):
            rule = "must be two rates, of the first and of the last group, the smaller one first"
            raise fault(rule, received=list(value))
        return one_of(value, info, "peak")

    @field_validator("decay")
    @classmethod
    def _decay_of_peak(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("peak") is not None:
            raise fault("is missing. Give the ratio between neighbouring groups, e.g. `decay: 2.6`")
        if value is not None and info.data.get("spread") is not None:
            raise fault("goes with `peak`, not with `spread`, which gives both ends. Leave it out")
        return value

    @field_serializer("learning_rate")
    def _without_rate(self, value: Any) -> Any:
        return value and {key: item for key, item in value.model_dump(by_alias=True).items() if key != value.rate_field}


def _tag_of_groups(value: Any) -> str:
    return "<strategy>" if isinstance(value, dict | Strategy) else "<list>"


def _list_of_groups(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise fault("must be a list of groups, or a strategy such as `{by: layer, ...}`", received=value)
    return value


def _consistent(groups: tuple[GroupSpec, ...]) -> tuple[GroupSpec, ...]:
    names = [group.name for group in groups]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise fault("is already the name of another group. Give each group its own", at=(index, "name"))
    rests = [index for index, group in enumerate(groups) if group.rest]
    if len(rests) > 1:
        raise fault(f"stands in group `{names[rests[0]]}` already. Only one can take the rest", at=(rests[1], "rest"))
    if all(group.frozen for group in groups):
        raise fault("must hold a group that is trained. Received none or only frozen ones")
    return groups


Groups = Annotated[
    Annotated[ListOf[GroupSpec], BeforeValidator(_list_of_groups), AfterValidator(_consistent), Tag("<list>")]
    | Annotated[Strategy, Tag("<strategy>")],
    Discriminator(_tag_of_groups),
]
