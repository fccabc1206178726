"""The plan: what will happen to every weight, readable before training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import prod
from typing import Any

import keras
import numpy as np

from finetune.errors import counted, quote
from finetune.groups.batch_norm import BATCH_NORM_MODES, UPDATES_STATISTICS, is_batch_norm
from finetune.groups.frozen_by import QUANTIZED
from finetune.groups.layer_tree import LayerTree, Leaf
from finetune.groups.selectors import LayerGroup
from finetune.groups.weight_kinds import takes_weight_decay
from finetune.results.tables import plan_summary

# Advice is given on rates above the first in networks deeper than the second: a rule of thumb, not a limit.
HIGH_RATE, DEEP_LAYERS = 0.1, 7

# Share of the highest rate below which a group hardly moves. Published decays from layer to layer stay above it: 0.65
# over the 14 groups of a ViT-B ends at 0.0037, 2.6 over the four groups of ULMFiT at 0.057, fastai's slice at 0.01.
LOW_SHARE = 1e-3

# Share of their initial values in moving statistics at the end above which they differ much from those of the rows: a
# variance of 0.01 is estimated as 0.06.
_INITIAL_SHARE = 0.05


@dataclass(frozen=True)
class GroupSettings:
    """How a layer group is trained. This is the only place where it is held: everything else reads it from here.

    Attributes:
        optimizer: Its Keras optimizer, made with `learning_rate`.
        optimizer_name: What the optimizer is called in a recipe.
        learning_rate: A number, or a schedule of the step.
        peak: The learning rate, or the first or highest learning rate of the schedule, as it is written.
        decay_bias_and_norm: Whether weight decay is applied to biases and normalization parameters, too.
    """

    optimizer: keras.optimizers.Optimizer
    optimizer_name: str
    learning_rate: float | Callable[[int], Any]
    peak: float
    decay_bias_and_norm: bool = False

    @property
    def weight_decay(self) -> float:
        """Weight decay of the optimizer; 0 for none."""
        return float(self.optimizer.weight_decay or 0.0)

    def rate_at(self, step: int) -> float:
        """Returns the learning rate at a step, counted from 0."""
        return float(self.learning_rate(step)) if callable(self.learning_rate) else float(self.learning_rate)


@dataclass(frozen=True)
class PlannedWeight:
    """The row of a weight in the plan.

    Attributes:
        name: The name of the weight in the layer tree.
        group: The name of its layer group.
        shape: Its shape.
        parameters: How many numbers it holds.
        frozen: Whether it is frozen, with its group or by itself.
        frozen_by: Why it is frozen where other code did that before: `frozen by LoRA`, `quantized` or `not trainable
            when resolved`; else `None`.
        optimizer: The name of its optimizer; `None` for a weight that is not trained.
        learning_rate: The rates of the first, the middle and the last step; `None` for a weight that is not trained.
        weight_decay: Its weight decay, 0 for none; `None` for a weight that is not trained.
        batch_normalization: What a BatchNormalization layer does with it; `None` for weights of other layers.
        restored_from: The name in the file it was restored from, or the file; `None` for a fresh weight.
        peak: The highest rate of its group in the run; `None` for a weight that is not trained.
    """

    name: str
    group: str
    shape: tuple[int, ...]
    parameters: int
    frozen: bool
    frozen_by: str | None
    optimizer: str | None
    learning_rate: tuple[float, float, float] | None
    weight_decay: float | None
    batch_normalization: str | None
    restored_from: str | None
    peak: float | None = None


@dataclass(frozen=True, repr=False)
class Plan:
    """What will happen to every weight; `print` shows its groups, phases and advice.

    Attributes:
        weights: A row for every weight, in model order.
        groups: Names of all groups, input to output.
        steps: Steps of the whole run.
        advice: Sentences for the user, each about a thing that is probably not intended.
        phases: A `finetune.training.phases.preview.PlannedPhase` for every phase; empty where none are shown.
        native: How many layers have a native kernel, by the name of their class; empty where none is used.
    """

    weights: tuple[PlannedWeight, ...]
    groups: tuple[str, ...]
    steps: int
    advice: tuple[str, ...]
    phases: tuple[Any, ...] = ()
    native: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return plan_summary(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as dicts, lists, strings and numbers; without `phases` and `native` where they are empty."""
        return {key: value for key, value in asdict(self).items() if value or key not in ("phases", "native")}


