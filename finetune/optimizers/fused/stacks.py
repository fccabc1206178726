"""Variables of one shape, of any groups whose optimizers are of one kind, with one update rule for all of them.

The rule is Keras' own optimizer, built on a `StackedVariable` instead of the variables; its slots have one axis more in
front, and each variable's optimizer holds a `SlotView` of its entry. Keras' rules compute element by element, so the
results are the same to the last bit, where TensorFlow rewrites both alike (`rewrites.py`). See
`tests/optimizers/fused/test_stacks.py`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.keras_private import held_rate, set_step_counter, uses_weight_decay
from finetune.optimizers.clocks import Clocks
from finetune.optimizers.fused.adam import (
    has_kernels,
    is_plain_adam,
    step_size,
    update_moments,
    update_weights,
    weight_change,
)
from finetune.optimizers.fused.rewrites import is_power_of_steps, keeps_vectors, may_be_products
from finetune.optimizers.fused.slots import SlotView, gather_scalars
from finetune.optimizers.fused.stacked_variable import StackedVariable
from finetune.optimizers.group import Group
from finetune.optimizers.tf1_momentum import Momentum
from finetune.optimizers.tf1_rmsprop import TF1RMSprop
from finetune.variables import tf_variable, variable_path

# The rules that treat every element alike and use of the variable only its elements, with the settings that two
# optimizers must share to be one rule. Rate and weight decay are not among them: those are a column, one per variable.
_CONSTANTS = {
    keras.optimizers.SGD: ("momentum", "nesterov"),
    Momentum: ("momentum", "nesterov"),
    keras.optimizers.Adam: ("beta_1", "beta_2", "epsilon", "amsgrad"),
    keras.optimizers.AdamW: ("beta_1", "beta_2", "epsilon", "amsgrad"),
    keras.optimizers.Adamax: ("beta_1", "beta_2", "epsilon"),
    keras.optimizers.Adagrad: ("initial_accumulator_value", "epsilon"),
    keras.optimizers.RMSprop: ("rho", "momentum", "epsilon", "centered"),
    TF1RMSprop: ("rho", "momentum", "epsilon", "centered"),
    keras.optimizers.Lion: ("beta_1", "beta_2"),
}
LARGEST_STACK = 2**15  # elements: 128 KiB, so that what the rule computes in between remains in the processor's cache


class Stack:
    """Variables that are updated together.

    Args:
        members: The variables, all of one shape and dtype, each with its group.
        clocks: The steps that the groups count.
        accumulation_steps: Batches per update, if not 1.

    Attributes:
        groups: The group of each variable.
        stacked: The variables.
    """

    def __init__(self, members: Sequence[tuple[Group, Any]], clocks: Clocks, accumulation_steps: int | None):
        self.groups = [group for group, _ in members]
        self.stacked = StackedVariable([variable for _, variable in members])
        first = self.groups[0].optimizer
        # The rate and the decay of this optimizer are not used: the rule gets a column of rates with every call.
        self._kind = kind(first)
        self._rule = type(first)(**{name: getattr(first, name) for name in _CONSTANTS[type(first)]})
        self._slots: list[keras.Variable] = []
        with slots_made_by(self._make_slot, self._rule):
            self._rule.build([self.stacked])
        self._clocks = clocks
        # After `build`, which would make an accumulator: the gradients that arrive here are accumulated already.
        self._rule.gradient_accumulation_steps = accumulation_steps

    def _make_slot(self, stacked: StackedVariable, name: str = "var", initializer: Any = "zeros") -> keras.Variable:
        shape, dtype = stacked.shape, stacked.dtype.name
        # Where the weights are, or each step would copy them between devices.
        with tf.device(tf_variable(stacked.variables[0]).device):
            slot = self._rule.add_variable(shape, initializer, dtype, name=f"{stacked.name}_{name}")
        self._slots.append(slot)
        return slot

    def slot_view(self, index: int, slot: int, path: str) -> SlotView:
        """Returns the slot of a variable as a view.

        Args:
            index: The position of the variable.
            slot: Which of its slots, in the order in which the rule makes them.
            path: What the view is called.
        """
        return SlotView(self._slots[slot].value, index, path)

    def can_update(self, gradients: Sequence[Any]) -> bool:
        """Returns whether every variable has a dense gradient and every optimizer still the settings of the rule."""
        dense = all(g is not None and not isinstance(g, tf.IndexedSlices) for g in gradients)
        return dense and all(kind(group.optimizer) == self._kind for group in self.groups)

    def update(self, gradients: Sequence[tf.Tensor]) -> None:
        """Updates all variables and their slots, each at the rate and the step of its group."""
        # Bias corrections depend on the step: a scalar for all, or a column if groups started at different steps.
        steps = self._clocks.steps_of(self.groups)
        set_step_counter(self._rule, self._as_column(steps, steps.dtype) if len(steps.shape) else steps)
        gradients = [tf.cast(gradient, self.stacked.dtype) for gradient in gradients]
        # Plain Adam has kernels with fewer passes over memory (`adam.py`); other rules are called as they are.
        if not (is_plain_adam(self._rule) and has_kernels(tf_variable(self._slots[0]))):
            self._call_rule(gradients)
            return
        gradient = tf.stack(gradients)
        m, v = map(tf_variable, self._slots)
        alpha = self._step_sizes() if len(steps.shape) else step_size(self._rule, self._rates())
        update_moments(self._rule, m, v, gradient)
        # The kernel needs one variable for all weights; without a buffer they are apart, and get the difference.
        if self.stacked.buffer is not None:
            update_weights(self._rule, self.stacked.buffer, m, v, alpha)
        else:
            self.stacked.assign_sub(weight_change(self._rule, m, v, alpha))

    def _call_rule(self, gradients: Sequence[tf.Tensor]) -> None:
        # Products of single variables are more operations than one of the stack, and here they have other bits.
        if isinstance(self._rule, keras.optimizers.SGD) and may_be_products(gradients):
            rates = tf.unstack(self._rate_of_each())
            products = [gradient * rate for gradient, rate in zip(gradients, rates, strict=True)]
            self._rule.update_step(tf.stack(products), self.stacked, 1.0)
        else:
            self._rule.update_step(tf.stack(gradients), self.stacked, self._rates())

    def can_decay(self) -> bool:
        """Returns whether weight decay applies to every variable, and the stack has the bits of single ones."""
        # Of `w * weight_decay * rate` TensorFlow multiplies the two smallest first: none of three that are one number.
        if self.stacked.shape.num_elements() == len(self.groups):
            return False
        return all(
            group.optimizer.weight_decay is not None and uses_weight_decay(group.optimizer, variable)
            for group, variable in zip(self.groups, self.stacked.variables, strict=True)
        )

    def decay(self) -> None:
        """Decays all variables, `w -= w * weight_decay * rate` in the order of Keras, each as its group says."""
        decays = self._as_column([tf.cast(group.optimizer.weight_decay, self.stacked.dtype) for group in self.groups])
        self.stacked.assign_sub(self.stacked.read() * decays * self._rates())

    def _rates(self) -> tf.Tensor:
        """Returns the rate of the group, or a column with the rate of each variable if there are several groups."""
        if len(set(map(id, self.groups))) == 1:
            return tf.cast(self.groups[0].optimizer.learning_rate, self.stacked.dtype)
        return self._as_column(self._rate_of_each())

    def _rate_of_each(self) -> tf.Tensor:
        """Returns a vector with the rate of each variable."""
        # One gather if the rates share their storage and none is scheduled; otherwise each group's rate is read once.
        rates = gather_scalars([held_rate(group.optimizer) for group in self.groups])
        if rates is None:
            rates = self._of_each(lambda group: tf.cast(group.optimizer.learning_rate, self.stacked.dtype))
        return tf.cast(rates, self.stacked.dtype)

    def _step_sizes(self) -> tf.Tensor:
        """Returns a column with Adam's step size for each variable, of groups that started at different steps."""
        # A power of a column would have other bits: see `rewrites.py`.
        dtype = self.stacked.dtype
        return self._as_column(
            self._of_each(lambda g: step_size(g.optimizer, tf.cast(g.optimizer.learning_rate, dtype)))
        )

    def _of_each(self, compute: Callable[[Group], Any]) -> list[Any]:
        """Computes something once for each group; returns it for each variable."""
        computed = {group.name: compute(group) for group in self.groups}
        return [computed[group.name] for group in self.groups]

    def _as_column(self, numbers: Any, dtype: Any = None) -> tf.Tensor:
        """Returns numbers, one per variable, in the shape `(variables, 1, ...)` that multiplies `stacked`."""
        return tf.reshape(tf.cast(numbers, dtype or self.stacked.dtype), [-1] + [1] * (self.stacked.shape.rank - 1))


