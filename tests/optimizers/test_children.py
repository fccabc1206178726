import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.keras_private import untracked
from finetune.optimizers.children import check_rates_writable, replace_variables, track_all
from finetune.optimizers.group import Group
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


def test_a_child_has_the_name_of_its_group_counts_with_the_parent_and_sums_over_no_replicas():
    v = tf.Variable([1.0])
    optimizer = GroupedOptimizer({"body": (Adam(0.1), v)})
    optimizer.apply([tf.ones(1)], [v])
    child = optimizer.group_optimizers["body"]
    assert (child.name, int(child.iterations)) == ("body", 1)
    assert child._all_reduce_sum_gradients(["gradient"]) == ["gradient"]


def test_a_schedule_given_to_a_child_afterwards_is_refused_with_the_name_of_its_group():
    groups = [Group(name, SGD(0.1), [], []) for name in ("stem", "body")]
    check_rates_writable(groups)
    groups[1].optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    with pytest.raises(GroupError, match=r"Received another schedule afterwards for `body`\. Write a number"):
        check_rates_writable(groups)


def test_what_a_child_keeps_in_plain_attributes_is_added_to_its_variables_once():
    child = keras.optimizers.Nadam(0.1)
    with untracked():
        child.build([tf.Variable([1.0])])
    assert not any(v is child._u_product for v in child.variables)
    for _ in range(2):
        track_all(child)
        assert sum(v is child._u_product for v in child.variables) == 1
        assert len({id(v) for v in child.variables}) == len(child.variables)


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: Adam(rate, beta_1=0.5),
        lambda rate: keras.optimizers.Nadam(rate),
        lambda rate: keras.optimizers.Adagrad(rate, initial_accumulator_value=0.5),
        lambda rate: SGD(rate, momentum=0.9),
    ],
    ids=["adam", "nadam", "adagrad", "momentum"],
)
@pytest.mark.parametrize(
    "rate", [0.3, keras.optimizers.schedules.ExponentialDecay(0.3, 100, 0.5)], ids=["0.3", "decay"]
)
def test_a_child_whose_slots_are_reset_keeps_what_a_new_one_would_and_its_own_rate(make, rate):
    v = tf.Variable([1.0, 2.0])
    optimizer = GroupedOptimizer({"body": (make(rate), v)}, fused="off")
    for step in range(3):
        optimizer.apply([tf.fill(2, 1.0 + step)], [v])
    child, new = optimizer.group_optimizers["body"], make(rate)
    before = float(child.learning_rate)
    new.build([v])
    slots, fresh = ([w.numpy() for w in kept(each)] for each in (child, new))
    assert any((old != first).any() for old, first in zip(slots, fresh, strict=True))
    optimizer.restart(["body"])
    for slot, first in zip(kept(child), fresh, strict=True):
        np.testing.assert_array_equal(slot.numpy(), first)
    assert float(child.learning_rate) == before
    assert int(optimizer.iterations) == 3


def kept(child):
    """The variables of a child but for its rate and its step."""
    return [v for v in child.variables if v.path.rpartition("/")[2] not in ("iteration", "learning_rate")]


def test_what_is_kept_for_a_variable_goes_on_for_the_one_in_its_place():
    def trained(replace):
        values = [tf.Variable([1.0]), tf.Variable([2.0])]
        optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_list=values[:1])
        optimizer.build(values)
        optimizer.apply([tf.fill(1, 1.0), tf.fill(1, 3.0)], values)
        if replace:
            other = tf.Variable(values[0])
            replace_variables(optimizer, {optimizer._var_key(values[0]): other}, optimizer._var_key)
            values[0] = other
        optimizer.apply([tf.fill(1, -2.0), tf.fill(1, 1.0)], values)
        return [float(v[0]) for v in values]

    assert trained(replace=True) == trained(replace=False)
