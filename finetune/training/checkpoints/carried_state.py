"""A checkpoint of one training put into another: what means the same there is carried, what does not begins afresh.

Weights are found by their names in the layer tree. A slot of an optimizer is found by its weight and its own name,
whatever group the weight is in now; it is carried where the rule gives it the same meaning. A group counts the steps of
its bias correction for all of its weights together, so it is carried whole, or begins afresh as one that enters late.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finetune.errors import TrainingError, counted
from finetune.keras_private import step_counter
from finetune.models.output_activation import output_activations
from finetune.models.output_names import output_names
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.checkpoints.class_columns import ClassChange, columns_of_classes, rearranged
from finetune.training.checkpoints.model_state import array_name, parts_of, path_of, set_packed_random_state
from finetune.training.checkpoints.slot_names import (
    OVER_ALL_GROUPS,
    STEPS,
    SlotName,
    read_slot_table,
    slot_names,
    weight_names,
)
from finetune.training.snapshot import holder

# Rules whose slots mean the same: running means of gradients and of their squares, before the bias correction.
_ALIKE = ({"Adam", "AdamW", "Lamb"},)
_Slots = dict[SlotName, tuple[str, np.ndarray]]


@dataclass(frozen=True)
class CarriedPart:
    """What became of the weights, of the slots of a group, or of slots over all groups.

    Attributes:
        name: `weights`, the group, or `average` or `gradient_accumulator`.
        state: `carried`, `fresh` or `dropped`.
        tensors: How many tensors.
        why: Why they are not carried; empty where they are.
    """

    name: str
    state: str
    tensors: int
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the part as JSON has it."""
        return asdict(self)


def carry_over(
    model: Any,
    arrays: Mapping[str, np.ndarray],
    document: Mapping[str, Any],
    *,
    source: str,
    classes: Sequence[ClassChange] = (),
) -> list[CarriedPart]:
    """Puts what a checkpoint holds into a model with other groups, rates, optimizers, precision or outputs.

    Args:
        model: Compiled, with a built `GroupedOptimizer`.
        arrays: As `model_state` returned them of the other model.
        document: Likewise.
        source: The file, for the message.
        classes: The outputs whose classes are others than before.

    Returns:
        What was carried, begins afresh, and was dropped.

    Raises:
        TrainingError: No weight of the model is in the checkpoint, or it is not known which weights belong to which
            class; nothing is changed then.
    """
    parts = parts_of(model)
    names = weight_names(model)
    weights = {names[id(holder(variable))]: variable for variable in parts["model"]}
    keys = document.get("names") or document["paths"]["model"]  # an older file has no names
    saved_weights = {key: arrays[array_name("model", place)] for place, key in enumerate(keys)}
    columns = columns_of_classes(model, classes, saved_weights)
    of_columns, saved_weights = _by_class(model, columns, weights, saved_weights)
    of_weights = _carry_weights(weights, saved_weights, source)
    optimizer: GroupedOptimizer = unwrap(model.optimizer)
    table, saved_state = read_slot_table(document), document["optimizer"]
    paths = document["paths"]["optimizer"]
    rows = {array_name("optimizer", n): row for n, row in enumerate(table) if row}
    saved: _Slots = {row[1]: (row[0], arrays[name]) for name, row in rows.items() if name in arrays}
    here = slot_names(optimizer, names)
    saved = _slots_by_class(columns, parts["optimizer"], weights, here, saved)
    counters = {path: arrays[array_name("optimizer", n)] for n, path in enumerate(paths) if not (table and table[n])}
    for variable in parts["optimizer"]:  # those of a loss scale; rates and starts follow below
        array = counters.get(path_of(variable))
        if id(variable) not in here and array is not None and _fits(variable, array):
            variable.assign(array)
    # An older file does not name its slots, but its first variable is the counter, unless there is a loss scale.
    steps = saved[STEPS][1] if STEPS in saved else next(a for p, a in counters.items() if p.endswith("/iteration"))
    step_counter(optimizer).assign(steps)
    of_groups, starts = _carry_groups(optimizer, parts["optimizer"], here, saved, document, int(steps))
    optimizer.saved_state.carry(saved_state, starts)
    of_all = _carry_over_all(parts["optimizer"], weights, here, saved)
    metrics = [path_of(variable) for variable in parts["metrics"]]
    values = [arrays[array_name("metrics", place)] for place in range(len(document["paths"]["metrics"]))]
    # Those of each class are begun anew, as is the epoch.
    if metrics == list(document["paths"]["metrics"]) and all(map(_fits, parts["metrics"], values)):
        for variable, value in zip(parts["metrics"], values, strict=True):
            variable.assign(value)
    set_packed_random_state(document["random"])
    return [*of_weights, *of_columns, *of_groups, *of_all]


def _fits(variable: Any, array: np.ndarray) -> bool:
    # Not the dtype: in another precision a variable casts what it is assigned.
    return tuple(variable.shape) == array.shape


def _by_class(
    model: Any, columns: Mapping[str, ClassChange], here: Mapping[str, Any], saved: dict[str, np.ndarray]
) -> tuple[list[CarriedPart], dict[str, np.ndarray]]:
    """Returns what became of the weights that have a column for each class, and all weights with these rearranged."""
    activations = dict(zip(output_names(model), output_activations(model), strict=False))
    parts, kept = [], dict(saved)
    for name, change in columns.items():
        array = kept.pop(name, None)
        if array is None:
            continue
        halves = activations.get(change.output) in ("softmax", "linear")
        moved = rearranged(array, here[name].numpy(), change, halves=halves)
        if moved is None:
            parts.append(CarriedPart(name, "fresh", 1, "no class keeps its column"))
            continue
        kept[name] = moved
        new = len({*change.now} - {*change.before})
        parts.append(CarriedPart(name, "carried", 1, f"by the names of the classes; {counted(new, 'column')} fresh"))
    return parts, kept