@contextmanager
def slots_made_by(make: Callable[..., Any], optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Lets `make` make the slots of an optimizer that is built meanwhile.

    Keras' optimizers make every slot by the public `add_variable_from_reference`, which an instance may replace.

    Args:
        make: Called with a variable, the slot's name and its initializer; returns the slot.
        optimizer: Not built yet.
    """
    optimizer.add_variable_from_reference = make
    try:
        yield
    finally:
        del optimizer.add_variable_from_reference


def make_stacks(
    groups: Sequence[Group], clocks: Clocks, accumulation_steps: int | None, *, all_sizes: bool
) -> tuple[list[Stack], dict[str, str]]:
    """Stacks the variables of one shape whose groups' optimizers are of one kind.

    Args:
        groups: Groups whose variables are known and whose optimizers are not built.
        clocks: The steps that the groups count.
        accumulation_steps: Batches per update, if not 1.
        all_sizes: Whether to stack also where it does not pay: large variables, and those that have no other like them.

    Returns:
        The stacks, and why each other variable is in none, by its path.
    """
    # Everything in the key of `alike` must agree for one call of one rule on one tensor.
    alike: dict[Any, list[tuple[Group, Any]]] = defaultdict(list)
    alone: dict[str, str] = {}
    for group in groups:
        for variable in group.variables:
            if reason := _reason_against(group, variable, all_sizes):
                alone[variable_path(variable)] = reason
            else:
                traits = tuple(variable.shape), tf.as_dtype(variable.dtype), tf_variable(variable).device
                # Of several groups only where a column of steps, one for each, has the bits of single steps.
                counts = is_power_of_steps(group.optimizer, tf_variable(variable))
                has_column = is_plain_adam(group.optimizer) and has_kernels(tf_variable(variable))
                within = group.name if counts and not has_column else None
                alike[kind(group.optimizer), within, *traits].append((group, variable))
    stacks = []
    for members in alike.values():
        if len(members) == 1 and not all_sizes:
            alone[variable_path(members[0][1])] = "no other variable has its shape and kind of optimizer"
        else:
            stacks += [Stack(block, clocks, accumulation_steps) for block in _blocks(members)]
    return stacks, alone


def _reason_against(group: Group, variable: Any, all_sizes: bool) -> str | None:
    if tf.distribute.has_strategy() or isinstance(tf_variable(variable), tf.distribute.DistributedValues):
        return "there may be several replicas"
    if type(group.optimizer) not in _CONSTANTS:
        return f"`{type(group.optimizer).__name__}` has an update rule that is not elementwise, or not known here"
    if not keeps_vectors(group.optimizer, tf_variable(variable)):
        return "its rule divides by a square root, the last bits of which depend on the place in an array"
    # Keras writes the gradient of such a variable to it and never calls the rule: scales of float8 layers.
    if getattr(variable, "overwrite_with_gradient", False):
        return "its gradient replaces it"
    # Small operations wait for their start, large ones for memory: stacking a large variable only adds a copy of it.
    if not all_sizes and variable.shape.num_elements() * 2 > LARGEST_STACK:
        return "it is large, so that its update does not wait for others"
    return None


def kind(optimizer: keras.optimizers.Optimizer) -> tuple[Any, ...]:
    """Returns what two optimizers must have in common to be one rule: their class and its constants."""
    return type(optimizer), *(getattr(optimizer, name) for name in _CONSTANTS[type(optimizer)])


def _blocks(members: Sequence[tuple[Group, Any]]) -> Iterator[Sequence[tuple[Group, Any]]]:
    """Divides members into blocks of nearly equal length, with at most `LARGEST_STACK` elements where possible."""
    longest = max(1, LARGEST_STACK // max(1, members[0][1].shape.num_elements()))
    for block in np.array_split(np.arange(len(members)), -(-len(members) // longest)):
        yield [members[i] for i in block]
