"""One Keras optimizer that holds a child optimizer, with its own learning rate, for every layer group.

The parent is an ordinary Keras optimizer: it counts the steps, and filters, unscales, accumulates and clips the
gradients and keeps the moving average, over all groups at once. A child is only an update rule with its slots, its rate
and its weight decay. Hence equal children give, bit for bit, what one optimizer gives. A step is that of Keras
(`BaseOptimizer.apply`), in its order:

1. `None` gradients are dropped; gradients are divided by `loss_scale_factor`;
2. with `gradient_accumulation_steps`, they are added up, and all but every n-th step ends here;
3. clipping over all groups;
4. weight decay, `w -= w * weight_decay * rate` of the group;
5. clipping within a group, if its optimizer asks for it, and the update rule of the group;
6. the moving average (`moving_averages.py`), constraints of variables, and the step counter.

A `Fusion` does 4 and 5 for many small variables at once; see `fused/fusion.py`, which can be skipped. Keras has no
public hook for a step of several rules: https://github.com/keras-team/keras/issues/21741. The private methods that are
overridden here are listed in `keras_private.py`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune import keras_private
from finetune.errors import GroupError
from finetune.optimizers import group_optimizers as children
from finetune.optimizers.apply_calls import ApplyCalls
from finetune.optimizers.clocks import Clocks
from finetune.optimizers.finite_gradients import FiniteGradients
from finetune.optimizers.fused.fusion import make_fusion, update_alone
from finetune.optimizers.fused.stacked_variable import Buffers
from finetune.optimizers.group import make_groups
from finetune.optimizers.group_rates import GroupRates, as_float
from finetune.optimizers.members import Members
from finetune.optimizers.moving_averages import AveragingOptimizer
from finetune.optimizers.optimizer_map import groups_of_map
from finetune.optimizers.replicas import in_every_replica, scope_from_outside, update_once
from finetune.optimizers.saved import group_config, read_groups
from finetune.optimizers.saved_state import SavedState
from finetune.optimizers.sparse import divisible, merge_rows, on_values
from finetune.optimizers.variable_keys import VariableKey
from finetune.sequences import one_or_more

# What the config holds besides the groups, by the names of the arguments of `__init__`.
_SETTINGS = (
    *("name", "clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps"),
    *("use_ema", "ema_momentum", "ema_overwrite_frequency", "loss_scale_factor", "fused", "merge_rows"),
)


@keras.saving.register_keras_serializable("finetune")
class GroupedOptimizer(AveragingOptimizer):
    """Updates every layer group with its own optimizer at its own learning rate, all in one step.

    It goes into `model.compile`, or is applied to bare variables. `learning_rate` reads the rate of the last group;
    writing it scales all groups by the same ratio. So `ReduceLROnPlateau`, `LearningRateScheduler` and an LR range test
    keep the ratios between the groups, with and without schedules. `ReduceLROnPlateau(min_lr=x)` takes no group below
    `x`, and ends when the last group is there. The rate of one group alone is written by
    `optimizer.group_optimizers["head"].learning_rate = x`, and its new ratio to the others is kept from then on.

    Args:
        groups: Name to `(optimizer, members)`, from input to output. `members` is what the group updates: a
            `LayerGroup`, a layer or model, a variable, or a (nested) sequence of these; layers may be built later, by
            `fit`. Optimizers are fresh, one for each group, and take the group's name. A bare sequence of pairs names
            its groups `group_0`, `group_1`, ...
        clipnorm: Norm to which each gradient is clipped.
        clipvalue: Value to which each gradient element is clipped.
        global_clipnorm: Norm to which the gradients of all groups together are clipped.
        gradient_accumulation_steps: Batches per update, >= 2. Schedules count batches, as in Keras.
        use_ema: Whether to keep a moving average of the variables of all groups.
        ema_momentum: Momentum of that average, in [0, 1].
        ema_overwrite_frequency: Updates after which the average replaces the variables; `None`: at the end of `fit`.
        loss_scale_factor: Factor on the loss, taken off the gradients again.
        fused: `auto`: small variables of one shape whose optimizers are of one kind are updated together, in any number
            of groups, with the same results to the last bit (for how, see `finetune/optimizers/fused/rewrites.py`);
            `off`: every variable alone; `on`: together also where it does not pay. `not_fused` says which variables are
            updated alone, and why.
        merge_rows: Whether the gradients of one row of an embedding are added up before anything else, as in TF1. By
            default rules and norms get them one by one, as in Keras; see `finetune/optimizers/sparse.py`.
        name: Name of the optimizer; by default that of the groups' optimizers, as `adam`, where all have the same. It
            is in the names of a step's operations, on which the order depends in which TensorFlow adds up gradients.

    Raises:
        GroupError: If a group is empty, a variable is in two groups, an optimizer is shared, used before or has a
            setting that belongs to all groups, a rate is not a positive number, or `fused` is not one of its values.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> body, head = model.layers
        >>> optimizer = GroupedOptimizer({
        ...     "body": (keras.optimizers.SGD(1e-4, momentum=0.9), body),
        ...     "head": (keras.optimizers.AdamW(1e-3), head),
        ... })
        >>> model.compile(optimizer, loss="mse")
        >>> optimizer.learning_rate = 2e-3
        >>> {name: round(rate, 6) for name, rate in optimizer.learning_rates.items()}
        {'body': 0.0002, 'head': 0.002}
    """

    def __init__(
        self,
        groups: Mapping[str, tuple[keras.optimizers.Optimizer, Any]] | Sequence[tuple[keras.optimizers.Optimizer, Any]],
        *,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        gradient_accumulation_steps: int | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        fused: str = "auto",
        merge_rows: bool = False,
        name: str | None = None,
    ):
        # Everything that can be wrong is checked before `super().__init__`, and before a child is changed.
        fusion = make_fusion(fused, self._var_key)
        members = Members(make_groups(groups), self._var_key)
        names = {re.sub(r"_\d+$", "", group.optimizer.name) for group in members.groups}  # without Keras' counters
        super().__init__(
            learning_rate=lambda: self.learning_rate,  # a callable, so that Keras makes no variable for it
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            gradient_accumulation_steps=gradient_accumulation_steps,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            name=name or (names.pop() if len(names) == 1 else "grouped_optimizer"),
        )
        self.fused, self.merge_rows = fused, merge_rows
        self._members, self._fusion = members, fusion
        # From here on the children count with `self._iterations`, and their rates are written through `self._rates`.
        rates = [children.adopt(group, self) for group in members.groups]
        fusion.share_rates([rate.rate_variable for rate in rates])
        self._rates = GroupRates(rates)
        # `tf.train.Checkpoint` follows this attribute. A list or dict would make Keras save the children a second time.
        self.children: Any = tf.Module(name="children")
        self.children.by_group = {group.name: group.optimizer for group in members.groups}
        self._clocks = Clocks(members.groups, self._iterations)
        self.children.starts = self._clocks.starts
        self.children.saved_state = SavedState(self, members.groups, self._rates, self._clocks)
        self._apply_calls = ApplyCalls()
        self.finite_gradients: FiniteGradients | None = None  # set by `NonFiniteGradients`, before a step is traced

    @classmethod
    def from_optimizer_map(
        cls, model: Any, optimizer_map: keras.optimizers.OptimizerMap, **arguments: Any
    ) -> "GroupedOptimizer":
        """Makes the optimizer that `keras.optimizers.MultiOptimizer(optimizer_map)` is for a model.

        Args:
            model: A built model.
            optimizer_map: Optimizers by paths of variables, or regular expressions of them, as Keras matches them; see
                `groups_of_map`. Their names become those of the groups.
            arguments: Of `GroupedOptimizer`.

        Raises:
            GroupError: A key matches nothing, or an optimizer cannot be used in a group.
        """
        return cls(groups_of_map(model, optimizer_map), **arguments)

    # -- Groups and rates ---------------------------------------------------------------------------------------------

    @property
    def group_optimizers(self) -> Mapping[str, keras.optimizers.Optimizer]:
        """The optimizer of each group by the group's name, input to output.

        It is not called `optimizers` on purpose. Keras' callbacks that find that attribute write every child by itself:
        `LearningRateScheduler(lambda epoch: 1e-3)` would erase the ratios between the groups, and
        `SwapEMAWeights` would look for an average in each child.
        Without it they read and write `learning_rate` and the average of this optimizer, which does the right thing.
        """
        # Not a dict: Keras saves every optimizer that it finds in a list or dict, and would save the children twice.
        return MappingProxyType(self.children.by_group)

    @property
    def group_names(self) -> tuple[str, ...]:
        """The names of the groups, input to output."""
        return tuple(group.name for group in self._members.groups)

    @property
    def group_variables(self) -> list[Any]:
        """The variables of all groups in the model's order, including those that are frozen at the moment."""
        self._members.settle()
        return list(self._members.order)

    @property
    def learning_rates(self) -> dict[str, float]:
        """The rate that each group uses in the next step."""
        return {group.name: as_float(group.optimizer.learning_rate) for group in self._members.groups}

    @property
    def initial_rates(self) -> dict[str, Any]:
        """What the optimizer of each group was made with: a number, a schedule or a callable."""
        return {group.name: group.initial_rate for group in self._members.groups}

    @property
    def learning_rate(self) -> Any:
        """The rate of the last group, as a tensor. Writing it scales the rates of all groups by the same ratio."""
        # Not the variable: with that, `learning_rate.assign(x)` would write the last group alone.
        rate: Any = tf.convert_to_tensor(self._members.groups[-1].optimizer.learning_rate)
        if tf.executing_eagerly():
            rate.assign = partial(setattr, self, "learning_rate")
        return rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        children.check_rates_writable(self._members.groups)
        self._rates.write_last(value, keras_private.floor_of_plateau())

    def reschedule(self, name: str, rate: Any = None, *, from_now: bool = False, warmup_steps: int = 0) -> None:
        """Replaces the rate of a group in steps that are traced from here on, as at the begin of a phase.

        Args:
            name: The group.
            rate: A number or a schedule; `None`: the rate with which its optimizer was made.
            from_now: Whether a schedule counts the steps from now, instead of from the first step.
            warmup_steps: Steps from now on in which the rate rises linearly from 0 to what it is otherwise.

        Raises:
            GroupError: If there is no such group.
        """
        group = self._members.named(name)
        index, rate = self._members.groups.index(group), group.initial_rate if rate is None else rate
        held = self._rates.follow(index, rate, self._iterations, from_now=from_now, warmup_steps=warmup_steps)
        keras_private.set_held_rate(group.optimizer, held)

    def share_rate(self, name: str, share: float) -> None:
        """Multiplies by `share` the rate that a group was made with, or that `reschedule` gave it."""
        self._rates.share(self._members.groups.index(self._members.named(name)), share)

    def reset_rates(self) -> None:
        """Undoes what was written to `learning_rate`, as by `ReduceLROnPlateau`."""
        self._rates.reset()

    def restart(self, names: Iterable[str]) -> None:
        """Makes groups start anew in steps that are traced from here on, as if there had been no step.

        Their slots are empty again, and bias corrections count from now; their rates and schedules go on.

        Args:
            names: The groups.

        Raises:
            GroupError: If there is no such group.
        """
        self._build_all()
        for group in [self._members.named(name) for name in one_or_more(names)]:
            children.reset_slots(group)
            for variable in group.variables if self.gradient_accumulation_steps else ():
                sum_so_far = self._accumulated_gradients[self._get_variable_index(variable)]
                sum_so_far.assign(tf.zeros_like(sum_so_far))
            self._clocks.start(group)

    @property
    def not_fused(self) -> dict[str, str]:
        """Why a variable is updated alone, by its path; for the others, which are updated together, see `fused`."""
        self._build_all()
        return dict(self._fusion.alone)

    def buffers(self, variables: Iterable[Any]) -> Buffers:
        """Returns buffers that may hold variables while a training loop makes several steps in one call.

        Args:
            variables: The variables that the loop trains.
        """
        self._build_all()
        # The moving average reads the variables themselves after every update.
        return Buffers() if self.use_ema else self._fusion.buffers(variables)

    # -- Building -----------------------------------------------------------------------------------------------------

    @keras_private.without_tracking
    def build(self, variables: Iterable[Any]) -> None:
        """Makes the slots of all groups, including those of variables that are frozen at the moment.

        Args:
            variables: Any part of the groups' variables, such as `model.trainable_variables`.

        Raises:
            GroupError: If a variable belongs to no group.
        """
        self._admit(list(variables))
        if not self.built:
            # On all devices that its variables are on, also for a caller who has left the scope of their strategy.
            with scope_from_outside(self._distribution_strategy), children.made_outside_of_trace():
                self._make_slots()

    def _make_slots(self) -> None:
        groups, accumulation_steps = self._members.groups, self.gradient_accumulation_steps
        # Keras makes the accumulators and averages of all groups here; the children make only the slots of their rules.
        super().build([variable for group in groups for variable in group.variables])
        self._fusion.build(groups, self._clocks, accumulation_steps)
        for group in groups:
            children.track_all(group.optimizer)
            # After `build`: the child must count updates as the parent does, and needs no accumulators itself.
            group.optimizer.gradient_accumulation_steps = accumulation_steps

    def _build_all(self) -> None:
        if not self.built:
            self._members.settle()
            self.build(self._members.order)

    def _admit(self, variables: list[Any]) -> None:
        """Learns the model's variables; those of a loaded model replace the placeholders for them."""
        replacements = {self._var_key(old): variable for old, variable in self._members.admit(variables)}
        if replacements:
            for optimizer in (self, *self.group_optimizers.values()):
                children.replace_variables(optimizer, replacements, self._var_key)
            self._fusion.replace(replacements)
        if self.built and self.use_ema:
            self._start_averages(replacements.values())

    def _check_variables_are_known(self, variables: list[Any]) -> None:
        # Called at the begin of a step, also of one that is traced, with the variables that are not frozen.
        children.check_rates_writable(self._members.groups)
        self.saved_state.traced |= not tf.executing_eagerly()
        self._admit(variables)
        super()._check_variables_are_known(variables)

    # -- One step -----------------------------------------------------------------------------------------------------

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Updates the variables of all groups in one step. A group without gradients stays as it is; its step counts.

        Args:
            grads: Gradients, one for each variable; `None` where there is none.
            trainable_variables: Any part of the groups' variables; the others are frozen. Default: all of them, in the
                order in which `build` had them.

        Raises:
            GroupError: If a variable belongs to no group, or gradients and variables do not pair up.
        """
        self._members.settle()
        grads = list(grads)
        variables = list(self._members.order if trainable_variables is None else trainable_variables)
        if grads and len(grads) != len(variables):
            raise GroupError(
                f"Gradients and variables come in pairs. Received {len(grads)} gradients for {len(variables)} variables"
                f"{' of the groups. Pass the variables as well' if trainable_variables is None else ''}."
            )
        pairs = zip(grads, variables, strict=False)
        self._apply_calls.note(self._var_key(v) for gradient, v in pairs if gradient is not None)
        step = super().apply

        def make(grads: list[Any], variables: list[Any]) -> None:
            step(grads if self.loss_scale_factor is None else divisible(grads), variables)

        if self.finite_gradients is None:
            make(grads, variables)
        else:
            self.build(variables)  # before the conditional that the step is then in
            self.finite_gradients.apply(grads, variables, make)

    # What follows overrides the parts of a step of Keras, in the order of the list at the top of this file.

    def _backend_apply_gradients(self, grads: list[Any], trainable_variables: Any) -> None:
        # Replicas are summed before anything that depends on the size of a gradient: accumulating, clipping.
        step, merge = super()._backend_apply_gradients, merge_rows if self.merge_rows else list
        update_once(lambda sums, variables: step(merge(sums), variables), grads, trainable_variables)

    def _backend_increment_gradient_accumulators(self, grads: list[Any], acc_grads: list[Any]) -> None:
        in_every_replica(super()._backend_increment_gradient_accumulators, grads, acc_grads)

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        return on_values(super()._clip_gradients, grads)

    def _apply_weight_decay(self, variables: Iterable[Any]) -> None:
        # Before the update rule, and at the rate of this step: both as in Keras, and as AdamW is defined.
        for child, (members,) in self._members.by_group(self._fusion.decay(variables)):
            in_every_replica(keras_private.apply_weight_decay, child, members)

    def _backend_update_step(self, grads: list[Any], trainable_variables: Any, learning_rate: Any) -> None:
        # `learning_rate`, that of the last group, is not used: each group has its own.
        remaining = self._fusion.update(*self._clip_by_child(grads, trainable_variables))
        for child, (gradients, members) in self._members.by_group(*remaining):
            update_alone(child, gradients, members)

    def _clip_by_child(self, grads: Iterable[Any], variables: Iterable[Any]) -> tuple[list[Any], list[Any]]:
        # A child's `clipnorm` and `clipvalue`; its `global_clipnorm` was refused, as it would not be global.
        clipped, in_turn = [], []
        for child, (gradients, members) in self._members.by_group(grads, variables):
            clipped += on_values(partial(keras_private.clip_gradients, child), gradients)
            in_turn += members
        return clipped, in_turn

    # -- State --------------------------------------------------------------------------------------------------------

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """As in Keras, for the children of all groups."""
        for group in self._members.groups:
            group.optimizer.exclude_from_weight_decay(var_list=var_list, var_names=var_names)

    @property
    def variables(self) -> list[keras.Variable]:
        """The parent's variables, then those of each child, then the steps at which the groups began."""
        # Files hold the state in this order, without names: whoever changes it must read the old order, too.
        groups = self._members.groups
        held = [v for group in groups for v in group.optimizer.variables if v is not group.unused_counter]
        return [*self._variables, *held, self._clocks.starts]

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        # TensorFlow writes a SavedModel without the optimizer: it could not be trained further anyway.
        return {} if save_type == "savedmodel" else super()._trackable_children(save_type, **kwargs)

    @property
    def saved_state(self) -> SavedState:
        """The phase, and what else is saved beside `variables`."""
        return self.children.saved_state

    def set_weights(self, weights: Iterable[Any]) -> None:
        """Sets all of `variables` from arrays in the same order."""
        self._build_all()
        self.saved_state.assign({str(i): np.asarray(weight) for i, weight in enumerate(weights)})

    def save_own_variables(self, store: Any) -> None:
        """Saves all of `variables` and `saved_state`; before the first step they are made: every file is complete."""
        self._build_all()
        super().save_own_variables(store)
        self.saved_state.write(store)

    def load_own_variables(self, store: Any) -> None:
        """Sets the whole state from a store; none of it, with a warning, from the store of another optimizer."""
        if len(store.keys()):  # otherwise the file holds weights alone
            self._build_all()
            self.saved_state.load(store)

    def get_config(self) -> dict[str, Any]:
        """Returns the config, from which the groups are found again by the places of their variables in the model."""
        keys = self._members.variable_keys()
        groups = [group_config(group, keys[group.name]) for group in self._members.groups]
        settings = {setting: getattr(self, setting) for setting in _SETTINGS}
        return {**settings, "groups": groups, "frozen": self._members.frozen_keys()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "GroupedOptimizer":
        """Makes the optimizer again; it finds its variables when it is built on those of a model."""
        groups, keys = read_groups(config["groups"], custom_objects)
        optimizer = cls(groups, **{key: value for key, value in config.items() if key not in ("groups", "frozen")})
        # Keras loads the state before the model is called, so the slots must exist before the variables are known.
        optimizer._members.await_model(keys, map(VariableKey.from_dict, config.get("frozen", ())))
        return optimizer
