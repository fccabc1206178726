"""`data.augment` names layers of Keras and their arguments, and says which are near where it does not."""

import inspect

import keras
import pytest
from pydantic import ValidationError

from finetune.recipe.augment import _ELSEWHERE, AUGMENT_LAYERS, AugmentLayer
from finetune.recipe.data import DataSource

_GENERAL = {"self", "kwargs", "seed", "data_format", "name", "dtype", "noise_shape"}


def predicate(layer):
    with pytest.raises(ValidationError) as caught:
        DataSource.model_validate({"npz": "a.npz", "augment": [layer]})
    [error] = caught.value.errors()
    return error["ctx"]["predicate"]


def test_every_random_image_layer_of_keras_is_known_with_its_arguments():
    base = next(each for each in keras.layers.RandomFlip.__mro__ if each.__name__ == "BaseImagePreprocessingLayer")
    classes = {name: each for name, each in vars(keras.layers).items() if inspect.isclass(each)}
    of_images = {name for name, each in classes.items() if issubclass(each, base) and each is not base}
    assert of_images <= {*AUGMENT_LAYERS, *_ELSEWHERE}
    for name, known in AUGMENT_LAYERS.items():
        taken = {*inspect.signature(classes[name].__init__).parameters} - _GENERAL
        assert taken == {*known}, name


def test_arguments_without_a_default_are_asked_for():
    for name in AUGMENT_LAYERS:
        parameters = inspect.signature(getattr(keras.layers, name).__init__).parameters.values()
        needed = [each.name for each in parameters if each.default is each.empty and each.name not in _GENERAL]
        if needed:
            assert predicate({"layer": name}) == f"needs `{needed[0]}` beside `layer: {name}`"
        else:
            assert AugmentLayer.model_validate(name).layer == name


def test_layers_are_written_by_name_or_with_arguments_and_written_back_so():
    written = ["random_flip", {"layer": "RandomRotation", "factor": 0.1}]
    source = DataSource.model_validate({"npz": "a.npz", "augment": written})
    assert source.model_dump()["augment"] == ("RandomFlip", {"layer": "RandomRotation", "factor": 0.1})
    assert DataSource.model_validate(source.model_dump(by_alias=True)) == source
    assert DataSource.model_validate({"npz": "a.npz", "augment": "RandomFlip"}).augment == source.augment[:1]


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"layer": "RandomFlp"}, 'is not a known value. Received: `"RandomFlp"`. Did you mean `RandomFlip`'),
        ({"layer": "RandomFlip", "modes": "horizontal"}, "is not an argument of `RandomFlip`. Did you mean `mode`?"),
        ({"layer": "RandomFlip", "mode": "both"}, 'is not a known value. Received: `"both"`. Choose from `horizontal`'),
        ({"layer": "RandomRotation"}, "needs `factor` beside `layer: RandomRotation`"),
        ({"layer": "RandomFlip", "seed": 3}, "is the seed of the recipe: `seed` beside `data`. Remove it"),
        ({"layer": "Rescaling", "scale": 0.1}, "changes every row alike, and only training rows are augmented"),
        ({"layer": "Resizing"}, "changes the size of all images alike. Set `data.size` and `data.resize` instead"),
        (3, "must be the name of a layer, or a mapping with `layer`. Received: `3`"),
    ],
)
def test_a_layer_that_cannot_be_used_is_answered_with_what_can(layer, said):
    assert predicate(layer).startswith(said)