def _slots_by_class(
    columns: Mapping[str, ClassChange],
    kept: Sequence[Any],
    weights: Mapping[str, Any],
    here: Mapping[int, tuple[str, SlotName]],
    saved: _Slots,
) -> _Slots:
    """Returns saved slots with a column for each class as there are now; those that have other axes fit nowhere."""
    slots = dict(saved)
    for variable in kept:
        name = here[id(variable)][1] if id(variable) in here else None
        if name not in saved or name is None or name.weight not in columns:
            continue
        group, array = saved[name]
        # An average begins at the weights, any other slot at what the rule begins with.
        fresh = (weights[name.weight] if name.slot == "average" else variable).numpy()
        moved = rearranged(array, fresh, columns[name.weight]) if array.ndim else array
        is_whole = tuple(variable.shape) == tuple(weights[name.weight].shape)
        slots[name] = group, moved if moved is not None and (is_whole or not array.ndim) else np.empty((0, 0))
    return slots


def _carry_weights(here: Mapping[str, Any], saved: Mapping[str, np.ndarray], source: str) -> list[CarriedPart]:
    carried = [key for key, variable in here.items() if key in saved and _fits(variable, saved[key])]
    if not carried:
        raise TrainingError(
            f"A run goes on with the network it was begun with. No weight of this network is in `{source}`. Begin "
            "another run in another folder."
        )
    for key in carried:
        here[key].assign(saved[key])
    fresh, dropped = [key for key in here if key not in set(carried)], [key for key in saved if key not in here]
    parts = [CarriedPart("weights", "carried", len(carried))]
    if fresh:
        parts.append(CarriedPart("weights", "fresh", len(fresh), f"new, or of another shape: `{fresh[0]}`"))
    if dropped:
        parts.append(CarriedPart("weights", "dropped", len(dropped), f"no longer in the network: `{dropped[0]}`"))
    return parts


def _carry_groups(
    optimizer: GroupedOptimizer,
    variables: Sequence[Any],
    here: Mapping[int, tuple[str, SlotName]],
    saved: _Slots,
    document: Mapping[str, Any],
    steps: int,
) -> tuple[list[CarriedPart], dict[str, int]]:
    """Carries the slots of groups; returns what became of them, and the step at which each group started."""
    parts, starts, rules = [], {}, document.get("rules", {})
    saved_groups: Mapping[str, Any] = document["optimizer"]["groups"]
    used: set[SlotName] = set()
    for group, child in optimizer.group_optimizers.items():
        slots = {here[id(v)][1]: v for v in variables if id(v) in here and here[id(v)][0] == group}
        used |= {*slots}
        rule = type(child).__name__
        why = next(filter(None, (_reason(name, v, saved, rule, rules) for name, v in slots.items())), "")
        if slots and document.get("slots_left_out"):
            why = "the checkpoint holds no slots (`train.checkpoint_optimizer`)"
        if why or not slots:
            starts[group] = steps if why else saved_groups.get(group, {"start": 0})["start"]
            parts += [CarriedPart(group, "fresh", len(slots), why)] if why else []
            continue
        for name, variable in slots.items():
            variable.assign(saved[name][1])
        # Groups that were merged may have started at different steps: the earliest makes no step larger.
        starts[group] = min(saved_groups[saved[name][0]]["start"] for name in slots)
        parts.append(CarriedPart(group, "carried", len(slots)))
    dropped: Counter[str] = Counter(group for name, (group, _) in saved.items() if group and name not in used)
    parts += [CarriedPart(group, "dropped", count, "no weight or rule takes it") for group, count in dropped.items()]
    return parts, starts


def _reason(name: SlotName, variable: Any, saved: _Slots, rule: str, rules: Mapping[str, str]) -> str:
    """Returns why a slot cannot be carried; an empty text where it can."""
    of = f"`{name.weight or name.slot}`"
    if not saved:
        return "the checkpoint is of an older version, and does not say which slot belongs to which weight"
    if name not in saved:
        # The slots of another rule may have other names; the rule is then what to speak of.
        before = next((rules[group] for key, (group, _) in saved.items() if group and key.weight == name.weight), rule)
        return f"`{before}` is now `{rule}`" if before != rule else f"{of} was not trained, or had no such slot"
    group, array = saved[name]
    before = rules.get(group, rule)
    if before != rule and not any({before, rule} <= alike for alike in _ALIKE):
        return f"`{before}` is now `{rule}`"
    return "" if _fits(variable, array) else f"{of} has another shape"


def _carry_over_all(
    kept: Sequence[Any], weights: Mapping[str, Any], here: Mapping[int, tuple[str, SlotName]], saved: _Slots
) -> list[CarriedPart]:
    """Carries moving averages and accumulated gradients; averages that are new begin at the weights."""
    result = []
    for slot in OVER_ALL_GROUPS:
        variables = {here[id(v)][1]: v for v in kept if id(v) in here and here[id(v)][1].slot == slot}
        carried = [name for name, v in variables.items() if name in saved and _fits(v, saved[name][1])]
        for name, variable in variables.items():
            if name in carried:
                variable.assign(saved[name][1])
            elif slot == "average":
                variable.assign(weights[name.weight])
        fresh = len(variables) - len(carried)
        dropped = sum(name.slot == slot and name not in variables for name in saved)
        why = "it begins at the weights" if slot == "average" else "it begins at 0"
        result += [CarriedPart(slot, "carried", len(carried))] if carried else []
        result += [CarriedPart(slot, "fresh", fresh, why)] if fresh else []
        result += [CarriedPart(slot, "dropped", dropped, "it is no longer kept")] if dropped else []
    return result
