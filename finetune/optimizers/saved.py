"""What a grouped optimizer keeps in a model's config and file, and how it is read back."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from finetune.errors import GroupError, quote
from finetune.optimizers.group import Group
from finetune.optimizers.variable_keys import VariableKey


def group_config(group: Group, keys: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the config of a group: its optimizer as the user made it, and the places of its variables.

    Args:
        group: The group.
        keys: The fields of the `VariableKey` of each of its variables.
    """
    config: Any = keras.saving.serialize_keras_object(group.optimizer)
    rate = group.initial_rate
    if not isinstance(rate, float):
        rate = keras.saving.serialize_keras_object(rate)
    # Not the child's present rate and accumulation: the parent manages these, the first in its state.
    config["config"] |= {"learning_rate": rate, "gradient_accumulation_steps": None}
    return {"name": group.name, "optimizer": config, "variables": keys}


def read_groups(
    configs: Iterable[Mapping[str, Any]], custom_objects: Any = None
) -> tuple[dict[str, tuple[keras.optimizers.Optimizer, list[Any]]], dict[int, VariableKey]]:
    """Makes the groups again, with placeholders for the variables: an optimizer is loaded before it sees the model.

    Args:
        configs: As `group_config` makes them.
        custom_objects: Classes of optimizers and schedules by name, as in `keras.saving`.

    Returns:
        The groups as `GroupedOptimizer` takes them, and the key of each placeholder by its `id`.
    """
    groups, keys = {}, {}
    for config in configs:
        child = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects=custom_objects)
        variables = config.get("variables") or config["seats"]  # in files from before the first release
        placeholders = [(key.placeholder(), key) for key in map(VariableKey.from_dict, variables)]
        if undecayed := [placeholder for placeholder, key in placeholders if not key.weight_decay]:
            child.exclude_from_weight_decay(var_list=undecayed)
        groups[config["name"]] = (child, [placeholder for placeholder, _ in placeholders])
        keys |= {id(placeholder): key for placeholder, key in placeholders}
    return groups, keys


def fitting_values(store: Any, variables: Iterable[Any], group_names: Iterable[str]) -> list[Any]:
    """Returns the values that a store holds for the variables, in their order.

    Args:
        store: A mapping from `0`, `1`, ... to arrays, as Keras passes to `load_own_variables`.
        variables: The optimizer's; the last is the steps at which the groups started.
        group_names: For the message.

    Raises:
        GroupError: If the store does not hold exactly one value of the right shape for each.
    """
    # Keras' stores have `keys` without being dicts; entries that are not numbered are not state.
    values = [store[key] for key in map(str, range(len(store.keys()))) if key in store.keys()]  # noqa: SIM118 - no dict
    expected, saved = [tuple(v.shape) for v in variables], [tuple(v.shape) for v in values]
    if saved == expected[:-1]:  # of a version in which all groups started at step 0
        return [*values, np.zeros(expected[-1], "int64")]
    if saved != expected:
        raise GroupError(
            not_loaded(
                f"The file holds {len(saved)} variables, this optimizer with the groups {quote(group_names)} has "
                f"{len(expected)}{'' if len(saved) != len(expected) else ', of other shapes'}."
            )
        )
    return values


def not_loaded(difference: str) -> str:
    """Returns the message about a state that does not fit.

    Args:
        difference: Sentences that say what the file holds and what the optimizer has.
    """
    return (
        f"An optimizer's state fits the optimizer it was saved from. {difference} Of the optimizer, nothing was "
        "loaded: its slots, its step and its learning rates are as they were. The weights of the model are not "
        "concerned. To go on with the training of the file, use the same groups and optimizers; to start from its "
        "weights alone, ignore this."
    )
