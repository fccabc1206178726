import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.optimizers.clocks import Clocks
from finetune.optimizers.fused.stacked_variable import Buffers
from finetune.optimizers.fused.stacks import LARGEST_STACK, kind, make_stacks
from finetune.optimizers.group import Group
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.tf1_momentum import Momentum
from finetune.optimizers.tf1_rmsprop import TF1RMSprop

SGD, Adam, AdamW = keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.AdamW


def variables(number, shape=(3,)):
    return [tf.Variable(np.full(shape, 1.0, "f4"), name=f"v{i}") for i in range(number)]


def group(name, optimizer, members):
    return Group(name, optimizer, members, list(members))


def stacks_of(*groups, all_sizes=False):
    clocks = Clocks(groups, keras.Variable(0, dtype="int64"))
    return make_stacks(groups, clocks, None, all_sizes=all_sizes)


def test_variables_of_one_shape_and_kind_of_optimizer_share_a_stack_whatever_their_groups():
    kernels, biases = variables(4, (2, 2)), variables(4)
    stacks, alone = stacks_of(
        group("body", Adam(0.1), [*kernels[:2], *biases[:2]]), group("head", Adam(0.5), [*kernels[2:], *biases[2:]])
    )
    assert alone == {}
    assert [stack.stacked.variables for stack in stacks] == [kernels, biases]
    assert [[g.name for g in stack.groups] for stack in stacks] == [["body", "body", "head", "head"]] * 2


def test_optimizers_of_another_class_or_with_other_constants_are_another_kind():
    assert kind(Adam(0.1)) == kind(Adam(0.5))
    different = [Adam(0.1), AdamW(0.1), Adam(0.1, beta_1=0.5), Adam(0.1, epsilon=1e-3), Adam(0.1, amsgrad=True)]
    assert len({kind(optimizer) for optimizer in different}) == 5
    stacks, alone = stacks_of(group("a", SGD(0.1), variables(2)), group("b", SGD(0.1, momentum=0.5), variables(2)))
    assert (len(stacks), alone) == (2, {})


