"""Parts of the rows that a recipe names, and the places of errors about them."""

import pytest

from finetune.build.named_parts import named_parts, parts_placed
from finetune.errors import DataError, PartError, RecipeError
from finetune.recipe.loader import load_recipe


@pytest.fixture
def of_table(recipe):
    data = "{table: t.csv, inputs: {x: [a, b], z: rest}, target: c, types: {a: number}, exclude: [d], sample_weight: w}"
    return load_recipe(recipe, overrides=[f"data={data}", "data.split={column: part}"])


def test_every_key_that_names_parts_is_listed_with_its_place(of_table):
    assert named_parts(of_table) == [
        (("data", "inputs", "x", 0), "a"),
        (("data", "inputs", "x", 1), "b"),
        (("data", "inputs", "z", 0), "rest"),
        (("data", "target", 0), "c"),
        (("data", "types", "a"), "a"),
        (("data", "exclude", 0), "d"),
        (("data", "sample_weight"), "w"),
        (("data", "split", "column"), "part"),
    ]


def test_an_error_about_a_part_gets_the_place_of_its_key(of_table):
    with pytest.raises(RecipeError, match=r"`data\.inputs\.x`: no `b`"), parts_placed(of_table):
        raise PartError("no `b`", "b")
    with pytest.raises(RecipeError, match=r"`data`: no `other`"), parts_placed(of_table):
        raise PartError("no `other`", "other")
    with pytest.raises(DataError, match=r"^damaged$"), parts_placed(of_table):
        raise DataError("damaged")
