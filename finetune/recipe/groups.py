"""The `groups` of a recipe: a list of layer groups, or a strategy that makes them.

A key of a group is added here alone: `finetune.build` hands a `GroupSpec` on whole.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_serializer,
    field_validator,
)

from finetune.errors import quote
from finetune.recipe.fields import (
    AtLeastOne,
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
from finetune.recipe.learning_rates import SCHEDULES, AnySchedule, LearningRate, PolynomialDecay, read_schedule
from finetune.recipe.optimizers import OptimizerSpec
from finetune.recipe.text import dump

# What BatchNormalization does while its group is trained, see `finetune.groups.batch_norm`.
BATCH_NORM_MODES = ("train", "freeze", "affine", "statistics")


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
        prefixes: Names of layers or weights, as in `finetune.Selector`; the next four are selectors, too.
        regex: Regular expressions for whole names of weights.
        layers: Indices or slices of the model's layers.
        variables: Indices or slices of the model's trainable variables.
        order: How `variables` counts: as the model's graph lists them, or in the order in which they were made.
        rest: Whether the group takes all weights that no other group takes.
        frozen: `true`: the group is not trained; it has neither `optimizer` nor `learning_rate`, and any other group
            has both. Without, what is not trainable in the model stays so, such as the kernel below a LoRA adapter;
            `false` trains that, too.
        optimizer: Its optimizer.
        learning_rate: A number or a schedule.
        decay_bias_and_norm: Whether weight decay applies to biases and normalization parameters, too.
        batch_norm: What BatchNormalization does while the group is trained; `statistics` also while it is frozen.
        dropout: Whether dropout inside the group is `on` or `off` while it is frozen. By default it is off in a run
            with phases, and on without.
    """

    name: Annotated[str, matched(r"[A-Za-z0-9_][\w-]*", "must be a name of letters, digits, `_` and `-`")]
    prefixes: OneOrMore[Text] = ()
    regex: OneOrMore[Regex] = ()
    layers: OneOrMore[Index] = ()
    variables: OneOrMore[Index] = ()
    order: Annotated[Literal["graph", "creation"], choice("graph", "creation")] = "graph"
    rest: bool = False
    frozen: bool | None = None
    optimizer: OptimizerSpec | None = None
    learning_rate: LearningRate | None = None
    decay_bias_and_norm: bool = False
    batch_norm: Annotated[str | None, choice(*BATCH_NORM_MODES, None)] = None
    dropout: Annotated[str | None, choice("on", "off", None)] = None

    @field_validator("batch_norm")
    @classmethod
    def _check_batch_norm(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value in ("train", "affine") and info.data.get("frozen"):
            raise fault(
                "trains gamma and beta, and the group is frozen. Write `statistics` to update only the moving "
                "statistics, or `train: {always_train: normalization}`",
                received=value,
            )
        return value

    @field_validator("order")
    @classmethod
    def _check_order(cls, value: str, info: ValidationInfo) -> str:
        if value != "graph" and info.data.get("variables") == ():
            raise fault("says how `variables` are counted, and the group has none. Remove it", received=value)
        return value

    @field_validator("rest")
    @classmethod
    def _check_selectors(cls, value: bool, info: ValidationInfo) -> bool:
        selectors = ("prefixes", "regex", "layers", "variables")
        if not value and all(info.data.get(name) == () for name in selectors):
            raise fault(f"selects nothing. Add one of {quote(selectors)}, or `rest: true`", about="mapping")
        return value

    @field_validator("optimizer", "learning_rate")
    @classmethod
    def _check_frozen(cls, value: Any, info: ValidationInfo) -> Any:
        frozen = info.data.get("frozen")
        if frozen and value is not None:
            raise fault("does not belong in a frozen group. Remove either this or `frozen`")
        if "frozen" in info.data and not frozen and value is None:
            raise fault("is missing. Give the group an `optimizer` and a `learning_rate`, or set `frozen: true`")
        return value

    @field_validator("decay_bias_and_norm")
    @classmethod
    def _check_decay_of_frozen(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("frozen"):
            raise fault("does not belong in a frozen group. Remove either this or `frozen`")
        return value


def _for_all_or_each(*modes: str) -> Any:
    """Returns a check: one of the modes, for all groups, or a mapping from names of groups to modes."""

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(name): check(mode) for name, mode in value.items()}
        if value is not None and value not in modes:
            pick(value, modes)
        return value

    return check


def _read_shape(value: Any) -> Any:
    """Reads a schedule without its rate, which the strategy adds for each group; meanwhile it is 1."""
    model = SCHEDULES.get(str(value.get("schedule"))) if isinstance(value, dict) else None
    if model is None:
        return read_schedule(value)
    if not model.rate_field:
        rule = "holds several rates, so a strategy cannot set its rate. Choose another schedule, or list the groups"
        raise fault(rule, at=("schedule",))
    if model.rate_field in value:
        raise fault("comes from the strategy's `peak` or `spread`. Remove it", at=(model.rate_field,))
    if model is PolynomialDecay and "end" not in value:
        raise fault("needs `end` in a strategy, since the default of 0.0001 may be above the lowest rates. Add it")
    return read_schedule({**value, model.rate_field: 1.0})


Shape = Annotated[AnySchedule, validated_by(_read_shape)]


class Strategy(Part):
    """A group for each layer or block, with rates that grow from input to output.

    Attributes:
        by: What makes a group.
        peak: Rate of the last group.
        spread: Rates of the first and the last group, the others geometrically between; instead of `peak`.
        decay: Ratio of a group's rate to that of the group before it; with `peak`, this or `layer_decay` is required.
        layer_decay: Ratio of a group's rate to that of the group behind it, in (0, 1], as timm and AutoGluon say it.
        optimizer: The optimizer of every group.
        learning_rate: The schedule of every group, with a rate of 1 that `with_rate` replaces; `None` for constant
            rates.
        decay_bias_and_norm: Whether weight decay applies to biases and normalization parameters, too.
        batch_norm: What BatchNormalization does while its group is trained: of all groups, or of some by name.
        dropout: Whether dropout in frozen groups is `on` or `off`: of all groups, or of some by name.
        frozen: `false` trains what is not trainable in the model, too.
    """

    by: Annotated[Literal["layer", "block"], choice("layer", "block")]
    peak: Rate | None = None
    spread: ListOf[Rate] | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    decay: AtLeastOne | None = None
    optimizer: OptimizerSpec
    learning_rate: Shape | None = None
    decay_bias_and_norm: bool = False
    batch_norm: Annotated[str | dict[str, str] | None, BeforeValidator(_for_all_or_each(*BATCH_NORM_MODES))] = None
    dropout: Annotated[str | dict[str, str] | None, BeforeValidator(_for_all_or_each("on", "off"))] = None
    frozen: Annotated[bool | None, choice(False, None)] = None

    @field_validator("spread")
    @classmethod
    def _check_spread(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and (len(value) != 2 or value[0] > value[1]):
            rule = "must be two rates, of the first and of the last group, the smaller one first"
            raise fault(rule, received=list(value))
        return one_of(value, info, "peak")

    @field_validator("layer_decay", "decay")
    @classmethod
    def _check_decay(cls, value: Any, info: ValidationInfo) -> Any:
        written = [name for name in ("layer_decay", "decay") if info.data.get(name) is not None]
        if value is None and info.field_name == "decay" and not written and info.data.get("peak") is not None:
            raise fault("is missing. Add the ratio between neighbouring groups, e.g. `decay: 2.6`")
        if value is not None and info.data.get("spread") is not None:
            raise fault("goes with `peak`, not with `spread`, which sets both ends. Remove it")
        if value is not None and written:
            raise fault(f"says the same as `{written[0]}`. Remove one of the two")
        return value

    @field_serializer("learning_rate")
    def _without_rate(self, value: Any) -> Any:
        return value and {key: item for key, item in value.model_dump(by_alias=True).items() if key != value.rate_field}


def _require_list(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise fault("must be a list of groups, or a strategy such as `{by: layer, ...}`", received=value)
    return value


def _check_together(groups: tuple[GroupSpec, ...]) -> tuple[GroupSpec, ...]:
    names = [group.name for group in groups]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise fault("is already the name of another group. Choose a different name", at=(index, "name"))
    takers = [index for index, group in enumerate(groups) if group.rest]
    if len(takers) > 1:
        raise fault(f"can be in only one group, and `{names[takers[0]]}` has it. Remove one", at=(takers[1], "rest"))
    if all(group.frozen for group in groups):
        raise fault("must contain a group that is trained. Received no groups, or only frozen ones")
    return groups


Groups = Annotated[
    Annotated[ListOf[GroupSpec], BeforeValidator(_require_list), AfterValidator(_check_together), Tag("<list>")]
    | Annotated[Strategy, Tag("<strategy>")],
    Discriminator(lambda value: "<strategy>" if isinstance(value, dict | Strategy) else "<list>"),
]


def groups_block(groups: Sequence[GroupSpec], reasons: Mapping[str, str], header: str) -> str:
    """Writes groups as YAML, with the reason for every group as a comment above it.

    Args:
        groups: The groups, input to output.
        reasons: A line of comment for each group, by its name.
        header: A line of comment above the block.

    Returns:
        The block, to be pasted into a recipe.
    """
    lines = [f"# {header}", "groups:"]
    for group in groups:
        dumped = group.model_dump(by_alias=True, exclude_defaults=True)
        values = {key: list(item) if isinstance(item, tuple) else item for key, item in dumped.items()}  # as YAML has
        lines.append(f"  # {group.name}: {reasons[group.name]}")
        lines += [f"  {line}" for line in dump([values], compact=True).splitlines()]
    return "\n".join(lines) + "\n"
