"""Small variables of one shape, updated together.

A step of many small layers takes as long as its operations are many, whatever their size. So variables of one shape
whose optimizers are of one kind share the optimizer's own update rule, called once on all of them. Two objects make
that possible without another rule: to the rule a `StackedVariable` is one variable with one more dimension, and to
everybody else a `SlotView` into the rule's slot is the slot of one variable. The arithmetic is that of Keras, element
by element, so the results are the same to the last bit. See `tests/optimizers/fused/test_stacks.py`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.utils import tracking

from finetune.errors import GroupError, quote
from finetune.optimizers.clocks import Clocks
from finetune.optimizers.fused.adam import (
    has_kernels,
    is_plain_adam,
    move_slots,
    move_weights,
    step_size,
    weight_change,
)
from finetune.optimizers.fused.slots import SlotView, column
from finetune.optimizers.group import Group
from finetune.optimizers.momentum import Momentum
from finetune.variables import tf_variable, variable_path

# Rules that treat every element alike and never look at the variable, and the settings that they are made of.
_CONSTANTS = {
    keras.optimizers.SGD: ("momentum", "nesterov"),
    Momentum: ("momentum", "nesterov"),
    keras.optimizers.Adam: ("beta_1", "beta_2", "epsilon", "amsgrad"),
    keras.optimizers.AdamW: ("beta_1", "beta_2", "epsilon", "amsgrad"),
    keras.optimizers.Adamax: ("beta_1", "beta_2", "epsilon"),
    keras.optimizers.Adagrad: ("initial_accumulator_value", "epsilon"),
    keras.optimizers.RMSprop: ("rho", "momentum", "epsilon", "centered"),
    keras.optimizers.Lion: ("beta_1", "beta_2"),
}
_FUSED = ("auto", "on", "off")
LARGEST_STACK = 2**15  # elements: 128 KiB, so that what the rule computes in between stays in the processor's cache

_stacked_ids = count()


class StackedVariable:
    """Variables of one shape, which pass for one variable: what is subtracted from it is subtracted from each.

    Attributes:
        buffer: The variable that has all values during a call of several steps; the variables lag behind meanwhile.
    """

    def __init__(self, variables: Sequence[Any]):
        self.variables = list(variables)
        self.shape = tf.TensorShape([len(variables), *variables[0].shape])
        self.dtype = tf.as_dtype(variables[0].dtype)
        self._unique_id = f"stacked_{next(_stacked_ids)}"  # Keras tells variables apart by this
        self.path = self.name = self._unique_id
        self.buffer: tf.Variable | None = None

    def assign_sub(self, value: tf.Tensor) -> None:
        if self.buffer is not None:
            self.buffer.assign_sub(value, read_value=False)
            return
        for variable, part in zip(self.variables, tf.unstack(value), strict=True):
            tf_variable(variable).assign_sub(part, read_value=False)

    def assign_add(self, value: tf.Tensor) -> None:
        self.assign_sub(-value)

    def read(self) -> tf.Tensor:
        if self.buffer is not None:
            return self.buffer.read_value()
        return tf.stack([tf_variable(variable).read_value() for variable in self.variables])

    def write(self, value: tf.Tensor) -> None:
        """Gives every variable its part; a tensor shares its memory with its parts, so nothing is copied."""
        for variable, part in zip(self.variables, tf.unstack(value), strict=True):
            tf_variable(variable).assign(part, read_value=False)

    @contextmanager
    def held(self, buffer: tf.Variable) -> Iterator[None]:
        """Lets the updates that are traced meanwhile go to `buffer` instead of the variables."""
        self.buffer = buffer
        try:
            yield
        finally:
            self.buffer = None


@contextmanager
def _making_slots(optimizer: keras.optimizers.Optimizer, make: Callable[..., Any]) -> Iterator[None]:
    """Lets `make` make the slots of an optimizer that is built meanwhile."""
    optimizer.add_variable_from_reference = make
    try:
        yield
    finally:
        del optimizer.add_variable_from_reference


class Stack:
    """Variables of one shape, of any groups whose optimizers are of one kind, and their common update rule.

    Args:
        members: The variables, each with its group.
        clocks: What the groups count.
        accumulation_steps: Batches per update, if not 1.
    """

    def __init__(self, members: Sequence[tuple[Group, Any]], clocks: Clocks, accumulation_steps: int | None):
        self.groups = [group for group, _ in members]
        self.stacked = StackedVariable([variable for _, variable in members])
        first = self.groups[0].optimizer
        self._kind = kind(first)
        self._rule = type(first)(**{name: getattr(first, name) for name in _CONSTANTS[type(first)]})
        self._slots: list[keras.Variable] = []
        with _making_slots(self._rule, self._make_slot):
            self._rule.build([self.stacked])
        self._clocks = clocks
        self._rule.gradient_accumulation_steps = accumulation_steps

    def _make_slot(self, stacked: StackedVariable, name: str = "var", initializer: Any = "zeros") -> keras.Variable:
        shape, dtype = stacked.shape, stacked.dtype.name
        with tf.device(tf_variable(stacked.variables[0]).device):
            slot = self._rule.add_variable(shape, initializer, dtype, name=f"{stacked.name}_{name}")
        self._slots.append(slot)
        return slot

    def slot_view(self, index: int, slot: int, path: str) -> SlotView:
        """The `slot`-th slot of the variable at `index`."""
        return SlotView(self._slots[slot].value, index, path)

    def can_update(self, gradients: Sequence[Any]) -> bool:
        """Whether all members have a dense gradient, and no optimizer was given other constants meanwhile."""
        dense = all(g is not None and not isinstance(g, tf.IndexedSlices) for g in gradients)
        return dense and all(kind(group.optimizer) == self._kind for group in self.groups)

    def update(self, gradients: Sequence[tf.Tensor]) -> None:
        with tracking.DotNotTrackScope():
            steps = self._clocks.steps_of(self.groups)
            self._rule._iterations = self._in_turn(steps, steps.dtype) if len(steps.shape) else steps
        stacked = tf.stack([tf.cast(gradient, self.stacked.dtype) for gradient in gradients])
        if not (is_plain_adam(self._rule) and has_kernels(tf_variable(self._slots[0]))):
            self._rule.update_step(stacked, self.stacked, self._rates())
            return
        m, v = map(tf_variable, self._slots)
        alpha = step_size(self._rule, self._rates())
        move_slots(self._rule, m, v, stacked)
        if self.stacked.buffer is not None:
            move_weights(self._rule, self.stacked.buffer, m, v, alpha)
        else:
            self.stacked.assign_sub(weight_change(self._rule, m, v, alpha))

    def decay(self) -> None:
        decays = self._in_turn([tf.cast(group.optimizer.weight_decay, self.stacked.dtype) for group in self.groups])
        self.stacked.assign_sub(self.stacked.read() * decays * self._rates())

    def _rates(self) -> tf.Tensor:
        """The rate of the group, or one for each variable if there are several groups."""
        if len(set(map(id, self.groups))) == 1:
            return tf.cast(self.groups[0].optimizer.learning_rate, self.stacked.dtype)
        rates = column([group.optimizer._learning_rate for group in self.groups])
        if rates is None:
            read = {group.name: tf.cast(group.optimizer.learning_rate, self.stacked.dtype) for group in self.groups}
            rates = [read[group.name] for group in self.groups]
        return self._in_turn(rates)

    def _in_turn(self, numbers: Any, dtype: Any = None) -> tf.Tensor:
        """Lets one number for each variable multiply the stacked variable."""
        return tf.reshape(tf.cast(numbers, dtype or self.stacked.dtype), [-1] + [1] * (self.stacked.shape.rank - 1))


class Stacks:
    """All stacks of an optimizer, and which variable is where.

    Args:
        stacks: The stacks.
        alone: Why a variable is in none, by its path.
        key: What tells variables apart.
    """

    def __init__(self, stacks: Sequence[Stack], alone: Mapping[str, str], key: Callable[[Any], Any]):
        self._stacks, self.alone, self._key = list(stacks), dict(alone), key
        self._place = {key(v): (stack, i) for stack in stacks for i, v in enumerate(stack.stacked.variables)}

    @contextmanager
    def slot_views(self, child: keras.optimizers.Optimizer) -> Iterator[None]:
        """Lets a child that is built meanwhile have views for the slots of its stacked variables."""
        made: Counter[Any] = Counter()
        make_alone = child.add_variable_from_reference

        def make(reference_variable: Any, name: str = "var", initializer: Any = "zeros") -> Any:
            key = self._key(reference_variable)
            if key not in self._place:
                return make_alone(reference_variable, name=name, initializer=initializer)
            stack, index = self._place[key]
            slot_view = stack.slot_view(index, made[key], f"{child.name}/{_flat_name(reference_variable)}_{name}")
            made[key] += 1
            child._track_variable(slot_view)
            return slot_view

        with _making_slots(child, make):
            yield

    def hand_over(self, came: Mapping[Any, Any]) -> None:
        """Puts variables in the places of stand-ins, given by their keys."""
        for old, variable in came.items():
            if old in self._place:
                stack, index = self._place[self._key(variable)] = self._place.pop(old)
                stack.stacked.variables[index] = variable

    def update(self, gradients: Sequence[Any], variables: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Updates every stack that has all its gradients; returns the gradients and variables that are left."""
        given = {self._key(v): gradient for v, gradient in zip(variables, gradients, strict=True)}
        for stack in self._stacks:
            keys = [self._key(v) for v in stack.stacked.variables]
            wanted: list[Any] = [given.get(key) for key in keys]
            if stack.stacked.buffer is not None or stack.can_update(wanted):
                stack.update(wanted)
                given = {key: gradient for key, gradient in given.items() if key not in set(keys)}
        left = [v for v in variables if self._key(v) in given]
        return [given[self._key(v)] for v in left], left

    def holdable(self, variables: Iterable[Any]) -> list[StackedVariable]:
        """The stacked variables all of whose parts are among these and are Keras' own without a constraint."""
        given = {self._key(variable) for variable in variables}

        def may(variable: Any) -> bool:
            is_free = isinstance(variable, keras.Variable) and variable.constraint is None
            return is_free and self._key(variable) in given

        return [stack.stacked for stack in self._stacks if all(map(may, stack.stacked.variables))]

    def decay(self, variables: Iterable[Any]) -> list[Any]:
        """Applies the weight decay of every stack all of whose variables decay; returns the variables that are left."""
        left = {self._key(v): v for v in variables}
        for stack in self._stacks:
            keys = {self._key(v) for v in stack.stacked.variables}
            if keys <= left.keys() and all(map(_decays, stack.groups, stack.stacked.variables)):
                stack.decay()
                left = {key: v for key, v in left.items() if key not in keys}
        return list(left.values())


