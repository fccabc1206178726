"""From the groups and the `train` of a recipe to a compiled model."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import keras

from finetune.build.data import RunLength
from finetune.build.groups import GroupPlan
from finetune.build.rates import build_rate
from finetune.errors import GroupError, RecipeError, did_you_mean, quote, reason
from finetune.groups.layer_tree import takes_weight_decay
from finetune.groups.selectors import LayerGroup
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.momentum import Momentum
from finetune.planning.weights import GroupSettings
from finetune.recipe.loader import place_of
from finetune.recipe.optimizers import Named, OptimizerSpec
from finetune.recipe.schema import Recipe


def build_settings(plans: Sequence[GroupPlan], length: RunLength) -> dict[str, GroupSettings]:
    """Returns the settings of every group that is not frozen, by its name."""
    settings: dict[str, GroupSettings] = {}
    problems: list[str] = []
    for plan in plans:
        try:
            if plan.optimizer:
                settings[plan.selector.name] = _build_settings(plan, plan.optimizer, length)
        except (GroupError, RecipeError) as error:
            problems.append(f"{plan.about}: {error}")
    if problems:
        raise RecipeError("\n".join(list(dict.fromkeys(problems))[:5]))
    return settings


def _build_settings(plan: GroupPlan, optimizer: OptimizerSpec, length: RunLength) -> GroupSettings:
    return GroupSettings(
        optimizer=optimizer.name,
        learning_rate=build_rate(plan.learning_rate, length),
        weight_decay=float(_make_optimizer(optimizer, 1.0).weight_decay or 0.0),
        decay_bias_and_norm=plan.decay_bias_and_norm,
    )


def build_optimizer(
    recipe: Recipe, plans: Sequence[GroupPlan], groups: Sequence[LayerGroup], settings: Mapping[str, GroupSettings]
) -> GroupedOptimizer:
    """Makes one optimizer with a child for every group that is not frozen."""
    children: dict[str, Any] = {}
    for plan, group in zip(plans, groups, strict=True):
        if plan.optimizer is None:
            continue
        child = _make_optimizer(plan.optimizer, settings[group.name].learning_rate)
        undecayed = [leaf.variable for leaf in group.trainable if not takes_weight_decay(leaf)]
        if undecayed and not plan.decay_bias_and_norm:
            child.exclude_from_weight_decay(var_list=undecayed)
        children[group.name] = (child, group)
    train = recipe.train
    return GroupedOptimizer(
        children,
        clipnorm=train.clipnorm,
        clipvalue=train.clipvalue,
        global_clipnorm=train.global_clipnorm,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        use_ema=train.use_ema,
        ema_momentum=train.ema_momentum,
    )


def _make_optimizer(wanted: OptimizerSpec, learning_rate: Any) -> keras.optimizers.Optimizer:
    kind = _optimizer_class(wanted.name)
    own = inspect.signature(kind).parameters.values()
    takes = {p.name: p.default for p in own if p.kind != p.VAR_KEYWORD and p.name not in _NOT_OF_A_GROUP}
    takes = {**takes, **{name: takes.get(name) for name in _OF_EVERY_OPTIMIZER}}
    unknown = [name for name in wanted.arguments if name not in takes]
    if unknown:
        raise RecipeError(
            f"`{wanted.name}` does not take {quote(unknown)}. It takes {quote(takes, limit=20)}."
            f"{did_you_mean(unknown[0], list(takes))}"
        )
    arguments = {name: _as_default(value, takes[name]) for name, value in wanted.arguments.items()}
    wrong = [name for name, value in arguments.items() if not _like_default(name, value, takes[name])]
    if wrong:
        told = ", ".join(f"`{name}: {arguments[name]}`" for name in wrong)
        usual = ", ".join(f"`{name}: {takes[name]}`" for name in wrong)
        raise RecipeError(f"`{wanted.name}` received {told}. The usual values are {usual}. Give one of that kind.")
    try:
        return kind(learning_rate=learning_rate, **arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"`{wanted.name}` does not accept its arguments. Keras says: {reason(error)}.") from error


_OF_EVERY_OPTIMIZER = ("weight_decay", "clipnorm", "clipvalue")
# What is for all groups together stands under `train`.
_NOT_OF_A_GROUP = (
    *("learning_rate", "name", "global_clipnorm", "use_ema", "ema_momentum", "ema_overwrite_frequency"),
    *("loss_scale_factor", "gradient_accumulation_steps"),
)


def _as_default(value: Any, default: Any) -> Any:
    """Makes an integer a float where Keras insists on one: YAML writes `momentum: 0`."""
    return float(value) if type(value) is int and type(default) is float else value


def _like_default(name: str, value: Any, default: Any) -> bool:
    """Whether a value is of its default's kind; Keras itself would fail in the middle of the first step."""
    if value is None and default is None:
        return True
    if name in _OF_EVERY_OPTIMIZER or type(default) in (int, float):
        return type(value) in (int, float)
    return type(value) is bool or type(default) is not bool


def _optimizer_class(name: str) -> type[keras.optimizers.Optimizer]:
    if name == "momentum":
        return Momentum
    return _by_plain_name(keras.optimizers)[name.replace("_", "")]


def _by_plain_name(module: Any) -> dict[str, Any]:
    return {name.lower(): value for name, value in vars(module).items() if inspect.isclass(value)}


def compile_model(recipe: Recipe, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Compiles the model with the recipe's loss and metrics; freeze before this."""
    train = recipe.train
    model.compile(
        optimizer=optimizer,
        loss=_keras_object(recipe, keras.losses, train.loss, "loss"),
        metrics=[
            _keras_object(recipe, keras.metrics, metric, "metrics", index) for index, metric in enumerate(train.metrics)
        ],
        steps_per_execution=1 if train.steps_per_execution == "auto" else train.steps_per_execution,
        jit_compile=train.jit_compile,  # pyright: ignore[reportArgumentType] - Keras' default makes it a str
    )


def _keras_object(recipe: Recipe, module: Any, wanted: Named, *keys: str | int) -> Any:
    """Returns what Keras takes for a loss or metric: its name as written if Keras knows it so, else an object."""
    about = f"{place_of(recipe, 'train', *keys)}: `train.{keys[0]}: {wanted.name}`"
    plain, classes = wanted.name.lower().replace("_", ""), _by_plain_name(module)
    by_shape = _BY_SHAPE if module is keras.metrics else ()
    if not wanted.arguments and plain not in _NO_NAMES:
        with suppress(ValueError, TypeError):
            return wanted.name if wanted.name in by_shape or module.get(wanted.name) else None
    if plain not in classes or plain in _NO_NAMES:
        known = [key for key, value in vars(module).items() if callable(value) and key.lower() not in _NO_NAMES]
        raise RecipeError(f"{about} is no name that Keras knows.{did_you_mean(wanted.name, [*by_shape, *known])}")
    try:
        return classes[plain](**wanted.arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{about} needs other arguments. Keras says: {reason(error)}.") from error


_BY_SHAPE = ("accuracy", "acc", "crossentropy", "ce")  # Keras chooses the kind by the shape of the targets
_NO_NAMES = ("get", "serialize", "deserialize", "loss", "metric")
