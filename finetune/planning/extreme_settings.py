"""Advice on settings that are finite numbers and make nonsense of training: a plan says it before anything is trained.

Everything here is a size that can be computed from the settings alone, against what float32 and the rules can take.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from finetune.planning.plan import GroupSettings

# Rules that divide a gradient by its own size: a step is about as long as the rate, whatever the gradient is.
_OF_UNIT_SIZE = (
    *(keras.optimizers.Adam, keras.optimizers.Adamax, keras.optimizers.Nadam, keras.optimizers.RMSprop),
    *(keras.optimizers.Lion, keras.optimizers.Adagrad),
)
_LONG_STEP = {True: 1.0, False: 100.0}  # rates of rules of unit size and of others beyond which nothing trains
_LARGE_DECAY = 0.1  # share of a weight that decay takes in a step; AdamW's usual 0.01 x 1e-3 takes 1e-5
_SMALL_NORM = 1e-6  # of clipped gradients: Adam's epsilon is 1e-7, and weights are about 0.1
_LARGE_EPSILON = 1e3
_FEW_STEPS = 4  # in a run of fewer there is no middle
_LOST_RATE = 1e-4  # of the peak, below which a group no longer learns
_OLD_SHARE = 0.5  # of the moving average that may still be the weights of the first step


def advice_on_extremes(settings: Mapping[str, GroupSettings], train: Mapping[str, Any], steps: int) -> Iterator[str]:
    """Yields a sentence for each setting with which training cannot do what it is for.

    Args:
        settings: Settings of every group that is not frozen, by its name.
        train: What holds for all groups, by the names of the arguments of `GroupedOptimizer`: `clipnorm`, `clipvalue`,
            `global_clipnorm`, `use_ema`, `ema_momentum` and `gradient_accumulation_steps`.
        steps: Steps of the whole run, >= 1.
    """
    for name, group in settings.items():
        peak = max([group.peak, *(group.rate_at(step) for step in {0, steps // 2, steps - 1})])
        of_unit_size = isinstance(group.optimizer, _OF_UNIT_SIZE)
        if peak >= _LONG_STEP[of_unit_size]:
            reason = "moves each weight by about its rate in a step" if of_unit_size else "multiplies gradients by it"
            yield (
                f"group `{name}` has a learning rate of {peak:.3g}. `{group.optimizer_name}` {reason}, and weights are "
                "about 0.1: it cannot train. Lower the rate; `finetune lr-range` finds one"
            )
        yield from _advice_on_length(name, group, steps)
        share = peak * group.weight_decay
        if share > _LARGE_DECAY:
            yield (
                f"weight decay takes {share:.3g} times the weights of group `{name}` off them in a step "
                f"(`weight_decay` {group.weight_decay:.3g} times the rate {peak:.3g}): above 1 they change sign, "
                "above 2 they grow without end. Usual values are 0.001 to 0.1"
            )
        epsilon = getattr(group.optimizer, "epsilon", None)
        if isinstance(epsilon, int | float) and epsilon > _LARGE_EPSILON:
            yield f"`epsilon: {epsilon:.3g}` divides every step of group `{name}`, which hardly moves. Leave it out"
    for key in ("clipnorm", "clipvalue", "global_clipnorm"):
        if train.get(key) and train[key] < _SMALL_NORM:
            yield (
                f"`train.{key}: {train[key]:.3g}` makes gradients so small that no weight moves in float32. Usual "
                "values are 0.1 to 10"
            )
    updates = steps // (train.get("gradient_accumulation_steps") or 1)
    share = train["ema_momentum"] ** max(updates - 1, 0) if train.get("use_ema") else 0.0
    if share > _OLD_SHARE:
        yield (
            f"the moving average that the model ends with (`train.use_ema`) is still to {share:.0%} the weights of the "
            f"first of {updates:,} updates: `ema_momentum: {train['ema_momentum']:g}` averages over about "
            f"{1 / (1 - train['ema_momentum']):,.0f}. Lower it, or train for longer"
        )


def _advice_on_length(name: str, group: GroupSettings, steps: int) -> Iterator[str]:
    """Yields a sentence where a schedule seems to count in steps what was meant in epochs, or the reverse."""
    rates = [group.rate_at(step) for step in (0, steps // 2, 3 * steps // 4, steps - 1)]
    first, length = max(group.peak, rates[0]), getattr(group.learning_rate, "decay_steps", 0)
    units = "`decay_steps` counts batches, `decay_epochs` passes over the rows"
    if steps > 1 and length >= steps and len(set(rates)) == 1:
        yield (
            f"the learning rate of group `{name}` stays at {first:.3g}: the run has {steps:,} steps, and the rate "
            f"falls after {length:,}. {units}"
        )
    if steps >= _FEW_STEPS and max(rates[1:]) < _LOST_RATE * first:
        yield (
            f"the learning rate of group `{name}` has fallen from {first:.3g} to {rates[1]:.3g} in the middle of the "
            f"run of {steps:,} steps: it learns nothing after. {units}"
        )
