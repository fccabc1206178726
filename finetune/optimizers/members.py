"""Which variable belongs to which group."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import LayerGroup
from finetune.optimizers.group import Group
from finetune.optimizers.variable_keys import VariableKey, label, match_keys

_Trackable = tf.__internal__.tracking.AutoTrackable  # base of tf.Module and of what tf.saved_model.load returns


class Members:
    """The groups, the group of every variable, and the order in which the model has its variables.

    Args:
        groups: Input to output.
        key: What tells variables apart.
    """

    def __init__(self, groups: Sequence[Group], key: Callable[[Any], Any]):
        self.groups = tuple(groups)
        self.order: list[Any] = []
        self._key = key
        self._group_of: dict[Any, Group] = {}
        self._empty: dict[Any, VariableKey] = {}  # by the key of the stand-in
        if not any(_waits(group.members) for group in groups):
            self.settle()

    def settle(self) -> None:
        """Looks up the groups' variables, once their layers are built."""
        if self._group_of:
            return
        members = {group.name: variables_of(group.name, group.members, self._key) for group in self.groups}
        check_disjoint(members, self._key)
        for group in self.groups:
            group.variables = members[group.name]
        self.order = [variable for group in self.groups for variable in group.variables]
        self._group_of = {self._key(variable): group for group in self.groups for variable in group.variables}

    def group_of(self, variable: Any) -> Group:
        return self._group_of[self._key(variable)]

    def await_model(self, keys: Mapping[int, VariableKey]) -> None:
        """Declares variables, by `id`, to be stand-ins for those of a model that is still to come."""
        self._empty = {self._key(variable): keys[id(variable)] for variable in self.order}
        self.order.sort(key=lambda variable: keys[id(variable)].position)

    def admit(self, variables: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Checks that every variable has a group and learns their order.

        Returns:
            The stand-ins that had to make way, each with the variable that took its place.

        Raises:
            GroupError: If a variable belongs to no group.
        """
        self.settle()
        strangers = [variable for variable in variables if self._key(variable) not in self._group_of]
        moved = self._replace_stand_ins(strangers) if strangers else []
        self._learn_order(variables)
        return moved

    def _replace_stand_ins(self, strangers: Sequence[Any]) -> list[tuple[Any, Any]]:
        stand_in_of = {self._empty[self._key(v)].position: v for v in self.order if self._key(v) in self._empty}
        taken = match_keys(strangers, list(self._empty.values()))
        moved = [(stand_in_of[key.position], variable) for key, variable in taken]
        for old, new in moved:
            del self._empty[self._key(old)]
            group = self._group_of[self._key(new)] = self._group_of.pop(self._key(old))
            for variables in (self.order, group.variables):
                variables[next(i for i, v in enumerate(variables) if v is old)] = new
        return moved

    def _learn_order(self, variables: Sequence[Any]) -> None:
        came = {self._key(variable) for variable in variables}
        in_turn = iter(variables)
        if len(came) == len(variables):
            self.order = [next(in_turn) if self._key(v) in came else v for v in self.order]

    def variable_keys(self, decays: Callable[[Group, Any], bool]) -> dict[str, list[dict[str, Any]]]:
        """Describes the variables of each group by their place in the model, for a config.

        Args:
            decays: Whether a group's optimizer applies its weight decay to a variable.
        """
        self.settle()
        position = {self._key(variable): i for i, variable in enumerate(self.order)}

        def describe(group: Group, variable: Any) -> dict[str, Any]:
            key = self._key(variable)
            place = self._empty.get(key) or VariableKey.of(variable, decays(group, variable))
            return {**asdict(place), "position": position[key], "shape": list(place.shape)}

        return {group.name: [describe(group, variable) for variable in group.variables] for group in self.groups}


def variables_of(group: str, members: Any, key: Callable[[Any], Any]) -> list[Any]:
    """Returns the variables behind layer groups, built layers, modules, variables or nested sequences of these.

    Args:
        group: The group's name, for messages.
        members: What the caller gave.
        key: What tells variables apart.

    Raises:
        GroupError: If there is none, or a member is nothing that holds variables.
    """
    found = list({key(variable): variable for variable in _walk(group, members)}.values())
    if not found:
        raise GroupError(
            f"A group updates at least one trainable variable. Group `{group}` has none. Give it layers with weights, "
            "or leave the group out."
        )
    return found


def _walk(group: str, member: Any) -> Iterable[Any]:
    if isinstance(member, LayerGroup):
        yield from member.variables
    elif isinstance(member, keras.Variable | tf.Variable):
        yield member
    elif isinstance(member, keras.Layer):
        if _waits(member):
            raise GroupError(
                f"A group updates weights that exist. Group `{group}` holds the layer `{member.name}`, which has none "
                "yet. Build the model first: call it on a batch, or give it a `keras.Input`."
            )
        if member.weights:  # dropout and the like have none
            yield from (leaf.variable for leaf in layer_tree(member).trainable)
    elif isinstance(member, _Trackable) and not isinstance(member, keras.optimizers.Optimizer):
        yield from (leaf.variable for leaf in layer_tree(member).trainable)
    elif isinstance(member, Iterable) and not isinstance(member, str | bytes | Mapping | tf.Tensor):
        for inner in member:
            yield from _walk(group, inner)
    else:
        raise GroupError(
            f"A group's members are layer groups, layers, variables or sequences of these. Group `{group}` received "
            f"`{member!r}`. To choose by name use `finetune.resolve_groups`."
        )


def _waits(member: Any) -> bool:
    """Whether a layer among the members still has to be built."""
    if isinstance(member, list | tuple):
        return any(_waits(inner) for inner in member)
    return isinstance(member, keras.Layer) and not member.built


def check_disjoint(members: Mapping[str, Sequence[Any]], key: Callable[[Any], Any]) -> None:
    """Raises a GroupError that names every variable that two groups claim."""
    owner: dict[Any, str] = {}
    twice = []
    for group, variables in members.items():
        for variable in variables:
            first = owner.setdefault(key(variable), group)
            if first != group:
                twice.append(f"{label(variable)} (`{first}` and `{group}`)")
    if twice:
        raise GroupError(
            f"A variable belongs to exactly one group. Claimed twice: {', '.join(twice[:5])}"
            f"{f' and {len(twice) - 5} more' if len(twice) > 5 else ''}. Take it out of one of them."
        )
