import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.optimizers.fused.stacked_variable import Buffers, StackedVariable


def stacked_pair():
    variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0, 4.0])]
    return StackedVariable(variables), variables


def values(variables):
    return [variable.numpy().tolist() for variable in variables]


def test_variables_are_read_as_one_with_an_axis_more_in_front():
    stacked, _ = stacked_pair()
    assert (stacked.shape, stacked.dtype) == ((2, 2), tf.float32)
    np.testing.assert_array_equal(stacked.read(), [[1, 2], [3, 4]])


def test_every_variable_gets_its_part_of_what_is_written_added_or_subtracted():
    stacked, variables = stacked_pair()
    stacked.assign_sub(tf.constant([[1.0, 1.0], [2.0, 2.0]]))
    assert values(variables) == [[0, 1], [1, 2]]
    stacked.assign_add(tf.constant([[5.0, 0.0], [0.0, 5.0]]))
    assert values(variables) == [[5, 1], [1, 7]]
    stacked.write(tf.constant([[8.0, 8.0], [9.0, 9.0]]))
    assert values(variables) == [[8, 8], [9, 9]]


def test_an_optimizer_of_keras_takes_it_for_one_variable_and_tells_two_apart():
    (first, variables), (second, others) = stacked_pair(), stacked_pair()
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build([first, second])
    optimizer.update_step(tf.ones((2, 2)), second, 1.0)
    assert values(variables) == [[1, 2], [3, 4]]
    assert values(others) == [[0, 1], [2, 3]]


def test_a_filled_buffer_takes_the_updates_and_gives_them_back_at_the_end():
    stacked, variables = stacked_pair()
    buffers = Buffers([stacked])
    with buffers.filled():
        stacked.assign_sub(tf.ones((2, 2)))
        assert values(variables) == [[1, 2], [3, 4]], "the variables have to wait"
        np.testing.assert_array_equal(stacked.read(), [[0, 1], [2, 3]])
        assert [(id(v), part.numpy().tolist()) for v, part in buffers.slices()] == [
            (id(variables[0]), [0, 1]),
            (id(variables[1]), [2, 3]),
        ]
    assert values(variables) == [[0, 1], [2, 3]]
    stacked.assign_sub(tf.ones((2, 2)))
    assert values(variables) == [[-1, 0], [1, 2]], "afterwards updates go to the variables"


def test_a_call_that_fails_leaves_the_variables_as_they_were():
    stacked, variables = stacked_pair()

    def fail():
        with Buffers([stacked]).filled():
            stacked.assign_sub(tf.ones((2, 2)))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert values(variables) == [[1, 2], [3, 4]]
    assert stacked.buffer is None


def test_buffers_are_given_up_with_all_their_variables():
    (first, variables), (second, others) = stacked_pair(), stacked_pair()
    buffers = Buffers([first, second])
    assert [id(v) for v in buffers.variables] == [id(v) for v in (*variables, *others)]
    fewer = buffers.without([variables[1]])
    assert [id(v) for v, _ in fewer.slices()] == [id(v) for v in fewer.variables] == [id(v) for v in others]
    np.testing.assert_array_equal(fewer.slices()[1][1], others[1].numpy())
    assert len(buffers.without([])) == 2


def test_one_variable_alone_can_be_stacked():
    variable = keras.Variable([1.0, 2.0], dtype="float64")
    stacked = StackedVariable([variable])
    assert (stacked.shape, stacked.dtype) == ((1, 2), tf.float64)
    stacked.assign_sub(tf.ones((1, 2), tf.float64))
    assert values([variable]) == [[0, 1]]


def test_a_tape_does_not_record_the_buffers():
    stacked, _ = stacked_pair()
    with Buffers([stacked]).filled(), tf.GradientTape() as tape:
        stacked.read()
    assert tape.watched_variables() == ()


def operations_of(function):
    traced = tf.function(function).get_concrete_function(tf.zeros((2, 2)))
    return [operation.type for operation in traced.graph.get_operations()]


def test_a_call_reads_and_writes_each_variable_once():
    stacked, _ = stacked_pair()
    buffers = Buffers([stacked])

    def call(_):
        with buffers.filled():
            pass

    types = operations_of(call)
    assert (types.count("ReadVariableOp"), types.count("AssignVariableOp")) == (3, 3)