def make_plan(
    tree: LayerTree,
    groups: Sequence[LayerGroup],
    settings: Mapping[str, GroupSettings],
    *,
    steps: int,
    restored_from: Mapping[str, str] | None = None,
) -> Plan:
    """Works out what will happen to every weight when all groups are trained for the whole run.

    Args:
        tree: The model's layer tree.
        groups: All of its layer groups.
        settings: Settings of every group that is not frozen, by its name.
        steps: Steps of the whole run, >= 1.
        restored_from: Source of every restored weight, by its name.
    """
    group_of = {leaf.name: group for group in groups for leaf in group.leaves}
    frozen_by = {leaf.name: leaf.frozen_by for group in groups for leaf in group.leaves}
    # A schedule is a TensorFlow computation: it is called three times for each group, and not for each weight.
    last = steps - 1
    rates = {name: (it.rate_at(0), it.rate_at(last // 2), it.rate_at(last)) for name, it in settings.items()}
    sources = restored_from or {}

    def row(leaf: Leaf) -> PlannedWeight:
        group = group_of[leaf.name]
        frozen = group.frozen or bool(frozen_by[leaf.name])
        trained = settings[group.name] if leaf.trainable and not frozen else None
        # As `finetune.build.optimizer` excludes variables from weight decay.
        decays = trained and (trained.decay_bias_and_norm or takes_weight_decay(leaf))
        return PlannedWeight(
            name=leaf.name,
            group=group.name,
            shape=tuple(leaf.variable.shape),
            parameters=prod(leaf.variable.shape),
            frozen=frozen,
            frozen_by=frozen_by[leaf.name] or None,
            optimizer=trained.optimizer_name if trained else None,
            learning_rate=rates[group.name] if trained else None,
            weight_decay=(trained.weight_decay if decays else 0.0) if trained else None,
            batch_normalization=_batch_normalization(leaf, frozen=frozen),
            restored_from=sources.get(leaf.name),
            peak=max(trained.peak, *rates[group.name]) if trained else None,
        )

    rows = tuple(row(leaf) for leaf in tree.leaves)
    depth = len({leaf.layer for leaf in tree.trainable})
    peaks = {name: it.peak for name, it in settings.items()}
    notes = [note for group in groups for note in (group.order_note, group.overlap_note) if note]
    advice = (
        *notes,
        *_advice_on_rates(rows, peaks, depth),
        *_advice_on_frozen(rows),
        *_advice_on_frozen_by(rows, settings),
    )
    return Plan(rows, tuple(group.name for group in groups), steps, advice)


def advice_on_statistics(plan: Plan, tree: LayerTree) -> Iterator[str]:
    """Says which layers will evaluate with moving statistics that the run is too short to fill.

    Args:
        plan: The plan, with the phases of the run.
        tree: The layer tree of its model.
    """
    shares: dict[str, float] = {}
    for leaf, row in zip(tree.leaves, plan.weights, strict=True):
        if is_batch_norm(leaf) and leaf.variable is leaf.owner.moving_mean and (steps := _updates(plan, row)):
            # Those that a builder loaded are not restored, either, and are not 0.
            is_initial = row.restored_from is None and not np.any(np.asarray(leaf.variable))
            share = leaf.owner.momentum**steps if is_initial else 0.0
            shares |= {leaf.layer: share} if share > _INITIAL_SHARE else {}
    if shares:
        yield (
            "Evaluation and prediction use the moving statistics of BatchNormalization, which at the end of the "
            f"{counted(plan.steps, 'step')} of the run will still be to {max(shares.values()):.0%} what they begin "
            f"with, in {counted(len(shares), 'layer')}: {quote(shares, limit=3)}. Lower their `momentum`, such as to "
            "0.9, train for longer, or estimate them again after training, with `finetune run --recalibrate`."
        )


def _updates(plan: Plan, row: PlannedWeight) -> int:
    """Returns how many steps update moving statistics."""
    if plan.phases:
        return sum(phase.steps for phase in plan.phases if phase.batch_norm.get(row.group) in UPDATES_STATISTICS)
    return plan.steps if "statistics updated" in (row.batch_normalization or "") else 0


def _batch_normalization(leaf: Leaf, *, frozen: bool) -> str | None:
    in_module = bool(getattr(leaf.owner, "statistics", None))  # of a part of a hub layer
    if not (in_module or is_batch_norm(leaf)):
        return None
    if frozen:
        return BATCH_NORM_MODES["freeze"]
    return "in module, trains unless a part of it is frozen" if in_module else BATCH_NORM_MODES["train"]


def _advice_on_rates(rows: Sequence[PlannedWeight], peaks: Mapping[str, float], depth: int) -> Iterator[str]:
    places: dict[str, list[int]] = {}  # of each trained group, input to output
    for place, row in enumerate(rows):
        if row.learning_rate:
            places.setdefault(row.group, []).append(place)
    for name in places:
        # Peaks, because a schedule that rises and falls is low at the first, the middle and the last step.
        if peaks[name] > HIGH_RATE and depth > DEEP_LAYERS:
            yield (
                f"Group `{name}` has a learning rate of {peaks[name]:g}. In a network of {depth} layers with weights, "
                f"more than {HIGH_RATE} rarely trains: try {peaks[name] / 10:g}."
            )
    low = _low_groups(rows, peaks)
    if low:
        highest, lowest = max(peaks.values()), min(peaks[name] for name in low)
        yield (
            f"{len(low)} of {len(peaks)} groups have less than {LOW_SHARE:g} of the highest learning rate "
            f"({highest:g}), down to {lowest:.1e}, and hardly move: {quote(low, limit=3)}. They cost as much as "
            "the others: freeze them, or bring the rates nearer together, with `by: block` or `layer_decay: 0.9`."
        )
    # Groups of which neither ends before the other begins, such as kernels and biases, have no order.
    for earlier, later in pairwise(places):
        if peaks[earlier] > peaks[later] and places[earlier][-1] < places[later][0]:
            yield (
                f"Group `{earlier}` has a higher learning rate ({peaks[earlier]:g}) than `{later}` "
                f"({peaks[later]:g}), which is nearer the output. Earlier layers are more general and usually take the "
                "smaller rate."
            )


def _low_groups(rows: Sequence[PlannedWeight], peaks: Mapping[str, float]) -> list[str]:
    """Returns the groups whose peak is below `LOW_SHARE` of the highest peak that the same optimizer has."""
    optimizers = {row.group: row.optimizer for row in rows if row.optimizer}
    highest = {name: max(peaks[each] for each in peaks if optimizers.get(each) == name) for name in optimizers.values()}
    return [name for name, optimizer in optimizers.items() if peaks[name] < LOW_SHARE * highest[optimizer] * 0.999]


def _advice_on_frozen(rows: Sequence[PlannedWeight]) -> Iterator[str]:
    for name in dict.fromkeys(row.group for row in rows if row.frozen and not row.frozen_by):
        fresh = [row.name for row in rows if row.group == name and row.restored_from is None]
        if fresh:
            are = "is" if len(fresh) == 1 else "are"
            yield (
                f"Group `{name}` is frozen, and {len(fresh)} of its weights {are} not restored: {quote(fresh)}. Unless "
                "the builder loaded them, they stay random: restore or train them."
            )


def _advice_on_frozen_by(rows: Sequence[PlannedWeight], settings: Mapping[str, GroupSettings]) -> Iterator[str]:
    """Says what stays frozen in groups that are to be trained, because other code froze it before."""
    for name in settings:
        kept: dict[str, list[str]] = {}
        for row in rows:
            if row.group == name and row.frozen_by:
                kept.setdefault(row.frozen_by, []).append(row.name)
        if kept:
            parts = [f"{len(names)} {reason} ({quote(names, limit=3)})" for reason, names in kept.items()]
            opens = " `frozen: false` in the group trains them." if kept.keys() != {QUANTIZED} else ""
            yield f"Weights of group `{name}` that do not train: {', '.join(parts)}.{opens}"
