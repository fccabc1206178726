"""Which variable belongs to which group."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError, did_you_mean, quote
from finetune.groups.forgotten_freezing import freeze_again
from finetune.groups.frozen_by import mark_from_file
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import LayerGroup
from finetune.keras_private import is_trackable, layer_variables, model_that_is_loaded, uses_weight_decay
from finetune.optimizers.group import Group
from finetune.optimizers.variable_keys import VariableKey, extra_variables, label, match_keys


class Members:
    """The groups, the group of every variable, and the order in which the model has its variables.

    Groups may be made of layers that are not built yet, and of placeholders for the variables of a model that is still
    being loaded. `settle` and `admit` learn the variables as soon as they exist.

    Args:
        groups: Input to output.
        key: Returns a hashable that tells variables apart, also a `keras.Variable` and the `tf.Variable` inside it.

    Attributes:
        groups: The same.
        order: The variables of all groups in the model's order, as far as it is known.
    """

    def __init__(self, groups: Sequence[Group], key: Callable[[Any], Any]):
        self.groups = tuple(groups)
        self.order: list[Any] = []
        self._key = key
        self._group_of: dict[Any, Group] = {}
        self._awaited: dict[Any, VariableKey] = {}  # the places of variables still to come, by the keys of placeholders
        # Of a loaded optimizer: the places of variables in no group that were frozen one by one, with the variables.
        self._frozen: dict[VariableKey, Any] = {}
        self._is_loaded = False  # by Keras, with the model that it was saved with
        self._freezes_again = False  # until its model comes, which Keras sees to while it loads it
        if not any(_is_unbuilt(group.members) for group in groups):
            self.settle()

    def settle(self) -> None:
        """Looks up the groups' variables, unless that is done.

        Raises:
            GroupError: If a layer is not built, a group has no variables, or two groups have the same variable.
        """
        if self._group_of:
            return
        # Nothing is kept before all checks have passed: a group that fails leaves the others as they were.
        members = {group.name: variables_of(group.name, group.members, self._key) for group in self.groups}
        check_disjoint(members, self._key)
        for group in self.groups:
            group.variables = members[group.name]
        self.order = [variable for group in self.groups for variable in group.variables]
        self._group_of = {self._key(variable): group for group in self.groups for variable in group.variables}

    def named(self, name: str) -> Group:
        """Returns the group with a name.

        Raises:
            GroupError: If there is none.
        """
        names = [group.name for group in self.groups]
        if name not in names:
            raise GroupError(f"There is no group `{name}`. The groups are {quote(names)}.{did_you_mean(name, names)}")
        return self.groups[names.index(name)]

    def by_group(self, *columns: Iterable[Any]) -> Iterator[tuple[keras.optimizers.Optimizer, list[list[Any]]]]:
        """Splits columns of equal length by group, input to output; groups without a row are left out.

        Args:
            *columns: The last one consists of variables.

        Yields:
            The group's optimizer and its rows of each column.
        """
        rows: dict[str, list[tuple[Any, ...]]] = {}
        for row in zip(*columns, strict=True):
            rows.setdefault(self._group_of[self._key(row[-1])].name, []).append(row)
        for group in self.groups:
            if group.name in rows:
                yield group.optimizer, [list(column) for column in zip(*rows[group.name], strict=True)]

    def await_model(self, keys: Mapping[int, VariableKey], frozen: Iterable[VariableKey] = ()) -> None:
        """Declares all variables to be placeholders for those of a model that is still to come.

        Args:
            keys: The place in that model that each of them holds, by its `id`.
            frozen: The places of variables in no group that were frozen one by one.
        """
        self._awaited = {self._key(variable): keys[id(variable)] for variable in self.order}
        self._frozen, self._freezes_again = dict.fromkeys(frozen), True
        model = model_that_is_loaded()
        self._is_loaded = model is not None
        if model is not None:
            freeze_again(model)
        self.order.sort(key=lambda variable: keys[id(variable)].position)

    def admit(self, variables: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Checks that every variable has a group, and learns their order.

        Args:
            variables: Any part of the groups' variables, in the model's order.

        Returns:
            The placeholders that were replaced, each with the variable that replaces it.

        Raises:
            GroupError: If a variable belongs to no group.
        """
        self.settle()
        unknown = [variable for variable in variables if self._key(variable) not in self._group_of]
        replaced = self._replace_placeholders(unknown) if unknown else []
        if unknown or not variables:  # otherwise these are the placeholders themselves
            self._freezes_again = False
        here = [variable for variable in variables if self._key(variable) in self._group_of]  # without frozen ones
        keys = {self._key(variable) for variable in here}
        if len(keys) == len(here):
            # Of those that are here, the order is theirs; the others keep their positions between them.
            in_turn = iter(here)
            self.order = [next(in_turn) if self._key(v) in keys else v for v in self.order]
        return replaced

    def _replace_placeholders(self, unknown: Sequence[Any]) -> list[tuple[Any, Any]]:
        placeholder_at = {self._awaited[self._key(v)]: v for v in self.order if self._key(v) in self._awaited}
        free = [*placeholder_at, *(self._frozen if self._freezes_again else ())]
        # All that the saved model trained is known by its key: whatever else trains now was frozen there.
        extra = extra_variables(unknown, free) if self._freezes_again and self._is_loaded else []
        for variable in extra:
            variable.trainable = False
            mark_from_file(variable)
        matched = match_keys([v for v in unknown if not any(v is other for other in extra)], free)
        if self._freezes_again:
            self._freeze_again(matched)
        replaced = [(placeholder_at[key], variable) for key, variable in matched if key in placeholder_at]
        # Order and groups keep their positions, which are those of the slots.
        for old, new in replaced:
            del self._awaited[self._key(old)]
            group = self._group_of[self._key(new)] = self._group_of.pop(self._key(old))
            for variables in (self.order, group.variables):
                variables[next(i for i, v in enumerate(variables) if v is old)] = new
        return replaced

    def _freeze_again(self, matched: Iterable[tuple[VariableKey, Any]]) -> None:
        """Freezes what was frozen one by one in the model that was saved: Keras' files hold `layer.trainable` alone."""
        # Only when the model comes: what is opened later, the user has opened.
        for key, variable in matched:
            if key.frozen_alone and isinstance(variable, keras.Variable):
                variable.trainable = False
                mark_from_file(variable)
            if key in self._frozen:
                self._frozen[key] = variable

    def variable_keys(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the fields of the `VariableKey` of each group's variables, for a config."""
        self.settle()
        position = {self._key(v): i for i, (v, frozen) in enumerate(self._places()) if not frozen}
        layers = [owner for group in self.groups for owner in _owners(group.members) if not owner.trainable]
        with_layer = {self._key(variable) for layer in layers for variable in layer_variables(layer)[0]}

        def describe(group: Group, variable: Any) -> dict[str, Any]:
            key = self._key(variable)
            alone = not variable.trainable and key not in with_layer
            decays = uses_weight_decay(group.optimizer, variable)
            place = self._awaited.get(key) or VariableKey.of(variable, decays, alone)
            return {**asdict(place), "position": position[key], "shape": list(place.shape)}

        return {group.name: [describe(group, variable) for variable in group.variables] for group in self.groups}

    def frozen_keys(self) -> list[dict[str, Any]]:
        """Returns the fields of the `VariableKey` of the variables in no group that are frozen one by one."""
        self.settle()
        places = [(i, key) for i, (_, key) in enumerate(self._places()) if key]
        return [{**asdict(key), "position": i, "shape": list(key.shape)} for i, key in places]

    def _places(self) -> list[tuple[Any, VariableKey | None]]:
        """Returns the variables in the model's order, and between them those of `frozen_keys` with their keys."""
        places: list[tuple[Any, VariableKey | None]] = [(variable, None) for variable in self.order]
        for key, variable in sorted(self._frozen.items(), key=lambda item: item[0].position):
            if variable is None or not variable.trainable:  # neither still to come nor opened since
                places.insert(key.position, (variable, key))
        # A layer that was frozen as a whole needs no entry: Keras' files hold that.
        owners = {id(owner): owner for group in self.groups for owner in _owners(group.members) if owner.trainable}
        for siblings in [layer_variables(owner)[0] for owner in owners.values()]:
            rank = {id(variable): n for n, variable in enumerate(siblings)}
            for n, variable in enumerate(siblings):
                if variable.trainable or self._key(variable) in self._group_of:
                    continue
                later = [i for i, (v, _) in enumerate(places) if rank.get(id(v), -1) > n]
                earlier = [i + 1 for i, (v, _) in enumerate(places) if 0 <= rank.get(id(v), -1) < n]
                index = [*later[:1], *earlier[-1:], len(places)][0]
                places.insert(index, (variable, VariableKey.of(variable, True, frozen_alone=True)))
        return places


def variables_of(group: str, members: Any, key: Callable[[Any], Any]) -> list[Any]:
    """Returns the variables behind layer groups, built layers, modules, variables or nested sequences of these.

    Args:
        group: The group's name, for messages.
        members: What the user passed for the group.
        key: Returns a hashable that tells variables apart; a variable that occurs twice is returned once.

    Raises:
        GroupError: If there are none, or a member is not something that has variables.
    """
    variables = list({key(variable): variable for variable in _walk(group, members)}.values())
    if not variables:
        raise GroupError(
            f"A group must contain at least one trainable variable. Group `{group}` has none. Pass layers with "
            "weights, or remove the group."
        )
    return variables


def _walk(group: str, member: Any) -> Iterable[Any]:
    # From the most specific type on: a Keras layer is trackable, a variable is iterable.
    if isinstance(member, LayerGroup):
        yield from member.variables
    elif isinstance(member, keras.Variable | tf.Variable):
        yield member
    elif isinstance(member, keras.Layer):
        if _is_unbuilt(member):
            raise GroupError(
                f"The weights of a group must exist. Group `{group}` holds the layer `{member.name}`, which has "
                "no weights yet. Build the model first: call it on a batch, or give it a `keras.Input`."
            )
        if member.weights:  # dropout and the like have none
            yield from (leaf.variable for leaf in layer_tree(member).trainable)
    elif is_trackable(member) and not isinstance(member, keras.optimizers.Optimizer):
        yield from (leaf.variable for leaf in layer_tree(member).trainable)
    elif isinstance(member, Iterable) and not isinstance(member, str | bytes | Mapping | tf.Tensor):
        for inner in member:
            yield from _walk(group, inner)
    else:
        raise GroupError(
            "A group's members are layer groups, layers, variables or sequences of these. Group "
            f"`{group}` received `{member!r}`. To choose layers by name, use `finetune.resolve_groups`."
        )


def _owners(members: Any) -> Iterator[Any]:
    """Yields the layers to which the variables behind members belong; bare variables do not know theirs."""
    if isinstance(members, LayerGroup):
        yield from (leaf.owner for leaf in members.leaves if isinstance(leaf.owner, keras.Layer))
    elif isinstance(members, keras.Layer) and members.weights:
        yield from (leaf.owner for leaf in layer_tree(members).leaves if isinstance(leaf.owner, keras.Layer))
    elif isinstance(members, list | tuple):
        for inner in members:
            yield from _owners(inner)


def _is_unbuilt(member: Any) -> bool:
    """Returns whether a layer among the members is still to be built."""
    if isinstance(member, list | tuple):
        return any(_is_unbuilt(inner) for inner in member)
    return isinstance(member, keras.Layer) and not member.built


def check_disjoint(members: Mapping[str, Sequence[Any]], key: Callable[[Any], Any]) -> None:
    """Checks that no variable is in two groups.

    Raises:
        GroupError: Names the first five that are, with their groups.
    """
    owner: dict[Any, str] = {}
    twice = []
    for group, variables in members.items():
        for variable in variables:
            first = owner.setdefault(key(variable), group)
            if first != group:
                twice.append(f"{label(variable)} (`{first}` and `{group}`)")
    if twice:
        raise GroupError(
            f"A variable belongs to exactly one group. These variables are in two groups: {', '.join(twice[:5])}"
            f"{f' and {len(twice) - 5} more' if len(twice) > 5 else ''}. Remove each from all groups but one."
        )
