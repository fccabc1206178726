"""The image converter of a KerasHub preset becomes a part of the network."""

import keras
import numpy as np
import pytest

from finetune.models.preset_images import converter_sentence, image_converter
from finetune.models.presets import make_preset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]


def backbone(shape):
    import keras_hub

    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=shape,
    )


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A tiny backbone of open size with its converter, as KerasHub saves them."""
    import keras_hub

    network, folder = backbone((None, None, 3)), str(tmp_path_factory.mktemp("presets") / "resnet")
    scale, offset = [1 / 51, 1 / 52, 1 / 53], [-2.0, -1.0, 0.5]
    converter = keras_hub.layers.ResNetImageConverter(image_size=(24, 20), scale=scale, offset=offset)
    network.save_to_preset(folder)
    converter.save_to_preset(folder)
    return folder, network, converter


def test_pixels_are_scaled_as_the_converter_does(preset):
    folder, network, converter = preset
    model = make_preset(folder)
    assert model.input_shape == (None, 24, 20, 3)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 24, 20, 3)).astype("float32")
    expected = network(np.asarray(converter(pixels)))
    np.testing.assert_allclose(np.asarray(model(pixels)), np.asarray(expected), rtol=1e-4, atol=1e-4)
    assert converter_sentence(model) == (
        "preset: its image converter is inside the network, which takes pixels from 0 to 255, 24 x 20 x 3: they are "
        "multiplied with 0.01961, 0.01923, 0.01887, and -2, -1, 0.5 is added"
    )


def test_a_size_that_is_written_counts_more_than_that_of_the_converter(preset):
    assert make_preset(preset[0], size=[16, 16]).input_shape == (None, 16, 16, 3)


def test_a_preset_without_a_converter_takes_what_its_network_takes(tmp_path):
    backbone((16, 16, 3)).save_to_preset(str(tmp_path / "plain"))
    assert image_converter(str(tmp_path / "plain")) is None
    model = make_preset(str(tmp_path / "plain"))
    assert converter_sentence(model) == ""
    assert model.input_shape == (None, 16, 16, 3)


def test_the_scaled_network_is_saved_for_plain_keras(preset, tmp_path):
    model = make_preset(preset[0])
    model.save(tmp_path / "model.keras")
    pixels = np.full((1, 24, 20, 3), 100.0, "float32")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(pixels)), np.asarray(model(pixels)))
