"""From a recipe to objects. Nothing below this floor has ever heard of recipes."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError, RecipeError, did_you_mean, quote, reason
from finetune.groups.layer_tree import LayerTree, takes_weight_decay
from finetune.groups.rates import discriminative_rates, length_in_steps, spread_rates
from finetune.groups.resolver import LayerGroup, Selector, resolve_groups
from finetune.groups.strategies import selectors_by_block, selectors_by_layer
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.momentum import Momentum
from finetune.optimizers.schedules import chain, make_schedule, schedule_functions, with_warmup
from finetune.pretrained.restore import RestoreReport, restore
from finetune.pretrained.transforms import Transform
from finetune.recipe.fields import length_of
from finetune.recipe.grouping import Group, Named, Optimizer, Strategy
from finetune.recipe.loader import place_of, resolve_path
from finetune.recipe.restoring import TransformRule
from finetune.recipe.schema import Recipe
from finetune.sources.data import Examples, check_examples, read_npz, with_text_as_objects
from finetune.sources.models import call_builder
from finetune.training.plan import GroupSettings


@dataclass(frozen=True)
class RunLength:
    """How long a run or a phase of it is, in batches; `total_steps` only where the last epoch is cut short."""

    epochs: int
    steps_per_epoch: int
    total_steps: int | None = None

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch if self.total_steps is None else self.total_steps

    def in_steps(self, amount: float, unit: str) -> int:
        return length_in_steps(amount, unit, steps_per_epoch=self.steps_per_epoch, total_steps=self.steps)


@contextmanager
def precision(recipe: Recipe) -> Iterator[None]:
    """Sets the seed and the dtype policy of the recipe; the policy is put back afterwards."""
    mixed = recipe.train.mixed_precision
    if mixed and recipe.model.keras_file:
        raise RecipeError(
            f"{place_of(recipe, 'train', 'mixed_precision')}: a model from a file keeps the precision it was saved "
            f"with. The recipe says `keras_file` and `train.mixed_precision: {mixed}`. Use a `builder` and restore the "
            "weights, or leave it away."
        )
    before = keras.config.dtype_policy()
    keras.utils.set_random_seed(recipe.seed)
    keras.config.set_dtype_policy(f"mixed_{mixed}" if mixed else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build_examples(recipe: Recipe) -> Examples:
    """Reads or makes the examples."""
    source = recipe.data
    if source.npz:
        return with_text_as_objects(read_npz(resolve_path(recipe, source.npz)))
    assert source.builder
    return with_text_as_objects(check_examples(call_builder(source.builder, source.arguments)))


def training_rows(recipe: Recipe, examples: Examples) -> int:
    """Counts the rows that are trained on as Keras will, which takes the validation rows off the end."""
    fraction, every = recipe.train.validation_fraction, len(examples.x_train)
    rows = floor(every * (1.0 - fraction))
    wrong = "but the data have validation rows of their own. Use one or the other" if _has_validation(examples) else ""
    if not wrong and rows in (0, every):
        wrong = f"leaves {rows} of {every} rows to train on. Both parts need a row: choose another fraction"
    if fraction and wrong:
        place = place_of(recipe, "train", "validation_fraction")
        raise RecipeError(f"{place}: `train.validation_fraction: {fraction}` {wrong}.")
    return rows


def run_length(recipe: Recipe, examples: Examples) -> RunLength:
    """Counts the batches as Keras will; without `train.epochs`, as of one epoch."""
    return RunLength(recipe.train.epochs or 1, ceil(training_rows(recipe, examples) / recipe.train.batch_size))


def build_batches(recipe: Recipe, examples: Examples) -> tf.data.Dataset:
    """Makes shuffled whole batches of the training rows, for measurements; one batch if there are fewer rows."""
    rows = training_rows(recipe, examples)
    x, y = (tf.convert_to_tensor(array[:rows]) for array in (examples.x_train, examples.y_train))
    order = tf.data.Dataset.range(rows).shuffle(rows, seed=recipe.seed)
    batches = order.batch(min(recipe.train.batch_size, rows), drop_remainder=True)
    return batches.map(lambda picked: (tf.gather(x, picked), tf.gather(y, picked)))


def build_rows(recipe: Recipe, examples: Examples) -> tf.data.Dataset:
    """Makes batches of all training rows, in their order."""
    rows = training_rows(recipe, examples)
    arrays = (examples.x_train[:rows], examples.y_train[:rows])
    return tf.data.Dataset.from_tensor_slices(arrays).batch(recipe.train.batch_size)


def _has_validation(examples: Examples) -> bool:
    return examples.x_validation is not None


def restore_weights(recipe: Recipe, model: keras.Model, *, verify: bool = True) -> RestoreReport | None:
    """Restores the pretrained weights that the recipe names, if any, and compares outputs where it asks for that."""
    wanted = recipe.restore
    if wanted is None:
        return None
    return restore(
        model,
        resolve_path(recipe, wanted.source),
        exclude=wanted.exclude,
        rename=wanted.rename,
        transform=[_transform(rule) for rule in wanted.transform],
        allow_missing=wanted.allow_missing,
        allow_unused=wanted.allow_unused,
        min_coverage=wanted.min_coverage or 0.0,
        verify=resolve_path(recipe, wanted.verify) if verify and wanted.verify else None,
        **{name: getattr(wanted, name) for name in ("verify_rtol", "verify_atol") if getattr(wanted, name) is not None},
    )


def _transform(rule: TransformRule) -> Transform:
    """Takes what the rule says, and the defaults of `Transform` for the rest."""
    return Transform(**{name: value for name, value in rule if value is not None})


# -- Groups -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupPlan:
    """One group as the recipe wants it; `optimizer` is `None` exactly when the group is frozen.

    Attributes:
        about: What messages about it begin with, e.g. "recipes/pets.yaml:14:5: group `body`".
    """

    about: str
    selector: Selector
    optimizer: Optimizer | None
    learning_rate: Any
    decay_bias_and_norm: bool


def plan_groups(recipe: Recipe, tree: LayerTree) -> list[GroupPlan]:
    """Writes a strategy out as a list of groups; a list is taken as it is."""
    if isinstance(recipe.groups, Strategy):
        about = f"{place_of(recipe, 'groups')}: `groups`"
        try:
            return _strategy_groups(recipe.groups, tree, about)
        except GroupError as error:
            raise RecipeError(f"{about}: {error}") from error
    return [
        GroupPlan(
            f"{place_of(recipe, 'groups', index)}: group `{group.name}`",
            _selector(group),
            group.optimizer,
            group.learning_rate,
            group.decay_bias_and_norm,
        )
        for index, group in enumerate(recipe.groups)
    ]


def _selector(group: Group) -> Selector:
    return Selector(
        name=group.name,
        prefixes=group.prefixes,
        regex=group.regex,
        layers=group.layers,
        variables=group.variables,
        rest=group.rest,
        frozen=group.frozen,
    )


def _strategy_groups(strategy: Strategy, tree: LayerTree, about: str) -> list[GroupPlan]:
    selectors = (selectors_by_layer if strategy.by == "layer" else selectors_by_block)(tree)
    if strategy.spread:
        low, high = strategy.spread
        rates = spread_rates(low, high, len(selectors))
    else:
        assert strategy.peak is not None
        assert strategy.decay is not None
        rates = discriminative_rates(strategy.peak, len(selectors), decay=strategy.decay)
    shape = strategy.learning_rate
    return [
        GroupPlan(
            about,
            selector,
            strategy.optimizer,
            shape.with_rate(rate) if shape else rate,
            strategy.decay_bias_and_norm,
        )
        for selector, rate in zip(selectors, rates, strict=True)
    ]


def build_groups(recipe: Recipe, plans: Sequence[GroupPlan], tree: LayerTree) -> tuple[LayerGroup, ...]:
    """Resolves the selectors to layer groups that cover every trainable weight once."""
    try:
        return resolve_groups(tree, [plan.selector for plan in plans])
    except GroupError as error:
        raise GroupError("\n".join(_placed(recipe, line) for line in str(error).splitlines())) from None


def _placed(recipe: Recipe, line: str) -> str:
    """Puts in front of a resolver's line where the recipe wrote the selector that it is about."""
    about = re.match(r"group `(?P<group>[^`]+)`(?:[^`]*`(?P<selector>\w+): )?", line)
    names = [] if isinstance(recipe.groups, Strategy) else [group.name for group in recipe.groups]
    if line.startswith("... and "):
        return line
    if not about or about["group"] not in names:
        return f"{place_of(recipe, 'groups')}: {line}"
    return f"{place_of(recipe, 'groups', names.index(about['group']), about['selector'] or 'name')}: {line}"


