"""Outputs of networks by name."""

import keras
import pytest

from finetune.models.output_names import by_output_name, of_output, output_names


def network(outputs):
    x = keras.Input((3,))
    a, b = keras.layers.Dense(2, name="first")(x), keras.layers.Dense(1, name="second")(x)
    return keras.Model(x, outputs(a, b))


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (lambda a, b: a, ("",)),
        (lambda a, b: [a], ("",)),
        (lambda a, b: [b, a], ("second", "first")),
        (lambda a, b: {"z": a, "y": b}, ("y", "z")),
        (lambda a, b: {"z": a}, ("",)),
    ],
)
def test_outputs_have_the_names_by_which_keras_takes_losses(outputs, names):
    assert output_names(network(outputs)) == names


def test_a_sequential_model_has_an_only_output():
    assert output_names(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])) == ("",)


def test_what_belongs_to_each_output_is_found_by_name():
    model = network(lambda a, b: [b, a])
    assert by_output_name(model, [1, 2]) == {"second": 1, "first": 2}
    assert by_output_name(model, {"first": 3, "second": 4}) == {"first": 3, "second": 4}
    assert by_output_name(network(lambda a, b: a), [1, 2]) == {"": [1, 2]}


def test_an_output_is_the_only_one_or_that_of_its_name_and_never_another():
    assert of_output({"whatever": 1}, "") == 1
    assert of_output({"a": 1, "b": 2}, "b") == 2
    with pytest.raises(KeyError):
        of_output({"a": 1, "b": 2}, "c")
