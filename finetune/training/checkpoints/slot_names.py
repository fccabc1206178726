"""What each variable of an optimizer is: the slot of which weight, in which group, by which name.

A checkpoint holds it, so that the state of an optimizer can be carried into a training with other groups, in which
the variables have other paths and another order.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from finetune.groups.layer_tree import layer_tree
from finetune.keras_private import accumulated_gradients, held_rate, known_variables, moving_averages, step_counter
from finetune.optimizers.fused.slots import SlotView
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.snapshot import holder

OVER_ALL_GROUPS = ("average", "gradient_accumulator")


class SlotName(NamedTuple):
    """The name of a slot.

    Attributes:
        weight: The weight that the slot belongs to, as `weight_names` has it; empty for one of all of a group.
        slot: Its name in the rule, such as `_momentums`, or one of `OVER_ALL_GROUPS`.
    """

    weight: str
    slot: str


STEPS = SlotName("", "steps")  # of the whole training


def weight_names(model: keras.Model) -> dict[int, str]:
    """Returns the name of each variable of a model by the `id` of what it holds: those of the layer tree.

    Paths would not do: several weights may share one, and it may begin with a number that Keras counts in the process.
    """
    names = {id(holder(leaf.variable)): leaf.name for leaf in layer_tree(model).leaves}
    seeds = [variable for variable in model.variables if id(holder(variable)) not in names]
    return names | {id(holder(variable)): f"seed~{place}" for place, variable in enumerate(seeds)}


def slot_names(optimizer: GroupedOptimizer, weights: Mapping[int, str]) -> dict[int, tuple[str, SlotName]]:
    """Returns the group and the name of each slot of a built optimizer, by the `id` of the slot.

    The group is empty for a slot that the optimizer keeps over all groups.

    Args:
        optimizer: The optimizer.
        weights: What `weight_names` returns of its model.
    """
    names: dict[int, tuple[str, SlotName]] = {id(step_counter(optimizer)): ("", STEPS)}
    for slot, variables in zip(OVER_ALL_GROUPS, (moving_averages, accumulated_gradients), strict=True):
        for weight, variable in zip(known_variables(optimizer), variables(optimizer), strict=False):
            if variable is not None:
                names[id(variable)] = "", SlotName(weights.get(id(holder(weight)), ""), slot)
    for group, child in optimizer.group_optimizers.items():
        trained, rate = known_variables(child), held_rate(child)
        for slot, value in vars(child).items():
            for index, variable in _slots_in(value, len(trained)):
                if variable is rate or variable is step_counter(child):
                    continue
                weight = "" if index is None else weights.get(id(holder(trained[index])), "")
                names.setdefault(id(variable), (group, SlotName(weight, slot)))
    return names


def slot_table(optimizer: GroupedOptimizer, weights: Mapping[int, str], variables: Sequence[Any]) -> dict[str, Any]:
    """Returns the names of some variables of an optimizer as JSON has them, with the rule of each group.

    Args:
        optimizer: The optimizer.
        weights: What `weight_names` returns of its model.
        variables: Those of the optimizer; one that is no slot has `None`.
    """
    names = slot_names(optimizer, weights)
    rows = [names.get(id(variable)) for variable in variables]
    return {
        "slots": [row and [row[0], *row[1]] for row in rows],
        "rules": {group: type(child).__name__ for group, child in optimizer.group_optimizers.items()},
    }


def read_slot_table(document: Mapping[str, Any]) -> list[tuple[str, SlotName] | None]:
    """Returns what `slot_table` has written; an empty list for an older file."""
    return [row and (row[0], SlotName(*row[1:])) for row in document.get("slots", ())]


def _slots_in(value: Any, count: int) -> Iterator[tuple[int | None, Any]]:
    """Yields the variables in an attribute of a rule, each with the place of its weight."""
    kinds = (keras.Variable, SlotView)
    if isinstance(value, kinds):
        yield None, value
    elif isinstance(value, list) and len(value) == count:
        yield from ((place, each) for place, each in enumerate(value) if isinstance(each, kinds))
