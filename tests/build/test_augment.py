"""`data.augment` becomes layers for the training rows; what does not fit them is answered with the recipe's line."""

import keras
import numpy as np
import pytest
import yaml

from finetune.build.augment import with_augmentation
from finetune.build.data import build_examples
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Returns a function that reads the examples of a recipe with these layers and images."""
    monkeypatch.chdir(tmp_path)
    keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]).save("net.keras")

    def read(*layers, high=255.0, low=0.0, dtype="float32", x=None, **train):
        x = np.random.default_rng(0).uniform(low, high, (9, 6, 6, 3)).astype(dtype) if x is None else x
        np.savez("rows.npz", x_train=x, y_train=np.zeros(9), x_test=x, y_test=np.zeros(9))
        group = {"name": "all", "rest": True, "optimizer": "sgd", "learning_rate": 0.1}
        written = {
            "model": {"keras_file": "net.keras"},
            "data": {"npz": "rows.npz", "augment": list(layers)},
            "groups": [group],
            "train": {"epochs": 1, "loss": "mse"} | train,
        }
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(written))
        return build_examples(load_recipe(tmp_path / "r.yaml"))

    return read


def test_training_rows_get_the_layers_and_the_run_folder_says_so(pictures):
    examples = pictures("RandomFlip", {"layer": "MixUp", "alpha": 0.4})
    assert examples.augmentation
    assert [type(layer).__name__ for layer in examples.augmentation.row_layers] == ["RandomFlip"]
    assert examples.augmentation.batch_layers[0].alpha == 0.4
    assert examples.source["augment"] == ["RandomFlip", {"layer": "MixUp", "alpha": 0.4}]


def test_without_layers_examples_stay_as_they_are(pictures):
    examples = pictures()
    assert examples.augmentation is None
    assert with_augmentation(load_recipe("r.yaml"), examples) is examples


@pytest.mark.parametrize(
    ("images", "values"),
    [({}, (0, 255)), ({"high": 1.0}, (0, 1)), ({"dtype": "uint8"}, (0, 255)), ({"low": -1.0, "high": 1.0}, (-1, 1))],
)
def test_layers_learn_what_black_and_white_are_from_the_images(pictures, images, values):
    examples = pictures({"layer": "RandomBrightness", "factor": 0.2}, **images)
    assert tuple(examples.augmentation.row_layers[0].value_range) == values
    assert tuple(examples.source["augment_value_range"]) == values


@pytest.mark.parametrize(
    ("layer", "options", "said"),
    [
        (
            {"layer": "RandomBrightness", "factor": 0.2},
            {"high": 1000.0},
            "r.yaml:3:5: `data.augment.0.layer: RandomBrightness` needs `value_range`, what black and white are",
        ),
        (
            {"layer": "RandomRotation", "factor": 0.1, "fill_mode": "sideways"},
            {},
            "r.yaml:3:5: `data.augment.0.layer: RandomRotation` does not accept its arguments. Keras says: Unknown `fill",
        ),
        (
            {"layer": "RandomCrop", "height": 4, "width": 4},
            {},
            "r.yaml:3:5: `data.augment.0.layer: RandomCrop` must keep the size of the rows, since rows to test on",
        ),
        (
            "RandomFlip",
            {"x": np.zeros((9, 4), "float32")},
            "r.yaml:3:3: `data.augment` has layers for images, whose rows have the shape (height, width, channels). The",
        ),
    ],
)
def test_what_does_not_fit_the_rows_has_the_line_of_the_recipe(pictures, layer, options, said):
    with pytest.raises(RecipeError) as caught:
        pictures(layer, **options)
    message = str(caught.value)
    assert message[message.index("r.yaml") :].startswith(said)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "Circle"])
def test_blended_targets_need_a_loss_that_takes_them(pictures, loss):
    with pytest.raises(RecipeError) as caught:
        pictures("CutMix", loss=loss)
    assert str(caught.value).endswith(
        "`data.augment.0` blends the targets of two rows, which have a place for each class then, and "
        f"`loss: {loss}` takes the number of a single class. Write `loss: categorical_crossentropy` or `auto` under "
        "`train`."
    )
