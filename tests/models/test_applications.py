import importlib
import inspect

import keras
import numpy as np
import pytest

from finetune.errors import FinetuneError
from finetune.models.applications import make_application, module_of, preprocess

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

MODULES = sorted({module_of(f).__name__ for _, f in inspect.getmembers(keras.applications, inspect.isfunction)})
PIXELS = np.random.default_rng(0).uniform(0, 255, size=(2, 32, 32, 3)).astype("float32")


def problem(*arguments, **options):
    with pytest.raises(FinetuneError) as error:
        make_application(*arguments, **{"input_shape": (32, 32, 3), **options})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", MODULES)
def test_the_preprocessing_of_every_network_is_that_of_keras(name, tmp_path):
    module = importlib.import_module(name)
    pixels = keras.Input((32, 32, 3))
    model = keras.Model(pixels, keras.layers.Identity()(preprocess(pixels, module)))
    expected = module.preprocess_input(PIXELS.copy())
    np.testing.assert_allclose(model(PIXELS), expected, rtol=1e-4, atol=1e-4)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(PIXELS), model(PIXELS))


@pytest.mark.slow
def test_a_network_takes_raw_pixels_and_gives_what_keras_own_gives_on_prepared_ones():
    from keras.applications import mobilenet_v2

    ours = make_application("MobileNetV2", input_shape=(32, 32, 3), arguments={"alpha": 0.35})
    theirs = keras.applications.MobileNetV2(input_shape=(32, 32, 3), alpha=0.35, include_top=False, weights=None)
    theirs.set_weights(ours.get_weights())
    np.testing.assert_allclose(ours(PIXELS), theirs(mobilenet_v2.preprocess_input(PIXELS.copy())), rtol=1e-3, atol=1e-5)
    assert ours.name == "mobilenetv2"
    assert {layer.name for layer in theirs.layers[1:]} < {layer.name for layer in ours.layers}


@pytest.mark.slow
def test_a_network_keeps_its_own_head_when_asked():
    model = make_application("VGG16", input_shape=(32, 32, 3), include_top=True, arguments={"classes": 7})
    assert model.output_shape == (None, 7)


def test_unknown_arguments_are_refused_with_those_that_there_are():
    assert problem("MobileNetV2", arguments={"alhpa": 1.0}) == (
        "`MobileNetV2` accepts the arguments `alpha`, `classes`, `classifier_activation`, not `alhpa`. Did you mean `alpha`?"
    )
    assert problem("MobileNetV2", arguments={"weights": "x"}).endswith(
        "Write it next to `application`, not in `arguments`."
    )


def test_what_keras_refuses_is_reported_with_its_reason():
    assert problem("InceptionV3").startswith(
        "`InceptionV3` cannot be made with these arguments: Keras raised ValueError: "
    )


def test_weights_of_imagenet_without_a_network_are_one_short_error(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(
        "keras.src.applications.mobilenet_v2.BASE_WEIGHT_PATH", "http://127.0.0.1:1/keras-applications/mobilenet_v2/"
    )
    said = problem("MobileNetV2", imagenet=True, input_shape=(96, 96, 3), arguments={"alpha": 0.35})
    assert said.startswith("Keras downloads `weights: imagenet` once. It could not download those of `MobileNetV2`: ")
    assert said.endswith("or name a local weight file: `weights: path/to/file.weights.h5`.")
