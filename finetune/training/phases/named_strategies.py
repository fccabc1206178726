"""Strategies of unfreezing by name, for `train_phases`: the same that a recipe writes under `phases`."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import GroupError, RecipeError
from finetune.groups.selectors import LayerGroup
from finetune.optimizers.schedules import make_schedule
from finetune.recipe.phase_spec import PhaseSpec
from finetune.recipe.phases import strategy_phases
from finetune.training.phases.phase import Phase
from finetune.training.phases.until import Until


def phases_of_strategy(
    strategy: str | Mapping[str, Any],
    groups: Sequence[LayerGroup],
    rates: Mapping[str, Any],
    *,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
) -> tuple[Phase, ...]:
    """Writes a strategy out as the phases that it is short for.

    Args:
        strategy: Its name, such as `gradual_unfreezing`, or a mapping with `strategy` and its settings, as in a recipe.
        groups: The layer groups, input to output.
        rates: Learning rate of each group by name: a number, a Keras schedule or a callable.
        epochs: Length of the whole run, from which that of the last phase follows, unless the strategy has `epochs`.
        steps_per_epoch: Batches in an epoch; needed by strategies that bring schedules. `None` if unknown.

    Returns:
        The phases. Where the strategy leaves a group its own schedule, that schedule starts anew in every phase, and
        its steps are those it was made with.

    Raises:
        GroupError: The strategy breaks a rule, or does not say how long it is; the number of batches or a peak rate is
            needed and unknown.

    Examples:
        >>> from finetune.groups.selectors import resolve_groups
        >>> layers = [keras.layers.Dense(3, name="body"), keras.layers.Dense(2, name="head")]
        >>> model = keras.Sequential([keras.Input((4,)), *layers])
        >>> groups = resolve_groups(model, by="layer")
        >>> rates = {"body": 1e-4, "head": 1e-3}
        >>> for phase in phases_of_strategy("lp_ft", groups, rates, epochs=4):
        ...     print(phase.train, phase.epochs)
        ('head',) 2
        all 2
    """
    peaks = {group.name: peak_of_rate(rates[group.name]) for group in groups if not group.frozen}
    try:
        specs = strategy_phases(strategy, peaks, epochs, source="train_phases")
    except RecipeError as error:
        raise GroupError(str(error)) from None
    name = strategy if isinstance(strategy, str) else str(strategy["strategy"])
    return tuple(_phase(spec, name, steps_per_epoch) for spec in specs)


def _phase(spec: PhaseSpec, strategy: str, steps_per_epoch: int | None) -> Phase:
    assert spec.epochs
    if spec.rates and steps_per_epoch is None:
        raise GroupError(
            f"The strategy `{strategy}` sets schedules that last a whole phase, and the number of batches in an "
            "epoch is "
            "unknown. Pass `steps_per_epoch`."
        )
    rates = {name: _schedule(rate, spec.epochs * (steps_per_epoch or 0)) for name, rate in spec.rates.items()}
    until = Until(**spec.until.model_dump()) if spec.until else None
    return Phase(spec.train, epochs=spec.epochs, rates=rates, clock=spec.clock, auto_rgn=spec.auto_rgn, until=until)


def _schedule(rate: Any, steps: int) -> Any:
    """Makes a schedule over the whole phase; a strategy has no other (`total_fraction` is 1)."""
    # A fraction is of the run, whose length only a recipe knows; here the length is given in steps.
    settings = {key: value for key, value in rate.model_dump().items() if key not in ("schedule", "total_fraction")}
    return make_schedule(rate.schedule, total_steps=steps, **settings)


def peak_of_rate(rate: Any) -> float | None:
    """Returns a number as it is, and of a schedule the first or highest rate, as a recipe counts it.

    Args:
        rate: A number, a Keras schedule, a schedule of `finetune`, or a callable.

    Returns:
        The peak; `None` for a schedule whose formula is not known here.
    """
    if isinstance(rate, int | float):
        return float(rate)
    arguments = getattr(rate, "arguments", {})  # of a schedule of `finetune`
    if "schedule" in arguments:  # `with_warmup`
        return peak_of_rate(arguments["schedule"])
    if "schedules" in arguments:  # `chain`
        peaks = [peak_of_rate(part) for part in arguments["schedules"]]
        return None if None in peaks else max(peak for peak in peaks if peak is not None)
    if isinstance(rate, keras.optimizers.schedules.PiecewiseConstantDecay):
        return float(max(rate.values))
    initial = arguments.get("peak", arguments.get("initial", getattr(rate, "initial_learning_rate", None)))
    return None if initial is None else float(max(initial, getattr(rate, "warmup_target", None) or 0))


def steps_in_epoch(x: Any, batch_size: int, fit: Mapping[str, Any]) -> int | None:
    """Counts the batches of an epoch as `model.fit` will.

    Args:
        x: Inputs as `fit` takes them: arrays, a structure of arrays, a `tf.data.Dataset` or a `PyDataset`.
        batch_size: Rows in a batch, for arrays.
        fit: The other arguments of `fit`.

    Returns:
        The number of batches; `None` where only a pass through the data could tell.
    """
    if fit.get("steps_per_epoch"):
        return int(fit["steps_per_epoch"])
    if isinstance(x, tf.data.Dataset):
        batches = int(x.cardinality())
    elif isinstance(x, keras.utils.PyDataset):
        batches = x.num_batches or 0
    elif hasattr(x, "__next__"):  # a generator
        return None
    else:
        parts = [part for part in keras.tree.flatten(x) if part is not None]
        if not parts or not hasattr(parts[0], "shape"):
            return None
        # Keras takes the validation rows off the end, and rounds the training rows down.
        rows = int(np.floor(int(parts[0].shape[0]) * (1 - fit.get("validation_split", 0.0))))
        batches = -(-rows // batch_size)
    return batches if batches > 0 else None
