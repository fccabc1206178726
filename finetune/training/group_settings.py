"""How the groups of a `FineTuner` are trained: an optimizer for each, all of one kind, and its learning rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from finetune.errors import GroupError, did_you_mean
from finetune.groups.rate_spacing import discriminative_rates, rates_by_group
from finetune.optimizers.group_rates import as_float
from finetune.optimizers.schedules import make_schedule, schedule_functions
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.planning.plan import GroupSettings

_RATE = 1e-3  # of every group, where nothing else is said: what `finetune new` writes
# What an optimizer does over all groups together; `GroupedOptimizer` has these arguments.
_OVER_ALL_GROUPS = (
    *("clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps", "loss_scale_factor"),
    *("use_ema", "ema_momentum", "ema_overwrite_frequency"),
)


def optimizer_template(optimizer: Any, of_model: Any) -> tuple[keras.optimizers.Optimizer, dict[str, Any]]:
    """Returns the optimizer of which every group gets a copy, and what of it is for all groups together.

    Args:
        optimizer: Keras' name of an optimizer, or an optimizer; `None` takes that of the model, or AdamW.
        of_model: The optimizer that the model was compiled with, or `None`.

    Raises:
        GroupError: It is neither, or an optimizer of several groups.
    """
    if isinstance(optimizer, str):
        try:
            optimizer = keras.optimizers.get(optimizer)
        except ValueError as error:
            known = sorted({name.lower() for name, kind in vars(keras.optimizers).items() if isinstance(kind, type)})
            raise GroupError(
                f"`optimizer` is Keras' name of an optimizer, or an optimizer. Received `{optimizer}`."
                f"{did_you_mean(optimizer.lower(), known) or ' Write `adamw`, for example.'}"
            ) from error
        optimizer.learning_rate = _RATE  # not Keras' default, which differs from class to class
    template = unwrap(optimizer if optimizer is not None else of_model)
    # That of another `FineTuner`, or none: its groups are not these.
    if optimizer is None and (template is None or hasattr(template, "group_optimizers")):
        template = keras.optimizers.AdamW(_RATE)
    if not isinstance(template, keras.optimizers.Optimizer) or hasattr(template, "group_optimizers"):
        raise GroupError(
            "`optimizer` is Keras' name of an optimizer, or an optimizer of which every group gets a copy. Received a "
            f"`{type(template).__name__}`. Write `adamw`, for example; a `GroupedOptimizer` goes into `model.compile`."
        )
    config: dict[str, Any] = template.get_config()
    averages = config.get("use_ema")
    return template, {n: config[n] for n in _OVER_ALL_GROUPS if config.get(n) and (averages or "ema" not in n)}


def settings_of_group(template: keras.optimizers.Optimizer, rate: float) -> GroupSettings:
    """Returns how a group is trained: by a new optimizer of the same kind, at its own rate."""
    config = {name: value for name, value in template.get_config().items() if name not in _OVER_ALL_GROUPS}
    optimizer = type(template).from_config({**config, "learning_rate": rate})
    return GroupSettings(optimizer, type(template).__name__.lower(), rate, rate)


def first_rates(
    names: Sequence[str],
    learning_rate: Any,
    template: keras.optimizers.Optimizer,
    decay: float | None,
    layer_decay: float | None,
) -> dict[str, float]:
    """Returns the rate of each group, as `FineTuner` was asked for it.

    Args:
        names: The groups that are trained, input to output.
        learning_rate: In any form of `rates_by_group`; `None` takes that of the optimizer.
        template: The optimizer.
        decay: Ratio of a number to the rate of the group before, >= 1, or `None`.
        layer_decay: The same the other way around, in (0, 1], or `None`.

    Raises:
        GroupError: A rate is in none of these forms, or the optimizer has a schedule.
    """
    if learning_rate in ("auto", "search"):
        raise GroupError(
            f"`{learning_rate}` chooses the rates of a training. Received it for the `FineTuner`. Pass it to `fit`: "
            f'`tuner.fit(3, "{learning_rate}")`.'
        )
    if learning_rate is None:
        config = template.get_config()["learning_rate"]
        if isinstance(config, Mapping):
            raise GroupError(
                "The rates of a `FineTuner` are numbers, and `fit(schedule=...)` says how they change. Received an "
                f"optimizer with the schedule `{config.get('class_name')}`. Pass `learning_rate=` its highest rate."
            )
        learning_rate = float(f"{as_float(config):.7g}")  # as it was written, before it was a float32
    if decay is None and layer_decay is None:
        return rates_by_group(learning_rate, dict.fromkeys(names, _RATE))
    if not isinstance(learning_rate, int | float):
        raise GroupError(
            "`decay` and `layer_decay` space the rates below a number, that of the last group. Received "
            f"`learning_rate={learning_rate!r}`. Remove one of the two."
        )
    rates = discriminative_rates(learning_rate, len(names), decay=decay, layer_decay=layer_decay)
    return dict(zip(names, rates, strict=True))


def scheduled_rate(schedule: Any, rate: float, steps: int) -> Any:
    """Returns a rate that goes through a schedule; a number where there is none.

    Args:
        schedule: Name of a schedule, or a mapping with `schedule` and its arguments; `None` for none.
        rate: Its highest or first rate.
        steps: Its length, unless its arguments say so; 0 if unknown.

    Raises:
        GroupError: There is no such schedule, an argument is wrong, or the length is unknown.
    """
    if schedule is None:
        return rate
    settings = dict(schedule) if isinstance(schedule, Mapping) else {"schedule": schedule}
    name = str(settings.pop("schedule", None))
    function = schedule_functions().get(name)
    if function and not steps:
        raise GroupError(
            f"The schedule `{name}` lasts a whole phase, and how many batches an epoch has is unknown. Pass a dataset "
            "with a length: `dataset.apply(tf.data.experimental.assert_cardinality(100))`."
        )
    known = function.__annotations__ if function else {}
    length = next((key for key in ("total_steps", "decay_steps", "first_decay_steps") if key in known), None)
    of_rate = {key: rate for key in ("peak", "initial") if key in known}
    return make_schedule(name, **{**of_rate, **({length: steps} if length else {}), **settings})
