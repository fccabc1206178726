"""`limit`, `class_names` and `split` mean the same for every source."""

import keras
import pytest

from finetune.build.source_keys import class_names_of, limited_rows, network_inputs, split_as_asked
from finetune.errors import DataError
from finetune.recipe.loader import load_recipe


@pytest.fixture
def images(recipe):
    """Loads a recipe whose data are a folder of images, with some keys."""
    return lambda *keys: load_recipe(recipe, overrides=["data={images: photos}", *[f"data.{key}" for key in keys]])


def test_a_limit_takes_rows_evenly_and_never_more_than_there_are(images):
    assert limited_rows(images("limit=3"), 5).tolist() == [0, 2, 4]
    assert limited_rows(images("limit=9"), 5).tolist() == [0, 1, 2, 3, 4]
    assert limited_rows(images(), 5).tolist() == [0, 1, 2, 3, 4]


def test_a_file_of_class_names_must_exist(images, recipe):
    (recipe.parent / "names.txt").write_text("b\n\n a \n")
    assert class_names_of(images("class_names_file=names.txt")) == ("b", "a")
    with pytest.raises(DataError, match=r"The file of class names `.*nmes\.txt` does not exist"):
        class_names_of(images("class_names_file=nmes.txt"))


def test_a_fifth_of_the_rows_test_where_the_recipe_does_not_say(images):
    indices = split_as_asked(images(), 10, None, None)
    assert {name: len(rows) for name, rows in indices.items()} == {"train": 8, "test": 2}


def test_classes_keep_their_shares_without_being_asked(images):
    indices = split_as_asked(images("split={test: 0.5}"), 8, [0, 0, 0, 0, 1, 1, 1, 1], None)
    assert [sum(row < 4 for row in rows) for rows in indices.values()] == [2, 2]


def test_an_only_input_has_no_name_and_several_have_their_own():
    left, right = keras.Input((1,), name="left"), keras.Input((2,), name="right")
    assert list(network_inputs(keras.Model([left, right], left * 1))) == ["left", "right"]
    assert list(network_inputs(keras.Model(left, left * 1))) == [""]
    assert network_inputs(None) == {"": None}
