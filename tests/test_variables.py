import keras
import tensorflow as tf

from finetune.variables import copies_of, tf_variable, variable_path


def test_the_variable_inside_a_keras_variable_is_the_one_that_holds_its_value():
    inner = tf.Variable([1.0])
    assert tf_variable(keras.Variable(inner, dtype="float32")) is inner


def test_what_is_not_a_keras_variable_is_returned_as_it_is():
    for other in (tf.Variable([1.0]), tf.constant([1.0]), None):
        assert tf_variable(other) is other


def test_a_keras_variable_has_a_path_and_a_tensorflow_variable_its_name():
    with keras.name_scope("body"):
        assert variable_path(keras.Variable([1.0], name="kernel")) == "body/kernel"
    assert variable_path(tf.Variable([1.0], name="kernel")) == "kernel:0"


def test_a_variable_of_a_single_device_has_one_copy():
    variable = keras.Variable([1.0])
    assert copies_of(variable) == (variable.value,)
