"""A layer group inside the optimizer, and the checks on what the user passed for it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from finetune.errors import GroupError, quote
from finetune.groups.rate_spacing import check_rate
from finetune.optimizers.group_rates import as_float

# These would act within the group; the parent does them over all groups. (`clipnorm` and `clipvalue` go by variable.)
_OVER_ALL_GROUPS = ("global_clipnorm", "gradient_accumulation_steps", "loss_scale_factor", "use_ema")
_EXAMPLE = "{'body': (keras.optimizers.SGD(1e-4), layers), 'head': (...)}"


@dataclass(eq=False)
class Group:
    """A layer group and its optimizer.

    Attributes:
        name: Unique among the groups.
        optimizer: The child.
        members: What the user passed for the group to update.
        variables: The variables behind `members`; empty until these are built.
        initial_rate: The child's rate as it was made: a float, a schedule or a callable.
        unused_counter: The child's step counter, which the parent's replaces; it remains among the child's variables.
        rate_variable: The child's learning rate, or for a scheduled child the multiplier of its schedule.
    """

    name: str
    optimizer: keras.optimizers.Optimizer
    members: Any
    variables: list[Any] = field(default_factory=list)
    initial_rate: Any = None
    unused_counter: Any = None
    rate_variable: Any = None


def make_groups(groups: Any) -> list[Group]:
    """Makes the groups from what the user passed to `GroupedOptimizer`.

    Raises:
        GroupError: If it is not a mapping of names to pairs, or an optimizer cannot be used in a group.
    """
    made = [_make_group(name, pair) for name, pair in _named_pairs(groups).items()]
    children = [group.optimizer for group in made]
    # An optimizer has one rate and one set of slots: two groups in it would be one group.
    shared = [group.name for group in made if sum(child is group.optimizer for child in children) > 1]
    if shared:
        raise GroupError(
            f"Each group must have its own optimizer. Groups {quote(shared)} share an optimizer. Create a new "
            "optimizer for each group."
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
    # The name becomes a part of paths of variables, of metrics (`learning_rate/<group>`) and of recipes.
    bad = [name for name in groups if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]+", name))]
    if bad:
        raise GroupError(
            f"A group's name consists of letters, digits, `_`, `-` and `.`. Received: {quote(bad)}. Rename the group."
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
    # Keras' MultiOptimizer, a LossScaleOptimizer, a GroupedOptimizer.
    if any(hasattr(child, attribute) for attribute in ("optimizers", "inner_optimizer", "group_optimizers")):
        raise GroupError(
            f"A group's optimizer must be a plain Keras optimizer. Group `{group.name}` received a "
            f"`{type(child).__name__}`, which "
            "contains others. Pass a plain optimizer; a `LossScaleOptimizer` goes around the `GroupedOptimizer`."
        )
    for setting in _OVER_ALL_GROUPS:
        if getattr(child, setting):
            raise GroupError(
                f"`{setting}` acts on all groups together. Group `{group.name}` sets it on its own optimizer. Pass "
                f"`GroupedOptimizer({setting}=...)` instead."
            )
    # A child that was adopted counts with its parent's counter, which is not among its variables.
    if child.built or not any(child.iterations is variable for variable in child.variables):
        raise GroupError(
            f"A group's optimizer must be new. The `{type(child).__name__}` of group `{group.name}` already belongs "
            "to other variables or to another `GroupedOptimizer`. Make a new one."
        )
    if isinstance(child.learning_rate, keras.Variable):  # otherwise a schedule
        check_rate(as_float(child.learning_rate), f"the learning rate of group `{group.name}`")
