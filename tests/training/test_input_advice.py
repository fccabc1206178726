"""Advice on pixels that were scaled before they reach a network that scales them itself."""

import keras
import pytest

from finetune.training.input_advice import advice_on_pixels


def network(scale, shape=(8, 8, 3)):
    inner = keras.Sequential([keras.Input(shape), keras.layers.Rescaling(scale, name="scaling")])
    return keras.Sequential([keras.Input(shape), inner, keras.layers.Flatten(), keras.layers.Dense(2)])


@pytest.mark.parametrize("scale", [1 / 255, 1 / 127.5, [1 / 58.4, 1 / 57.1, 1 / 57.4]])
def test_scaled_pixels_for_a_network_that_scales_them_are_told(scale):
    assert list(advice_on_pixels(network(scale), None, 1.0)) == [
        "`scaling` takes pixels from 0 to 255, since its preprocessing is inside the model, and the inputs reach 1 at "
        "most: they would be scaled twice. Remove `data.value_range`, or do not scale them"
    ]


def test_an_application_scales_its_pixels_without_a_layer_for_it():
    [advice] = advice_on_pixels(network(1.0), "MobileNetV2", 1.0)
    assert advice.startswith("`MobileNetV2` takes pixels from 0 to 255")


@pytest.mark.parametrize(("scale", "high"), [(1 / 255, 255.0), (1.0, 1.0), (70.0, 1.0)])
def test_other_networks_and_pixels_need_no_advice(scale, high):
    assert not list(advice_on_pixels(network(scale), None, high))


def test_a_scale_of_vectors_is_none_of_pixels():
    assert not list(advice_on_pixels(network(0.01, (4,)), None, 1.0))
