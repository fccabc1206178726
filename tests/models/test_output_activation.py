import keras
import pytest
from keras import layers, ops

from finetune.models.output_activation import output_activations


def functional(*steps):
    inputs = x = keras.Input((4,))
    for step in steps:
        x = step(x)
    return keras.Model(inputs, x)


class Halved(layers.Layer):
    def call(self, x):
        return x / 2


@pytest.mark.parametrize(
    ("steps", "activation"),
    [
        ([layers.Dense(3)], "linear"),
        ([layers.Dense(3, "softmax")], "softmax"),
        ([layers.Dense(1, "sigmoid")], "sigmoid"),
        ([layers.Dense(3), layers.Softmax()], "softmax"),
        ([layers.Dense(3), layers.Activation("sigmoid")], "sigmoid"),
        ([layers.Dense(3), ops.softmax], "softmax"),
        ([layers.Dense(3), ops.sigmoid], "sigmoid"),
        ([layers.Dense(3, "softmax"), layers.Dropout(0.1), layers.Reshape((3, 1))], "softmax"),
        ([layers.Dense(3), lambda x: ops.squeeze(ops.expand_dims(x, 1), 1)], "linear"),
        ([layers.Dense(3, "softmax"), lambda x: x[:, :2]], "softmax"),
        ([layers.Dense(3, "relu")], "relu"),
        ([layers.Dense(3, "softmax"), lambda x: ops.cast(x, "float16")], "softmax"),
        ([layers.Reshape((4, 1)), layers.TimeDistributed(layers.Dense(3, "softmax"))], "softmax"),
        ([layers.SpectralNormalization(layers.Dense(3))], "linear"),
        ([keras.Sequential([layers.Dense(3, "softmax")])], "softmax"),
        ([functional(layers.Dense(3, "relu"), layers.Dense(2))], "linear"),
        ([functional(keras.Sequential([layers.Dense(2, "sigmoid")]))], "sigmoid"),
    ],
)
def test_the_activation_is_found_wherever_it_is_applied(steps, activation):
    assert output_activations(functional(*steps)) == [activation]
    assert output_activations(keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh")])) == ["tanh"]


@pytest.mark.parametrize(
    "steps",
    [
        [layers.Dense(3), layers.Lambda(lambda x: x * 2)],
        [layers.Dense(3, "softmax"), lambda x: x * 2],
        [layers.Dense(3, "softmax"), Halved()],
        [layers.Dense(3, lambda x: x)],
    ],
)
def test_what_the_graph_does_not_show_is_not_guessed(steps):
    assert output_activations(functional(*steps)) == [None]


def test_each_output_has_its_own():
    inputs = keras.Input((4,))
    outputs = {"a": layers.Dense(2, "softmax")(inputs), "b": layers.Dense(2)(inputs)}
    assert output_activations(keras.Model(inputs, outputs)) == ["softmax", "linear"]


def test_a_nested_model_with_several_outputs_is_read_at_the_right_one():
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, [layers.Dense(2, "softmax")(inputs), layers.Dense(2)(inputs)])
    assert output_activations(keras.Model(inputs, inner(inputs)[1])) == ["linear"]


def test_a_subclassed_model_shows_nothing():
    class Own(keras.Model):
        def call(self, x):
            return x

    assert output_activations(Own()) == [None]