def check_fused(fused: str) -> None:
    """Raises a GroupError unless `fused` is one of its values."""
    if fused not in _FUSED:
        raise GroupError(f"`fused` is one of {quote(_FUSED)}. Received `{fused!r}`. Write `auto`, or leave it out.")


def make_stacks(
    groups: Sequence[Group],
    *,
    fused: str,
    key: Callable[[Any], Any],
    clocks: Clocks,
    accumulation_steps: int | None,
) -> Stacks:
    """Stacks the small variables of one shape.

    Args:
        groups: Groups whose variables are known and whose optimizers are not built.
        fused: `auto`, `on` (all that can be, whatever its size) or `off`.
        key: What tells variables apart.
        clocks: What the groups count.
        accumulation_steps: Batches per update, if not 1.
    """
    alike: dict[Any, list[tuple[Group, Any]]] = defaultdict(list)
    alone: dict[str, str] = {}
    for group in groups:
        for variable in group.variables:
            if reason := _reason_against(group, variable, fused):
                alone[variable_path(variable)] = reason
            else:
                alike[_traits(group, variable)].append((group, variable))
    stacks = []
    for members in alike.values():
        if len(members) == 1 and fused == "auto":
            alone[variable_path(members[0][1])] = "no other variable has its shape and kind of optimizer"
        else:
            stacks += [Stack(block, clocks, accumulation_steps) for block in _blocks(members)]
    return Stacks(stacks, alone, key)


