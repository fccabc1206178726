"""The plan: what will happen to every weight, readable before training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod
from typing import Any

from finetune.errors import quote
from finetune.groups.batch_norm import BATCH_NORM_MODES, is_batch_norm
from finetune.groups.layer_tree import LayerTree, Leaf, takes_weight_decay
from finetune.groups.selectors import LayerGroup

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
    """All rows, in model order, the rows of the phases (`finetune.training.phases.preview`), if any, and advice."""

    weights: tuple[PlannedWeight, ...]
    groups: tuple[str, ...]
    steps: int
    advice: tuple[str, ...]
    phases: tuple[Any, ...] = ()

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        return data if self.phases else {key: value for key, value in data.items() if key != "phases"}


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
    rates = {name: _first_middle_last(one, steps) for name, one in settings.items()}
    rows = tuple(_row(leaf, group_of[leaf.name], settings, rates, restored_from or {}) for leaf in tree.leaves)
    peaks = {name: _peak(one, steps) for name, one in settings.items()}
    depth = len({leaf.layer for leaf in tree.trainable})
    advice = (*_advice_on_rates(rows, peaks, depth), *_advice_on_frozen(rows))
    return Plan(rows, tuple(group.name for group in groups), steps, advice)


def _row(
    leaf: Leaf,
    group: LayerGroup,
    settings: Mapping[str, GroupSettings],
    rates: Mapping[str, tuple[float, float, float]],
    restored_from: Mapping[str, str],
) -> PlannedWeight:
    trained = settings[group.name] if leaf.trainable and not group.frozen else None
    return PlannedWeight(
        name=leaf.name,
        group=group.name,
        shape=tuple(leaf.variable.shape),
        parameters=prod(leaf.variable.shape),
        frozen=group.frozen,
        optimizer=trained.optimizer if trained else None,
        learning_rate=rates[group.name] if trained else None,
        weight_decay=_weight_decay(trained, leaf) if trained else None,
        batch_normalization=_batch_normalization(leaf, group),
        restored_from=restored_from.get(leaf.name),
    )


def _first_middle_last(settings: GroupSettings, steps: int) -> tuple[float, float, float]:
    last = steps - 1
    return settings.rate_at(0), settings.rate_at(last // 2), settings.rate_at(last)


def _peak(settings: GroupSettings, steps: int) -> float:
    """The highest of 21 rates spread over the run: a rise and fall has its peak between first, middle and last."""
    return max(settings.rate_at(step) for step in {min(steps * n // 20, steps - 1) for n in range(21)})


def _weight_decay(settings: GroupSettings, leaf: Leaf) -> float:
    return settings.weight_decay if settings.decay_bias_and_norm or takes_weight_decay(leaf) else 0.0


def _batch_normalization(leaf: Leaf, group: LayerGroup) -> str | None:
    in_module = bool(getattr(leaf.owner, "statistics", None))  # of a part of a hub layer
    if not (in_module or is_batch_norm(leaf)):
        return None
    if group.frozen:
        return BATCH_NORM_MODES["freeze"]
    return "in module, trains unless a part of it is frozen" if in_module else BATCH_NORM_MODES["train"]


def _advice_on_rates(rows: Sequence[PlannedWeight], peaks: Mapping[str, float], depth: int) -> Iterator[str]:
    places: dict[str, list[int]] = {}  # of each trained group, input to output
    for place, row in enumerate(rows):
        if row.learning_rate:
            places.setdefault(row.group, []).append(place)
    for name in places:
        if peaks[name] > HIGH_RATE and depth > DEEP_LAYERS:
            yield (
                f"Group `{name}` has a learning rate of {peaks[name]:g}. In a network of {depth} layers with weights, "
                f"more than {HIGH_RATE} rarely trains: try {peaks[name] / 10:g}."
            )
    for earlier, later in pairwise(places):
        if peaks[earlier] > peaks[later] and places[earlier][-1] < places[later][0]:
            yield (
                f"Group `{earlier}` has a higher learning rate ({peaks[earlier]:g}) than `{later}` "
                f"({peaks[later]:g}), which is nearer the output. Earlier layers are more general and usually take the "
                "smaller rate."
            )


def _advice_on_frozen(rows: Sequence[PlannedWeight]) -> Iterator[str]:
    for name in dict.fromkeys(row.group for row in rows if row.frozen):
        fresh = [row.name for row in rows if row.group == name and row.restored_from is None]
        if fresh:
            yield (
                f"Group `{name}` is frozen, and {len(fresh)} of its weights are not restored: {quote(fresh)}. Unless "
                "the builder loaded them, they stay random: restore or train them."
            )
