"""What a grouped optimizer does to the optimizers of its groups, its children."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError, quote
from finetune.keras_private import (
    add_to_variables,
    excluded_from_weight_decay,
    held_rate,
    known_variables,
    replace_known_variables,
    set_held_rate,
    set_step_counter,
    skip_reduction,
    step_counter,
    untracked,
    variable_positions,
)
from finetune.optimizers.group import Group
from finetune.optimizers.group_rates import GroupRate, ScaledSchedule, as_float


def adopt(group: Group, parent: keras.optimizers.Optimizer) -> GroupRate:
    """Prepares a child: it counts with the parent, leaves the sum over replicas to it, and its rate can be written.

    Args:
        group: A group with a new optimizer; its `initial_rate`, `rate_variable` and `unused_counter` are set.
        parent: Keeps the multiplier of a scheduled child among its variables.
    """
    child = group.optimizer
    child.name = group.name  # in the paths of its slots, and so in files
    group.unused_counter = step_counter(child)
    set_step_counter(child, step_counter(parent))
    skip_reduction(child)  # `update_once` has summed the gradients over the replicas
    # Keras keeps a number in a variable, which can be written; a schedule or callable it only calls.
    rate = held_rate(child)
    if isinstance(rate, keras.Variable):
        group.initial_rate, group.rate_variable = as_float(rate), rate
        return GroupRate(rate)
    multiplier = parent.add_variable((), initializer="ones", dtype="float32", name=f"{group.name}_multiplier")
    group.initial_rate, group.rate_variable = rate, multiplier
    schedule = ScaledSchedule(rate, step_counter(parent), multiplier)
    set_held_rate(child, schedule)
    return GroupRate(multiplier, schedule)


def check_rates_writable(groups: Iterable[Group]) -> None:
    """Checks that no child was given a schedule after it was adopted.

    Raises:
        GroupError: Names the groups with such a schedule.
    """
    writable = keras.Variable | ScaledSchedule
    replaced = [group.name for group in groups if not isinstance(held_rate(group.optimizer), writable)]
    if replaced:
        raise GroupError(
            "A group's schedule is passed to its optimizer before the `GroupedOptimizer` is made, so that the rate can "
            f"be scaled. Received another schedule afterwards for {quote(replaced)}. Write a number, or make a new "
            "`GroupedOptimizer`."
        )


@contextmanager
def made_outside_of_trace() -> Iterator[None]:
    """Makes variables created in this context outside of the function that may be traced, without a second trace.

    TensorFlow traces a function twice when it makes variables, as that of `fit` does with Keras' own optimizers. The
    second trace finds whether the variables were made once only, which is certain here.
    """

    def make(next_creator: Any, **settings: Any) -> tf.Variable:
        return next_creator(**{**settings, "experimental_enable_variable_lifting": False})

    if tf.distribute.has_strategy():  # which makes variables in its own way
        yield
    else:
        with tf.init_scope(), tf.variable_creator_scope(make):
            yield


def track_all(child: keras.optimizers.Optimizer) -> None:
    """Adds what a built child keeps in plain attributes, such as Nadam's product, to its `variables`.

    Keras tracks them by itself, but not while the parent is built, when tracking is off: otherwise the variables of the
    children would become the parent's, too.
    """
    known = {id(variable) for variable in (*child.variables, step_counter(child), held_rate(child))}
    for value in list(vars(child).values()):
        if isinstance(value, keras.Variable) and id(value) not in known:
            add_to_variables(child, value)


def reset_slots(group: Group) -> None:
    """Sets everything that a built child keeps, except its rate and its step, to what a new child would keep."""
    child = group.optimizer
    # A rule may keep more than zeros, such as Adagrad's initial accumulator: ask a new child for the values.
    new = type(child).from_config({**child.get_config(), "learning_rate": 1.0, "gradient_accumulation_steps": None})
    with untracked():
        new.build(group.variables)
    track_all(new)
    fresh_slots = [v for v in new.variables if v is not step_counter(new) and v is not held_rate(new)]
    # Both lists are in the order in which the rule makes its slots, so they pair up.
    # Not what the child holds as its rate, which is a schedule while the group follows that of a phase.
    slots = [v for v in child.variables if v is not group.unused_counter and v is not group.rate_variable]
    for slot, fresh in zip(slots, fresh_slots, strict=True):
        slot.assign(fresh.numpy())


def replace_variables(
    optimizer: keras.optimizers.Optimizer, replacements: Mapping[Any, Any], key: Callable[[Any], Any]
) -> None:
    """Makes an optimizer use what it keeps for some variables for others of the same shapes.

    Args:
        optimizer: A child or the parent, built or not.
        replacements: The new variables by the keys of the old ones, of which the optimizer may have none.
        key: Returns the key of a variable.
    """
    # The old keys remain in the set, where nothing has them any more.
    excluded = excluded_from_weight_decay(optimizer)
    excluded.update([key(variable) for old, variable in replacements.items() if old in excluded])
    if optimizer.built:  # Keras finds the slots of a variable by its position among the variables it was built with
        positions = variable_positions(optimizer)
        new = {key(variable): positions[old] for old, variable in replacements.items() if old in positions}
        replace_known_variables(optimizer, [replacements.get(key(v), v) for v in known_variables(optimizer)], new)
