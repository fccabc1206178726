"""One layer group inside the optimizer, and the checks on what the caller gave for it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from finetune.errors import GroupError, quote
from finetune.groups.spacing import check_rate
from finetune.optimizers.group_rates import as_float

_OVER_ALL_GROUPS = ("global_clipnorm", "gradient_accumulation_steps", "loss_scale_factor", "use_ema")
_EXAMPLE = "{'body': (keras.optimizers.SGD(1e-4), layers), 'head': (...)}"


@dataclass(eq=False)
class Group:
    """A layer group and its optimizer.

    Attributes:
        name: Unique among the groups.
        optimizer: The child.
        members: What the caller gave for the group to update.
        variables: The variables behind `members`; empty until these are built.
        initial_rate: The child's rate as it came: a float, a schedule or a callable.
        unused_counter: The child's own step counter, which the parent's replaces.
    """

    name: str
    optimizer: keras.optimizers.Optimizer
    members: Any
    variables: list[Any] = field(default_factory=list)
    initial_rate: Any = None
    unused_counter: Any = None


def make_groups(groups: Any) -> list[Group]:
    """Makes the groups from what the caller gave.

    Raises:
        GroupError: If it is no mapping of names to pairs, or an optimizer cannot serve in a group.
    """
    pairs = _named_pairs(groups)
    made = [_make_group(name, pair) for name, pair in pairs.items()]
    children = [group.optimizer for group in made]
    shared = [group.name for group in made if sum(child is group.optimizer for child in children) > 1]
    if shared:
        raise GroupError(
            f"Every group has an optimizer of its own. Groups {quote(shared)} share one. Make one for each."
        )
    for group in made:
        _check_child(group)
    return made


def _named_pairs(groups: Any) -> dict[str, Any]:
    if isinstance(groups, Sequence) and not isinstance(groups, str):
        groups = {f"group_{i}": pair for i, pair in enumerate(groups)}
    if not isinstance(groups, Mapping) or not groups:
        raise GroupError(
            "`groups` maps names to pairs of an optimizer and what it updates. Received "
            f"`{groups!r}`. Write `{_EXAMPLE}`."
        )
    bad = [name for name in groups if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]+", name))]
    if bad:
        raise GroupError(
            f"A group's name is made of letters, digits, `_`, `-` and `.`. Received: {quote(bad)}. Give another name."
        )
    return dict(groups)


def _make_group(name: str, pair: Any) -> Group:
    is_pair = isinstance(pair, Sequence) and len(pair) == 2
    if not is_pair or not isinstance(pair[0], keras.optimizers.Optimizer):
        raise GroupError(
            f"A group is a pair of a Keras optimizer and what it updates. Group `{name}` received `{pair!r}`. "
            f"Write `{_EXAMPLE}`."
        )
    return Group(name, pair[0], pair[1])


def _check_child(group: Group) -> None:
    child = group.optimizer
    if hasattr(child, "optimizers") or hasattr(child, "inner_optimizer"):
        raise GroupError(
            f"A group's optimizer is a plain one. Group `{group.name}` received a `{type(child).__name__}`, which "
            "holds others. Give it a plain one; a `LossScaleOptimizer` goes around the whole."
        )
    for setting in _OVER_ALL_GROUPS:
        if getattr(child, setting):
            raise GroupError(
                f"`{setting}` goes over all groups. Group `{group.name}` has it on its own optimizer. Give it to "
                f"`GroupedOptimizer({setting}=...)` instead."
            )
    if child.built or not any(child.iterations is variable for variable in child.variables):
        raise GroupError(
            f"A group's optimizer is a fresh one. The `{type(child).__name__}` of group `{group.name}` already belongs "
            "to other variables or to another `GroupedOptimizer`. Make a new one."
        )
    if isinstance(child.learning_rate, keras.Variable):  # else a schedule
        check_rate(as_float(child.learning_rate), f"the learning rate of group `{group.name}`")