def _reason_against(group: Group, variable: Any, fused: str) -> str | None:
    if fused == "off":
        return "`fused` is off"
    if tf.distribute.has_strategy() or isinstance(tf_variable(variable), tf.distribute.DistributedValues):
        return "there may be several replicas"
    if type(group.optimizer) not in _CONSTANTS:
        return f"`{type(group.optimizer).__name__}` has a rule of its own for every variable"
    if getattr(variable, "overwrite_with_gradient", False):
        return "its gradient replaces it"
    if fused == "auto" and variable.shape.num_elements() * 2 > LARGEST_STACK:
        return "it is large, so that its update does not wait for others"
    return None


def kind(optimizer: keras.optimizers.Optimizer) -> tuple[Any, ...]:
    """What the update rules of two optimizers must have in common to be one."""
    return type(optimizer), *(getattr(optimizer, name) for name in _CONSTANTS[type(optimizer)])


def _traits(group: Group, variable: Any) -> tuple[Any, ...]:
    return kind(group.optimizer), tuple(variable.shape), tf.as_dtype(variable.dtype), tf_variable(variable).device


def _blocks(members: Sequence[tuple[Group, Any]]) -> Iterator[Sequence[tuple[Group, Any]]]:
    """Cuts into stacks of nearly equal length, none of them too large."""
    longest = max(1, LARGEST_STACK // max(1, members[0][1].shape.num_elements()))
    for block in np.array_split(np.arange(len(members)), -(-len(members) // longest)):
        yield [members[i] for i in block]


def _decays(group: Group, variable: Any) -> bool:
    return group.optimizer.weight_decay is not None and group.optimizer._use_weight_decay(variable)


def _flat_name(variable: Any) -> str:
    return variable_path(variable).replace("/", "_").replace(":", "_")
