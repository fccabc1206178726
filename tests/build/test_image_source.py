"""Folders of images as examples: split, limited, and shaped for the input of the network."""

import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from finetune.build.data import build_examples
from finetune.data.leaks import leaked_rows
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe


@pytest.fixture
def pictures(recipe):
    """Two classes of 10 images, and a network for images of any size."""
    for name, value in {"dark": 10, "light": 240}.items():
        (recipe.parent / "pictures" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (9, 6), (value, value, number)).save(recipe.parent / "pictures" / name / f"{number}.png")
    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Dense(2, name="head")(keras.layers.GlobalAveragePooling2D()(inputs))
    keras.Model(inputs, outputs).save(recipe.parent / "any_size.keras")
    return "data={images: pictures/, size: [4, 6]}", "model={keras_file: any_size.keras}"


def images_of(recipe, pictures, *overrides):
    return build_examples(load_recipe(recipe, overrides=[*pictures, *overrides]), NETWORK)


NETWORK = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])


def test_images_are_split_by_class_and_have_the_size_of_the_recipe(recipe, pictures):
    examples = images_of(recipe, pictures)
    assert np.bincount(examples.y_train).tolist() == [8, 8]
    assert np.bincount(examples.y_test).tolist() == [2, 2]
    x, y = examples.train.first(16)
    assert x.shape == (16, 4, 6, 3)
    assert ((x[:, 2, 3, 0] > 200).numpy() == y.numpy()).all()


def test_copies_of_files_are_found_and_those_that_are_kept_in_memory_too(recipe, pictures):
    folder = recipe.parent / "pictures"
    for number in range(10):
        shutil.copy(folder / "dark" / f"{number}.png", folder / "light" / f"copy{number}.png")
    leaked = leaked_rows(images_of(recipe, pictures))
    assert leaked["test"]
    assert leaked_rows(images_of(recipe, pictures, "data.keep=memory")) == leaked


def test_images_have_by_default_the_size_that_the_network_takes(recipe, pictures):
    loaded = load_recipe(recipe, overrides=[*pictures, "data.size=null"])
    network = keras.Sequential([keras.Input((5, 7, 1)), keras.layers.Flatten()])
    assert build_examples(loaded, network).train.first(1)[0].shape == (1, 5, 7, 1)


def test_a_limit_keeps_the_shares_of_the_classes(recipe, pictures):
    examples = images_of(recipe, pictures, "data.limit=10")
    assert np.bincount([*examples.y_train, *examples.y_test]).tolist() == [5, 5]


def test_names_of_classes_come_in_the_order_of_the_recipe_or_of_a_file(recipe, pictures):
    assert images_of(recipe, pictures, "data.class_names=[light, dark]").class_names == ("light", "dark")
    (recipe.parent / "names.txt").write_text("light\n\ndark\nother\n")
    assert images_of(recipe, pictures, "data.class_names_file=names.txt").class_names == ("light", "dark", "other")


def test_the_split_by_hash_follows_the_names_of_the_files(recipe, pictures):
    before = images_of(recipe, pictures, "data.split={by: hash, test: 0.3}")
    (recipe.parent / "pictures/dark/0.png").rename(recipe.parent / "pictures/dark/other.png")
    after = images_of(recipe, pictures, "data.split={by: hash, test: 0.3}")
    assert abs(len(before.test) - len(after.test)) <= 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.images=picture", "`data.images`: Images lie in a folder. `"),
        ("data.class_names=[light, drak]", "`data.images`: Every row must be of a class in `class_names`"),
        ("data.size=null", "`data.images`: Images must all have the same size, and the network takes any. Set"),
        ("data.class_weight={darc: 2.0}", "`data.class_weight`: `class_weight` names classes: `dark`, `light`"),
    ],
)
def test_what_is_wrong_with_images_is_said_with_its_place(recipe, pictures, override, said):
    with pytest.raises(RecipeError) as caught:
        images_of(recipe, pictures, override)
    assert said in str(caught.value)


def test_a_network_for_something_else_is_refused(recipe, pictures):
    loaded = load_recipe(recipe, overrides=pictures)
    with pytest.raises(RecipeError, match=r"The network takes \(6,\)\. Use a network"):
        build_examples(loaded, keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)]))