# -- Optimizers and schedules -----------------------------------------------------------------------------------------


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


def _build_settings(plan: GroupPlan, optimizer: Optimizer, length: RunLength) -> GroupSettings:
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


def _make_optimizer(wanted: Optimizer, learning_rate: Any) -> keras.optimizers.Optimizer:
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


def build_rate(rate: Any, length: RunLength) -> Any:
    """Returns a number as it is, and a schedule of the recipe as a Keras schedule with its lengths in steps."""
    if isinstance(rate, int | float):
        return float(rate)
    if rate.schedule == "chain":
        schedule = chain([build_rate(part, length) for part in rate.schedules], _boundaries(rate, length))
    else:
        takes = inspect.signature(schedule_functions()[rate.schedule]).parameters
        schedule = make_schedule(rate.schedule, **{name: _argument(rate, name, length) for name in takes})
    if rate.leading_warmup:
        return with_warmup(schedule, length.in_steps(*rate.leading_warmup), start=rate.warmup_from)
    return schedule


def _argument(rate: Any, name: str, length: RunLength) -> Any:
    if name == "boundaries":
        return _boundaries(rate, length)
    given = length_of(rate, name.removesuffix("_steps")) if name.endswith("_steps") else None
    return length.in_steps(*given) if given else getattr(rate, name)


def _boundaries(rate: Any, length: RunLength) -> list[int]:
    return [length.in_steps(*switch) for switch in rate.switches]


# -- Compiling --------------------------------------------------------------------------------------------------------


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
