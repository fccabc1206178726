"""The fused update behind one narrow class: small variables updated together, with the bits of a plain update.

A step of many small layers takes as long as it has operations, whatever their size: 200 variables take Keras' Adam
6.2 ms, and the same computation on one variable of their total size 0.5 ms (docs/step.md). `Fusion` therefore updates
variables of one shape by one call of their optimizers' rule. `NoFusion` has the same methods and updates every variable
alone. A `GroupedOptimizer` holds one of the two and knows nothing else of this folder; a reader who wants to know what
it computes can read `NoFusion` and skip the other files.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError, quote
from finetune.keras_private import add_to_variables, run_update_rule
from finetune.optimizers.clocks import Clocks
from finetune.optimizers.fused.adam import update_adam
from finetune.optimizers.fused.slots import share_storage
from finetune.optimizers.fused.stacked_variable import Buffers
from finetune.optimizers.fused.stacks import Stack, make_stacks, slots_made_by
from finetune.optimizers.group import Group
from finetune.optimizers.replicas import in_every_replica
from finetune.variables import tf_variable, variable_path

_MODES = ("auto", "on", "off")


def make_fusion(fused: str, key: Callable[[Any], Any]) -> "Fusion | NoFusion":
    """Makes what updates the variables of a grouped optimizer.

    Args:
        fused: `auto`, `on` (together also where it does not pay) or `off`.
        key: Returns a hashable that tells variables apart.

    Raises:
        GroupError: If `fused` is something else.
    """
    if fused not in _MODES:
        raise GroupError(
            f"`fused` must be one of {quote(_MODES)}. Received `{fused!r}`. Write `auto`, or remove `fused`."
        )
    return NoFusion() if fused == "off" else Fusion(key, all_sizes=fused == "on")


class NoFusion:
    """Every variable is updated alone, by the optimizer of its group: the plain path.

    Attributes:
        alone: Why a variable is updated alone, by its path.
    """

    def __init__(self) -> None:
        self.alone: dict[str, str] = {}

    def share_rates(self, rate_variables: Sequence[keras.Variable]) -> None:
        """Does nothing: every group keeps its rate in a variable of its own."""

    def build(self, groups: Sequence[Group], clocks: Clocks, accumulation_steps: int | None) -> None:
        """Builds the optimizers of the groups, which makes their slots.

        Args:
            groups: Groups whose variables are known and whose optimizers are not built.
            clocks: Not used.
            accumulation_steps: Not used.
        """
        for group in groups:
            group.optimizer.build(group.variables)
            self.alone |= {variable_path(variable): "`fused` is off" for variable in group.variables}

    def replace(self, replacements: Mapping[Any, Any]) -> None:
        """Does nothing: no variable is known here."""

    def decay(self, variables: Iterable[Any]) -> list[Any]:
        """Returns the variables whose weight decay remains to be applied: all."""
        return list(variables)

    def update(self, gradients: Sequence[Any], variables: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Returns the gradients and variables that remain to be updated by `update_alone`: all."""
        return list(gradients), list(variables)

    def buffers(self, variables: Iterable[Any]) -> Buffers:
        """Returns the buffers that a loop of several steps may use: none."""
        return Buffers()


