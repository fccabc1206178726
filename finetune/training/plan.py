"""The plan: what will happen to every weight, readable before training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod
from typing import Any

import keras

from finetune.groups.layer_tree import LayerTree, Leaf, takes_weight_decay
from finetune.groups.resolver import LayerGroup

HIGH_RATE, DEEP_LAYERS = 0.1, 7


@dataclass(frozen=True)
class GroupSettings:
    """How one group is trained.

    Attributes:
        optimizer: Name of its optimizer.
        learning_rate: A number, or a schedule of the step.
        weight_decay: Weight decay of the optimizer, 0 for none.
        decay_bias_and_norm: Whether biases and normalisation parameters decay too.
    """

    optimizer: str
    learning_rate: float | Callable[[int], Any]
    weight_decay: float = 0.0
    decay_bias_and_norm: bool = False

    def rate_at(self, step: int) -> float:
        return float(self.learning_rate(step)) if callable(self.learning_rate) else float(self.learning_rate)


@dataclass(frozen=True)
class PlannedWeight:
    """One weight's row in the plan. Rates are those of the first, the middle and the last step."""

    name: str
    group: str
    shape: tuple[int, ...]
    parameters: int
    frozen: bool
    optimizer: str | None
    learning_rate: tuple[float, float, float] | None
    weight_decay: float | None
    batch_normalization: str | None
    restored_from: str | None


@dataclass(frozen=True)
class Plan:
    """All rows, in model order, and what seems unwise."""

    weights: tuple[PlannedWeight, ...]
    groups: tuple[str, ...]
    steps: int
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(
    tree: LayerTree,
    groups: Sequence[LayerGroup],
    settings: Mapping[str, GroupSettings],
    *,
    steps: int,
    restored_from: Mapping[str, str] | None = None,
) -> Plan:
    """Lays down what happens to every weight.

    Args:
        tree: The model's layer tree.
        groups: All of its layer groups.
        settings: Settings of every group that is not frozen, by its name.
        steps: Steps of the whole run, >= 1.
        restored_from: Source of every restored weight, by its name.
    """
    group_of = {leaf.name: group for group in groups for leaf in group.leaves}
    rows = tuple(_row(leaf, group_of[leaf.name], settings, steps, restored_from or {}) for leaf in tree.leaves)
    trained = list(dict.fromkeys(row.group for row in rows if row.learning_rate))  # input to output
    depth = len({leaf.layer for leaf in tree.trainable})
    peaks = {name: max(_first_middle_last(settings[name], steps)) for name in trained}
    return Plan(rows, tuple(group.name for group in groups), steps, tuple(_advice(peaks, depth)))


def _row(
    leaf: Leaf, group: LayerGroup, settings: Mapping[str, GroupSettings], steps: int, restored_from: Mapping[str, str]
) -> PlannedWeight:
    trained = settings[group.name] if leaf.trainable and not group.frozen else None
    return PlannedWeight(
        name=leaf.name,
        group=group.name,
        shape=tuple(leaf.variable.shape),
        parameters=prod(leaf.variable.shape),
        frozen=group.frozen,
        optimizer=trained.optimizer if trained else None,
        learning_rate=_first_middle_last(trained, steps) if trained else None,
        weight_decay=_weight_decay(trained, leaf) if trained else None,
        batch_normalization=_batch_normalization(leaf, group),
        restored_from=restored_from.get(leaf.name),
    )


def _first_middle_last(settings: GroupSettings, steps: int) -> tuple[float, float, float]:
    last = max(steps - 1, 0)
    return settings.rate_at(0), settings.rate_at(last // 2), settings.rate_at(last)


def _weight_decay(settings: GroupSettings, leaf: Leaf) -> float:
    return settings.weight_decay if settings.decay_bias_and_norm or takes_weight_decay(leaf) else 0.0


def _batch_normalization(leaf: Leaf, group: LayerGroup) -> str | None:
    if not isinstance(leaf.owner, keras.layers.BatchNormalization):
        return None
    return "inference, statistics stand" if group.frozen else "training, statistics move"


def _advice(peaks: Mapping[str, float], depth: int) -> Iterator[str]:
    for name, peak in peaks.items():
        if peak > HIGH_RATE and depth > DEEP_LAYERS:
            yield (
                f"Group `{name}` has a learning rate of {peak:g}. In a network of {depth} layers with weights, more "
                f"than {HIGH_RATE} rarely trains: try {peak / 10:g}."
            )
    for (earlier, high), (later, low) in pairwise(peaks.items()):
        if high > low:
            yield (
                f"Group `{earlier}` has a higher learning rate ({high:g}) than `{later}` ({low:g}), which is nearer "
                "the output. Earlier layers are more general and usually take the smaller rate."
            )
