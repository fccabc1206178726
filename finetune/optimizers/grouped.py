"""One Keras optimizer that holds a child optimizer, with its own learning rate, for every layer group.

The division of labour: the parent is an ordinary Keras optimizer. It counts the steps and filters, unscales,
accumulates and clips the gradients and keeps the moving average, over all groups at once. A child is only an update
rule with its slots, its rate and its weight decay. Hence equal children give, bit for bit, what one optimizer gives.

Keras has no public hook for this. The private ones used are here, in `averages.py` and in `fused/`;
the minor version of Keras is pinned, and `tests/test_keras_contract.py` fails when one of them moves. See
https://github.com/keras-team/keras/issues/21741.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.utils import tracking

from finetune.errors import GroupError, did_you_mean, quote
from finetune.optimizers.averages import AveragingOptimizer
from finetune.optimizers.clocks import Clocks, give_fresh_slots
from finetune.optimizers.fused.adam import update_large
from finetune.optimizers.fused.slots import move_together
from finetune.optimizers.fused.stacks import StackedVariable, Stacks, check_fused, make_stacks
from finetune.optimizers.group import Group, make_groups
from finetune.optimizers.group_rates import GroupRate, GroupRates, ScaledSchedule, as_float
from finetune.optimizers.members import Members
from finetune.optimizers.replicas import in_every_replica, update_once
from finetune.optimizers.saved import fitting_values, group_config, made_at_once, read_groups, track_all
from finetune.optimizers.sparse import densify, merge_rows

_CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")
_OWN_SETTINGS = (
    *("name", *_CLIPPING, "gradient_accumulation_steps", "use_ema", "ema_momentum", "ema_overwrite_frequency"),
    *("loss_scale_factor", "fused"),
)


@keras.saving.register_keras_serializable("finetune")
class GroupedOptimizer(AveragingOptimizer):
    """Updates every layer group with its own optimizer at its own learning rate, all in one step.

    It goes into `model.compile`, or is applied to bare variables. `learning_rate` reads the rate of the last group;
    writing it scales all groups by the same ratio. So `ReduceLROnPlateau`, `LearningRateScheduler` and an LR range test
    keep the ratios between the groups, with and without schedules. A group alone is moved by
    `optimizer.optimizers[i].learning_rate = x`.

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
        fused: `auto`: small variables of one shape, whose optimizers are of one kind, are updated together, at any
            number of groups and with the same results to the last bit; `off`: every variable alone; `on`: together also
            where it does not pay. `not_fused` says which variables are updated alone, and why.
        name: Name of the optimizer.

    Raises:
        GroupError: If a group is empty, a variable is in two groups, an optimizer is shared, used before or holds a
            setting that belongs to all groups, a rate is not a positive number, or `fused` is none of its values.

    Example:
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
        name: str = "grouped_optimizer",
    ):
        check_fused(fused)
        members = Members(make_groups(groups), self._var_key)
        super().__init__(
            learning_rate=lambda: self.learning_rate,  # a callable, so that Keras makes no rate variable of ours
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            gradient_accumulation_steps=gradient_accumulation_steps,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            name=name,
        )
        self.fused = fused
        self._members = members
        self._stacks = Stacks([], {}, self._var_key)  # until the optimizer is built
        rates = [self._adopt(group) for group in members.groups]
        if fused != "off" and not tf.distribute.has_strategy():
            move_together([rate.rate_variable for rate in rates])
        self._rates = GroupRates(rates)
        # tf.train.Checkpoint follows this attribute. A list or dict would make Keras save the children a second time.
        self.children: Any = tf.Module(name="children")
        self.children.by_group = {group.name: group.optimizer for group in members.groups}
        self._clocks = Clocks(members.groups, self._iterations)
        self.children.starts = self._clocks.starts

    def _adopt(self, group: Group) -> GroupRate:
        """Makes a child tick with the parent's clock and its rate writable; returns its rate."""
        child = group.optimizer
        child.name = group.name
        group.unused_counter = child._iterations
        with tracking.DotNotTrackScope():  # else the parent's counter were one of the child's variables, too
            child._iterations = self._iterations
        child._all_reduce_sum_gradients = list  # the parent has summed them over the replicas
        if isinstance(child._learning_rate, keras.Variable):
            group.initial_rate = as_float(child._learning_rate)
            return GroupRate(child._learning_rate)
        group.initial_rate = child._learning_rate
        multiplier = self.add_variable((), initializer="ones", dtype="float32", name=f"{group.name}_multiplier")
        child._learning_rate = ScaledSchedule(group.initial_rate, self._iterations, multiplier)
        return GroupRate(multiplier, child._learning_rate)

    # -- Groups and rates ---------------------------------------------------------------------------------------------

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        """The children, one for each group, input to output, named after their groups.

        Keras' own code, but for TensorBoard, does not see this attribute: its rate callbacks would write every child
        alone, so that `LearningRateScheduler(lambda epoch: 1e-3)` erases the ratios between the groups;
        `SwapEMAWeights` would look for an average in each child; and saving would store the children twice.
        """
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("keras.src.") and not caller.endswith(".tensorboard"):
            raise AttributeError("Keras writes `learning_rate` instead, which keeps the ratios between the groups.")
        return [group.optimizer for group in self._members.groups]

    @property
    def group_names(self) -> tuple[str, ...]:
        """The names of the groups, input to output."""
        return tuple(group.name for group in self._members.groups)

    @property
    def group_variables(self) -> list[Any]:
        """The variables of all groups, those that are frozen just now included, in the model's order."""
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
        """The rate of the last group. Writing it scales all groups by the same ratio."""
        # A value, not the variable: `learning_rate.assign(x)` would move the last group alone.
        return tf.convert_to_tensor(self._members.groups[-1].optimizer.learning_rate)

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._check_schedules()
        self._rates.write_last(value)

    def _check_schedules(self) -> None:
        held = keras.Variable | ScaledSchedule
        replaced = [g.name for g in self._members.groups if not isinstance(g.optimizer._learning_rate, held)]
        if replaced:
            raise GroupError(
                f"A group's schedule is given to its optimizer before the `{type(self).__name__}` is made, so that its "
                f"rate stays writable. Afterwards it was given to {quote(replaced)}. Write a number, or make a new one."
            )

    def reschedule(self, name: str, rate: Any = None, *, from_now: bool = False, warmup_steps: int = 0) -> None:
        """Gives a group another rate, for steps that are traced from here on: a phase of training has its own.

        Args:
            name: The group.
            rate: A number or a schedule; `None`: what its optimizer was made with.
            from_now: Whether a schedule counts from now, instead of from the first step.
            warmup_steps: Steps from now on in which the rate rises from 0 to what it is otherwise.
        """
        group = self._named(name)
        index = self.group_names.index(name)
        rate = group.initial_rate if rate is None else rate
        held = self._rates.follow(index, rate, self._iterations, from_now=from_now, warmup_steps=warmup_steps)
        with tracking.DotNotTrackScope():
            group.optimizer._learning_rate = held

    def share_rate(self, name: str, share: float) -> None:
        """Lets a group have a part of the rate that it was made with, or that `reschedule` has given it."""
        group = self._named(name)
        self._rates.share(self._members.groups.index(group), share)

    def restart(self, names: Iterable[str]) -> None:
        """Lets groups start anew in steps that are traced from here on: as if no step had been before.

        Their slots are empty again, and bias corrections count from now; their rates and schedules go on.

        Args:
            names: The groups.

        Raises:
            GroupError: If there is no such group.
        """
        self._build_all()
        for group in [self._named(name) for name in names]:
            give_fresh_slots(group)
            for variable in group.variables if self.gradient_accumulation_steps else ():
                sum_so_far = self._accumulated_gradients[self._get_variable_index(variable)]
                sum_so_far.assign(tf.zeros_like(sum_so_far))
            self._clocks.start(group)

    def _named(self, name: str) -> Group:
        if name not in self.group_names:
            raise GroupError(
                f"There is no group `{name}`. The groups are {quote(self.group_names)}."
                f"{did_you_mean(name, self.group_names)}"
            )
        return self._members.groups[self.group_names.index(name)]

    def reset_rates(self) -> None:
        """Takes back what was written to `learning_rate`, as by `ReduceLROnPlateau`."""
        self._rates.reset()

    @property
    def not_fused(self) -> dict[str, str]:
        """Why a variable is updated alone, by its path; for the others, which are updated together, see `fused`."""
        self._build_all()
        return dict(self._stacks.alone)

    def stacked_variables(self, variables: Iterable[Any]) -> list[StackedVariable]:
        """The variables, of those to be trained, that a training loop may hold together for some steps."""
        self._build_all()
        return [] if self.use_ema else self._stacks.holdable(variables)

    # -- Building -----------------------------------------------------------------------------------------------------

    @tracking.no_automatic_dependency_tracking
    def build(self, variables: Iterable[Any]) -> None:
        """Makes the slots of all groups, also of the variables that are frozen just now.

        Args:
            variables: Any part of the groups' variables, such as `model.trainable_variables`.

        Raises:
            GroupError: If a variable belongs to no group.
        """
        self._admit(list(variables))
        if not self.built:
            with made_at_once():
                self._make_slots()

    def _make_slots(self) -> None:
        super().build([v for group in self._members.groups for v in group.variables])
        self._stacks = make_stacks(
            self._members.groups,
            fused=self.fused,
            key=self._var_key,
            clocks=self._clocks,
            accumulation_steps=self.gradient_accumulation_steps,
        )
        for group in self._members.groups:
            with self._stacks.slot_views(group.optimizer):
                group.optimizer.build(group.variables)
            track_all(group.optimizer)
            # After `build`: the child must count updates as the parent does, and needs no accumulators of its own.
            group.optimizer.gradient_accumulation_steps = self.gradient_accumulation_steps

    def _build_all(self) -> None:
        if not self.built:
            self._members.settle()
            self.build(self._members.order)

    def _admit(self, variables: list[Any]) -> None:
        came = {self._var_key(stand_in): variable for stand_in, variable in self._members.admit(variables)}
        if came:
            for optimizer in (self, *(group.optimizer for group in self._members.groups)):
                self._hand_over(optimizer, came)
            self._stacks.hand_over(came)
        if self.built and self.use_ema:
            self._start_averages(came.values())

    def _hand_over(self, optimizer: keras.optimizers.Optimizer, came: dict[Any, Any]) -> None:
        """Gives what the optimizer keeps for stand-ins, by their keys, to the variables that took their places."""
        excluded = getattr(optimizer, "_exclude_from_weight_decay", set())
        excluded.update([self._var_key(variable) for old, variable in came.items() if old in excluded])
        if optimizer.built:
            known, indices = optimizer._trainable_variables, optimizer._trainable_variables_indices
            indices.update({self._var_key(v): indices[old] for old, v in came.items() if old in indices})
            with tracking.DotNotTrackScope():  # a changed list could not be saved by tf.train.Checkpoint any more
                optimizer._trainable_variables = [came.get(self._var_key(v), v) for v in known]

    def _check_variables_are_known(self, variables: list[Any]) -> None:
        self._check_schedules()
        self._admit(variables)
        super()._check_variables_are_known(variables)

    # -- One step -----------------------------------------------------------------------------------------------------

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Updates the variables of all groups in one step; a group without gradients stands still, its clock ticks.

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
                f"{' of the groups. Pass the variables, too' if trainable_variables is None else ''}."
            )
        # Keras divides by the factor, which a sparse gradient does not support.
        super().apply(densify(grads) if self.loss_scale_factor else grads, variables)

    def _backend_apply_gradients(self, grads: list[Any], trainable_variables: Any) -> None:
        update_once(super()._backend_apply_gradients, grads, trainable_variables)

    def _backend_increment_gradient_accumulators(self, grads: list[Any], acc_grads: list[Any]) -> None:
        in_every_replica(super()._backend_increment_gradient_accumulators, grads, acc_grads)

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        return super()._clip_gradients(merge_rows(grads) if _clips(self) else grads)

    def _apply_weight_decay(self, variables: Iterable[Any]) -> None:
        for child, (members,) in self._by_child(self._stacks.decay(variables)):
            in_every_replica(child._apply_weight_decay, members)

    def _backend_update_step(self, grads: list[Any], trainable_variables: Any, learning_rate: Any) -> None:
        left = self._stacks.update(*self._clip_by_child(grads, trainable_variables))
        for child, (gradients, members) in self._by_child(*left):
            gradients, members = update_large(child, gradients, members)
            if members:
                in_every_replica(child._backend_update_step, gradients, members, child.learning_rate)

    def _clip_by_child(self, grads: Iterable[Any], variables: Iterable[Any]) -> tuple[list[Any], list[Any]]:
        clipped, in_turn = [], []
        for child, (gradients, members) in self._by_child(grads, variables):
            clipped += child._clip_gradients(merge_rows(gradients)) if _clips(child) else gradients
            in_turn += members
        return clipped, in_turn

    def _by_child(self, *columns: Iterable[Any]) -> Iterator[tuple[keras.optimizers.Optimizer, list[list[Any]]]]:
        """Splits columns, the last one of variables, by group; groups without a row are left out."""
        rows: dict[str, list[tuple[Any, ...]]] = {}
        for row in zip(*columns, strict=True):
            rows.setdefault(self._members.group_of(row[-1]).name, []).append(row)
        for group in self._members.groups:
            if group.name in rows:
                yield group.optimizer, [list(column) for column in zip(*rows[group.name], strict=True)]

    # -- State --------------------------------------------------------------------------------------------------------

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """As in Keras, for the children of all groups."""
        for group in self._members.groups:
            group.optimizer.exclude_from_weight_decay(var_list=var_list, var_names=var_names)

    @property
    def variables(self) -> list[keras.Variable]:
        """The parent's variables, then those of each child, then the steps at which the groups began."""
        groups = self._members.groups
        children = [v for group in groups for v in group.optimizer.variables if v is not group.unused_counter]
        return [*self._variables, *children, self._clocks.starts]

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        """A checkpoint holds the optimizer; a SavedModel, which cannot be trained on, goes without."""
        return {} if save_type == "savedmodel" else super()._trackable_children(save_type, **kwargs)

    def set_weights(self, weights: Iterable[Any]) -> None:
        """Sets all of `variables` from arrays in the same order."""
        self.load_own_variables({str(i): np.asarray(weight) for i, weight in enumerate(weights)})

    def save_own_variables(self, store: Any) -> None:
        """Saves all of `variables`; before the first step these are made, so that every file is complete."""
        self._build_all()
        super().save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        """Sets all of `variables` from a store, or none of them; from an empty store none.

        Raises:
            GroupError: If the store does not hold exactly this state. Keras itself would only warn.
        """
        if not len(store.keys()):
            return  # the file holds weights alone
        self._build_all()
        values = fitting_values(store, self.variables, self.group_names)
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)
        self._clocks.heed()

    def get_config(self) -> dict[str, Any]:
        """The config, from which the groups are found again by the places of their variables in the model."""
        variable_keys = self._members.variable_keys(lambda group, variable: group.optimizer._use_weight_decay(variable))
        groups = [group_config(group, variable_keys[group.name]) for group in self._members.groups]
        return {**{key: getattr(self, key) for key in _OWN_SETTINGS}, "groups": groups}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "GroupedOptimizer":
        """Makes the optimizer again; its variables are found when it is built on those of a model."""
        groups, variable_keys = read_groups(config["groups"], custom_objects)
        optimizer = cls(groups, **{key: value for key, value in config.items() if key != "groups"})
        optimizer._members.await_model(variable_keys)
        return optimizer


def _clips(optimizer: keras.optimizers.Optimizer) -> bool:
    return any(getattr(optimizer, setting) for setting in _CLIPPING)
