import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.keras_private import held_rate, step_counter
from finetune.optimizers.group import Group
from finetune.optimizers.group_optimizers import (
    adopt,
    check_rates_writable,
    made_outside_of_trace,
    replace_variables,
    reset_slots,
    track_all,
)
from finetune.optimizers.group_rates import ScaledSchedule
from finetune.optimizers.grouped import GroupedOptimizer

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam


def make_model(*names, units=2):
    """Layers of equal shape, so that only their names and places tell their variables apart."""
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(units, name=name) for name in names)])


def test_fit_traces_the_step_once():
    traced = []

    class Counting(keras.Model):
        def train_step(self, *arguments):
            traced.append(arguments)
            return super().train_step(*arguments)

    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(2)
    model = Counting(inputs, keras.layers.Dense(2)(hidden(inputs)))
    head = model.layers[-1]
    optimizer = GroupedOptimizer([(keras.optimizers.Adam(1e-3), hidden), (keras.optimizers.SGD(1e-2), head)])
    model.compile(optimizer, "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    assert len(traced) == 1
    assert int(optimizer.iterations) == 1


def test_the_variables_are_each_there_once():
    model = make_model(*"abc")
    optimizer = three_groups(model, use_ema=True, gradient_accumulation_steps=2)
    optimizer.build(model.trainable_variables)
    assert len({id(v) for v in optimizer.variables}) == len(optimizer.variables) == 1 + 1 + 2 * 6 + 2 + 2 * 6 + 1
    assert sum(v is optimizer._iterations for v in optimizer.variables) == 1


def three_groups(model, **settings):
    rates = [keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), 0.2, 0.3]
    return GroupedOptimizer(
        {layer.name: (Adam(rate), layer) for rate, layer in zip(rates, model.layers, strict=True)}, **settings
    )


def adopted(child):
    group, parent = Group("body", child, []), SGD(0.1)
    return group, parent, adopt(group, parent)


def test_an_adopted_child_has_its_groups_name_and_counts_with_the_parent():
    group, parent, _ = adopted(Adam(0.25))
    assert group.optimizer.name == "body"
    assert step_counter(group.optimizer) is step_counter(parent)
    assert group.unused_counter is group.optimizer.variables[0]
    assert group.initial_rate == 0.25


def test_an_adopted_child_does_not_sum_over_replicas_what_the_parent_has_summed():
    pairs = [(tf.ones(1), tf.Variable([1.0]))]
    group, _, _ = adopted(Adam(0.25))
    assert group.optimizer._all_reduce_sum_gradients(iter(pairs)) == pairs


def test_a_rate_that_is_a_number_keeps_its_variable_and_a_schedule_gets_a_multiplier_of_the_parent():
    plain, parent, rate = adopted(Adam(0.25))
    assert rate.rate_variable is held_rate(plain.optimizer)
    assert len(parent.variables) == 2
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)
    scheduled, parent, rate = adopted(Adam(schedule))
    assert isinstance(held_rate(scheduled.optimizer), ScaledSchedule)
    assert scheduled.initial_rate is schedule
    assert parent.variables[-1] is rate.rate_variable
    assert parent.variables[-1].name == "body_multiplier"
    step_counter(parent).assign(2)
    rate.rate_variable.assign(4.0)
    assert float(scheduled.optimizer.learning_rate) == pytest.approx(0.5 * 0.5 * 4)


def test_a_schedule_that_a_child_got_after_its_adoption_is_an_error_that_names_the_group():
    group, _, _ = adopted(Adam(0.25))
    check_rates_writable([group])
    group.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)
    with pytest.raises(GroupError) as error:
        check_rates_writable([Group("head", SGD(0.1), []), group])
    assert str(error.value) == (
        "A group's schedule is passed to its optimizer before the `GroupedOptimizer` is made, so that the rate can be "
        "scaled. Received another schedule afterwards for `body`. Write a number, or make a new `GroupedOptimizer`."
    )


def test_what_a_rule_keeps_in_a_plain_attribute_is_among_its_variables_once():
    child, variable = keras.optimizers.Nadam(0.1), tf.Variable([1.0])
    with made_outside_of_trace():
        GroupedOptimizer({"all": (child, variable)}).build([variable])
    product = child._u_product
    assert sum(v is product for v in child.variables) == 1
    track_all(child)
    assert sum(v is product for v in child.variables) == 1


def test_the_slots_of_a_group_are_reset_to_those_of_a_new_optimizer_and_its_rate_is_not():
    variable = tf.Variable([1.0, 2.0])
    child = keras.optimizers.Adagrad(0.5, initial_accumulator_value=0.25)
    optimizer = GroupedOptimizer({"all": (child, variable)}, fused="off")
    optimizer.apply([tf.ones(2)], [variable])
    child.learning_rate = 0.125
    (group,) = optimizer._members.groups
    assert child._accumulators[0].numpy().tolist() == [1.25, 1.25]
    reset_slots(group)
    assert child._accumulators[0].numpy().tolist() == [0.25, 0.25]
    assert float(child.learning_rate) == 0.125
    assert int(optimizer.iterations) == 1


def test_slots_and_exclusions_go_over_to_the_variables_that_replace_others():
    old, new, kept = tf.Variable([0.0]), tf.Variable([0.0]), tf.Variable([0.0])
    child = SGD(1.0, momentum=0.5, weight_decay=0.1)
    child.exclude_from_weight_decay(var_list=[old])
    child.build([old, kept])
    child.update_step(tf.ones(1), old, 1.0)
    key = child._var_key
    replace_variables(child, {key(old): new, "a variable of another optimizer": tf.Variable([9.0])}, key)
    child.update_step(tf.zeros(1), new, 1.0)
    assert float(new[0]) == -0.5, "half of the step before, which the slot holds"
    assert [child._use_weight_decay(v) for v in (new, kept)] == [False, True]
    assert [v is w for v, w in zip(child._trainable_variables, (new, kept), strict=True)] == [True, True]


def test_a_child_leaves_the_sum_over_replicas_to_its_parent_and_a_schedule_starts_unscaled():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.25, 2, 0.5)
    optimizer = GroupedOptimizer({"body": (Adam(schedule), tf.Variable([1.0]))})
    child = optimizer.group_optimizers["body"]
    assert child._all_reduce_sum_gradients(["gradient"]) == ["gradient"]
    assert float(child.learning_rate) == 0.25


@pytest.mark.parametrize("parent_settings", [{}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulating"])
@pytest.mark.parametrize(
    "rate", [0.5, keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)], ids=["number", "schedule"]
)
def test_slots_are_reset_whatever_the_rate_is_and_whether_gradients_are_accumulated(rate, parent_settings):
    variable = tf.Variable([1.0, 2.0])
    child = keras.optimizers.Adagrad(rate, initial_accumulator_value=0.25)
    optimizer = GroupedOptimizer({"all": (child, variable)}, fused="off", **parent_settings)
    for _ in range(2):
        optimizer.apply([tf.ones(2)], [variable])
    assert child._accumulators[0].numpy().tolist() == ([1.25, 1.25] if parent_settings else [2.25, 2.25])
    reset_slots(optimizer._members.groups[0])
    assert child._accumulators[0].numpy().tolist() == [0.25, 0.25]


def test_the_multiplier_of_a_schedule_is_a_single_precision_number_whatever_the_models_type_is():
    before = keras.config.floatx()
    keras.config.set_floatx("float16")
    try:
        _, _, rate = adopted(Adam(keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)))
    finally:
        keras.config.set_floatx(before)
    assert rate.rate_variable.dtype == "float32"
