"""A step that calls `apply` once for each group is noticed; unrolled steps and ordinary ones are not."""

import warnings

import keras
import pytest
import tensorflow as tf

from finetune.optimizers.grouped import GroupedOptimizer


def two_groups():
    body, head = tf.Variable([1.0]), tf.Variable([1.0])
    made = GroupedOptimizer({"body": (keras.optimizers.SGD(0.1), body), "head": (keras.optimizers.SGD(0.1), head)})
    made.build([body, head])
    return made, body, head


def traced(step):
    return tf.function(step, autograph=False)


def test_two_calls_for_different_variables_in_one_step_are_warned_of():
    optimizer, body, head = two_groups()

    @traced
    def step():
        optimizer.apply([tf.ones(1)], [body])
        optimizer.apply([tf.ones(1)], [head])

    with pytest.warns(UserWarning, match=r"`apply` was called more than once in a training step.*Call `apply` once"):
        step()
    assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 2


def test_a_call_with_none_for_the_other_group_is_a_part_of_a_step_too():
    optimizer, body, head = two_groups()

    @traced
    def step():
        optimizer.apply([tf.ones(1), None], [body, head])
        optimizer.apply([None, tf.ones(1)], [body, head])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    assert [str(item.message)[:28] for item in caught if "`apply`" in str(item.message)] == [
        "`apply` was called more than"
    ]


def test_one_call_unrolled_steps_and_separate_steps_are_not():
    optimizer, body, head = two_groups()

    @traced
    def unrolled():
        for _ in range(2):
            optimizer.apply([tf.ones(1), tf.ones(1)], [body, head])

    @traced
    def of_body():
        optimizer.apply([tf.ones(1)], [body])

    @traced
    def of_head():
        optimizer.apply([tf.ones(1)], [head])

    for step in (unrolled, of_body, of_head):
        step()
    optimizer.apply([tf.ones(1)], [body])
    optimizer.apply([tf.ones(1)], [head])


def test_two_calls_in_eager_steps_are_warned_of_once():
    optimizer, body, head = two_groups()

    def step():
        optimizer.apply([tf.ones(1)], [body])
        optimizer.apply([tf.ones(1)], [head])

    step()  # might be steps of different phases
    with pytest.warns(UserWarning, match="`apply` was called more than once in a training step"):
        step()
    step()  # a second warning would be an error


def test_eager_steps_of_phases_and_overlapping_calls_are_not_warned_of():
    optimizer, body, head = two_groups()
    both = [body, head]
    for trained in ([head], [head], [body], [body], both, [body], both, [head], [body], both, [body]):
        optimizer.apply([tf.ones(1)] * len(trained), trained)


@pytest.mark.parametrize("wrap", [keras.optimizers.LossScaleOptimizer, lambda optimizer: optimizer])
def test_two_calls_of_a_loss_scaling_optimizer_are_warned_of_and_the_branches_of_a_condition_are_not(wrap):
    inner, body, head = two_groups()
    optimizer = wrap(inner)
    optimizer.build([body, head])

    @traced
    def in_two_parts():
        optimizer.apply([body * 1.0], [body])
        optimizer.apply([head * 1.0], [head])

    @traced
    def either(condition):
        tf.cond(
            condition,
            lambda: optimizer.apply([body * 1.0], [body]),
            lambda: optimizer.apply([head * 1.0], [head]),
        )

    either(tf.constant(True))
    with pytest.warns(UserWarning, match="`apply` was called more than once in a training step"):
        in_two_parts()