def test_a_stack_has_no_more_elements_than_the_cache_holds_and_all_are_of_like_length():
    half, third = variables(5, (LARGEST_STACK // 2,)), variables(4, (LARGEST_STACK // 3,))
    stacks, _ = stacks_of(group("all", Adam(0.1), [*half, *third]))
    assert [len(stack.groups) for stack in stacks] == [2, 2, 1, 2, 2]


@pytest.mark.parametrize("all_sizes", [False, True])
def test_a_large_variable_and_one_of_its_own_shape_are_stacked_only_on_demand(all_sizes):
    large, single = variables(2, (LARGEST_STACK // 2 + 1,)), variables(1, (7,))
    stacks, alone = stacks_of(group("all", Adam(0.1), [*large, *single]), all_sizes=all_sizes)
    assert [len(stack.groups) for stack in stacks] == ([1, 1, 1] if all_sizes else [])
    assert sorted(alone) == ([] if all_sizes else ["v0:0", "v1:0"])


def test_a_stack_updates_each_variable_at_the_rate_and_step_of_its_group():
    members = variables(2)
    groups = [group("slow", SGD(0.25), members[:1]), group("fast", SGD(0.5), members[1:])]
    (stack,), _ = stacks_of(*groups)
    stack.update([tf.ones(3), tf.ones(3)])
    assert [v.numpy().tolist() for v in members] == [[0.75] * 3, [0.5] * 3]


def test_a_stack_decays_each_variable_as_its_group_says():
    members = variables(2)
    groups = [group("a", SGD(0.5, weight_decay=0.5), members[:1]), group("b", SGD(0.5, weight_decay=0.25), members[1:])]
    (stack,), _ = stacks_of(*groups)
    assert stack.can_decay()
    stack.decay()
    assert [float(v[0]) for v in members] == [0.75, 0.875]
    groups[1].optimizer.exclude_from_weight_decay(var_list=members[1:])
    assert not stack.can_decay()


def test_a_stack_is_updated_as_a_whole_only_with_dense_gradients_and_the_constants_it_was_made_with():
    members = variables(2, (2, 2))
    (stack,), _ = stacks_of(group("all", Adam(0.1), members))
    dense = [tf.ones((2, 2))] * 2
    assert stack.can_update(dense)
    assert not stack.can_update([dense[0], None])
    assert not stack.can_update([dense[0], tf.IndexedSlices(tf.ones((1, 2)), tf.constant([0]))])
    stack.groups[0].optimizer.beta_2 = 0.5
    assert not stack.can_update(dense)


def test_the_slots_of_a_variable_are_its_entries_in_those_of_the_stack():
    members = variables(3)
    optimizer = GroupedOptimizer([(Adam(0.1), members)])
    optimizer.apply([tf.fill(3, float(i)) for i in range(3)], members)
    child = optimizer.group_optimizers["group_0"]
    assert [float(m[0]) for m in child._momentums] == pytest.approx([0, 0.1, 0.2])
    assert [float(v[0]) for v in child._velocities] == pytest.approx([0, 0.001, 0.004])


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (SGD, {"momentum": 0.5}),
        (SGD, {"nesterov": True}),
        (Momentum, {"momentum": 0.5}),
        (Momentum, {"nesterov": True}),
        (TF1RMSprop, {"centered": True}),
        (TF1RMSprop, {"momentum": 0.5}),
        *((make, {name: 0.5}) for make in (Adam, AdamW) for name in ("beta_1", "beta_2", "epsilon")),
        *((make, {"amsgrad": True}) for make in (Adam, AdamW)),
        *((keras.optimizers.Adamax, {name: 0.5}) for name in ("beta_1", "beta_2", "epsilon")),
        *((keras.optimizers.Adagrad, {name: 0.5}) for name in ("initial_accumulator_value", "epsilon")),
        *((keras.optimizers.RMSprop, {name: 0.5}) for name in ("rho", "momentum", "epsilon")),
        (keras.optimizers.RMSprop, {"centered": True}),
        *((keras.optimizers.Lion, {name: 0.5}) for name in ("beta_1", "beta_2")),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else ",".join(value),
)
def test_optimizers_that_differ_in_any_constant_of_their_rule_are_of_another_kind(make, other):
    assert kind(make(0.1)) == kind(make(0.2))
    assert kind(make(0.1, **other)) != kind(make(0.1))
    members = variables(2, (16,))
    stacks, _ = stacks_of(group("a", make(0.1, **other), members))
    assert all(getattr(stacks[0]._rule, name) == value for name, value in other.items())


def test_accumulated_gradients_count_as_the_steps_that_keras_counts():
    trained = []
    for ours in (True, False):
        members = variables(2)
        settings = {"gradient_accumulation_steps": 2}
        optimizer = GroupedOptimizer([(Adam(0.1), members)], **settings) if ours else Adam(0.1, **settings)
        optimizer.build(members)
        for step in range(6):
            optimizer.apply([tf.fill(3, 1.0 + step)] * 2, members)
        trained.append([v.numpy() for v in members])
    np.testing.assert_allclose(trained[0], trained[1], rtol=1e-6)


def test_weights_in_a_buffer_get_the_bits_that_they_get_in_their_variables():
    trained = []
    for buffered in (True, False):
        members = variables(2)
        (stack,), _ = stacks_of(group("all", Adam(0.1), members))
        if buffered:
            with Buffers([stack.stacked]).filled():
                stack.update([tf.ones(3), tf.fill(3, 2.0)])
        else:
            stack.update([tf.ones(3), tf.fill(3, 2.0)])
        trained.append([v.numpy() for v in members])
    assert float(trained[0][0][0]) == pytest.approx(0.9, abs=1e-5)
    np.testing.assert_array_equal(trained[0], trained[1])