class Fusion:
    """Variables of one shape whose optimizers are of one kind are updated together, whatever their groups.

    Args:
        key: Returns a hashable that tells variables apart.
        all_sizes: Whether to update together also where it does not pay.

    Attributes:
        alone: Why a variable is updated alone, by its path.
    """

    def __init__(self, key: Callable[[Any], Any], *, all_sizes: bool):
        self.alone: dict[str, str] = {}
        self._key, self._all_sizes = key, all_sizes
        self._stacks: list[Stack] = []  # until `build`
        self._place: dict[Any, tuple[Stack, int]] = {}  # by the key of a variable, its stack and its index there

    def share_rates(self, rate_variables: Sequence[keras.Variable]) -> None:
        """Moves the groups' rates into one variable, so that a step reads all of them by one operation."""
        if not tf.distribute.has_strategy():
            share_storage(rate_variables)

    def build(self, groups: Sequence[Group], clocks: Clocks, accumulation_steps: int | None) -> None:
        """Builds the optimizers of the groups; for stacked variables they get views of the stack's slots.

        Args:
            groups: Groups whose variables are known and whose optimizers are not built.
            clocks: The steps that the groups count.
            accumulation_steps: Batches per update, if not 1.
        """
        self._stacks, self.alone = make_stacks(groups, clocks, accumulation_steps, all_sizes=self._all_sizes)
        self._place = {
            self._key(variable): (stack, index)
            for stack in self._stacks
            for index, variable in enumerate(stack.stacked.variables)
        }
        for group in groups:
            with slots_made_by(self._slot_maker(group.optimizer), group.optimizer):
                group.optimizer.build(group.variables)

    def _slot_maker(self, child: keras.optimizers.Optimizer) -> Callable[..., Any]:
        make_alone = child.add_variable_from_reference
        num_made: Counter[Any] = Counter()

        def make(reference_variable: Any, name: str = "var", initializer: Any = "zeros") -> Any:
            key = self._key(reference_variable)
            if key not in self._place:
                return make_alone(reference_variable, name=name, initializer=initializer)
            # A rule makes its slots in one order, for the stack as for each variable: count them per variable.
            stack, index = self._place[key]
            flat_path = variable_path(reference_variable).replace("/", "_").replace(":", "_")  # as Keras names slots
            view = stack.slot_view(index, num_made[key], f"{child.name}/{flat_path}_{name}")
            num_made[key] += 1
            add_to_variables(child, view)
            return view

        return make

    def replace(self, replacements: Mapping[Any, Any]) -> None:
        """Puts variables in the places of others, which are given by their keys."""
        # The slots stay where they are: the new variable has the shape of the old one.
        for key, variable in replacements.items():
            if key in self._place:
                stack, index = self._place[self._key(variable)] = self._place.pop(key)
                stack.stacked.variables[index] = variable

    def decay(self, variables: Iterable[Any]) -> list[Any]:
        """Decays the weights of each stack that decays as a whole; returns the variables that remain."""
        # A stack in which some variables do not decay, or are frozen, is left to the optimizers of the groups.
        remaining = {self._key(variable): variable for variable in variables}
        for stack in self._stacks:
            keys = {self._key(variable) for variable in stack.stacked.variables}
            if keys <= remaining.keys() and stack.can_decay():
                stack.decay()
                remaining = {key: variable for key, variable in remaining.items() if key not in keys}
        return list(remaining.values())

    def update(self, gradients: Sequence[Any], variables: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Updates each stack that has all its gradients; returns the gradients and variables that remain.

        A stack of which a part is frozen in this step is not updated as a whole, since that would move the slots of the
        frozen part. Its other variables remain, and are updated alone through their slot views.
        """
        remaining = {self._key(variable): gradient for variable, gradient in zip(variables, gradients, strict=True)}
        for stack in self._stacks:
            keys = [self._key(variable) for variable in stack.stacked.variables]
            stacked_gradients: list[Any] = [remaining.get(key) for key in keys]
            # In a buffer, a stack has been found to get all its gradients: see `training/fast/moved_weights.py`.
            if stack.stacked.buffer is not None or stack.can_update(stacked_gradients):
                stack.update(stacked_gradients)
                remaining = {key: gradient for key, gradient in remaining.items() if key not in set(keys)}
        # In the order in which they came: clipping and rules go by pairs of gradient and variable.
        left = [variable for variable in variables if self._key(variable) in remaining]
        return [remaining[self._key(variable)] for variable in left], left

    def buffers(self, variables: Iterable[Any]) -> Buffers:
        """Returns buffers for the stacks that a loop may keep elsewhere for several steps.

        Those are the stacks all of whose variables are trained, are Keras' own, so that layers can be shown other
        values, and have no constraint, which Keras applies to the variable itself after every update. What was made
        with `trainable=False` has no gradient in Keras, whatever was written to `trainable` later; a slice has one.

        Args:
            variables: The variables that the loop trains.
        """
        trained = {self._key(variable) for variable in variables}

        def can_move(variable: Any) -> bool:
            is_free = isinstance(variable, keras.Variable) and variable.constraint is None
            return is_free and tf_variable(variable).trainable and self._key(variable) in trained

        return Buffers([stack.stacked for stack in self._stacks if all(map(can_move, stack.stacked.variables))])


def update_alone(optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Updates variables one by one by their optimizer's own rule; plain Adam's by fewer passes, with the same bits.

    Args:
        optimizer: The built optimizer of a group.
        gradients: One for each variable, dense or sparse.
        variables: Of this group.
    """
    # What is left over here are other rules, other types than float32, and variables on a GPU or several replicas.
    gradients, variables = update_adam(optimizer, gradients, variables)
    if variables:
        in_every_replica(run_update_rule, optimizer, gradients, variables, optimizer.learning_rate)
