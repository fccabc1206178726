"""What a grouped optimizer keeps in a model's config and file, and how it is read back."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import GroupError, quote
from finetune.optimizers.group import Group
from finetune.optimizers.variable_keys import VariableKey


def group_config(group: Group, keys: list[dict[str, Any]]) -> dict[str, Any]:
    """The group's optimizer as the user made it: with its first rate, and without what the parent gave it."""
    config: Any = keras.saving.serialize_keras_object(group.optimizer)
    rate = group.initial_rate
    if not isinstance(rate, float):
        rate = keras.saving.serialize_keras_object(rate)
    config["config"] |= {"learning_rate": rate, "gradient_accumulation_steps": None}
    return {"name": group.name, "optimizer": config, "variables": keys}


def read_groups(
    configs: Iterable[Mapping[str, Any]], custom_objects: Any = None
) -> tuple[dict[str, tuple[keras.optimizers.Optimizer, list[Any]]], dict[int, VariableKey]]:
    """Makes the groups again, with stand-ins for the variables of a model that is still to come.

    Returns:
        The groups, and the key of each stand-in by its `id`.
    """
    groups, keys = {}, {}
    for config in configs:
        child = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects=custom_objects)
        taken = [
            (key.stand_in(), key) for key in map(VariableKey.from_dict, config.get("variables") or config["seats"])
        ]
        if undecayed := [stand_in for stand_in, key in taken if not key.weight_decay]:
            child.exclude_from_weight_decay(var_list=undecayed)
        groups[config["name"]] = (child, [stand_in for stand_in, _ in taken])
        keys |= {id(stand_in): key for stand_in, key in taken}
    return groups, keys


def fitting_values(store: Any, variables: Iterable[Any], group_names: Iterable[str]) -> list[Any]:
    """Returns the values that a store holds for the variables, in their order.

    Raises:
        GroupError: If the store does not hold exactly one value of the right shape for each.
    """
    values = [store[key] for key in map(str, range(len(store.keys()))) if key in store.keys()]  # noqa: SIM118 - no dict
    ours, theirs = [tuple(v.shape) for v in variables], [tuple(v.shape) for v in values]
    if theirs == ours[:-1]:  # of a version in which all groups began at step 0
        return [*values, np.zeros(ours[-1], "int64")]
    if ours != theirs:
        raise GroupError(
            f"An optimizer's state fits the optimizer it was saved from. The file holds {len(theirs)} variables, this "
            f"optimizer with the groups {quote(group_names)} has {len(ours)}"
            f"{'' if len(ours) != len(theirs) else ', of other shapes'}. No state was loaded. Use the same groups and "
            "optimizers, or load the weights before `compile`."
        )
    return values


@contextmanager
def made_at_once() -> Iterator[None]:
    """Lets what is made meanwhile be made outside of a function that is being traced.

    TensorFlow traces a function twice that makes variables, as that of `fit` does with Keras' own optimizers.
    """

    def make(next_creator: Any, **settings: Any) -> tf.Variable:
        return next_creator(**{**settings, "experimental_enable_variable_lifting": False})

    if tf.distribute.has_strategy():  # makes variables in its own way
        yield
    else:
        with tf.init_scope(), tf.variable_creator_scope(make):
            yield


def track_all(child: keras.optimizers.Optimizer) -> None:
    """Counts what a child made as a plain attribute, as Nadam its product, among its variables."""
    known = {id(variable) for variable in (*child.variables, child._iterations, child._learning_rate)}
    for value in list(vars(child).values()):
        if isinstance(value, keras.Variable) and id(value) not in known:
            child._track_variable(value)
