"""Columns of a table that name files."""

import keras
import numpy as np
import pytest
from PIL import Image

from finetune.build.data import build_examples
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe


@pytest.fixture
def photos_table(recipe):
    lines = ["file,size,kind"]
    for n in range(10):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(recipe.parent / f"{n}.png")
        lines.append(f"{n}.png,{n},{'ab'[n % 2]}")
    (recipe.parent / "photos.csv").write_text("\n".join(lines))
    return recipe


def images_network():
    return keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])


def examples_of(recipe, network, *keys):
    overrides = ["data={table: photos.csv, inputs: file, target: kind}", *[f"data.{key}" for key in keys]]
    return build_examples(load_recipe(recipe, overrides=overrides), network)


def problem(recipe, network, *keys):
    with pytest.raises(RecipeError) as caught:
        examples_of(recipe, network, *keys)
    return str(caught.value)


def change(recipe, line, text):
    table = recipe.parent / "photos.csv"
    lines = table.read_text().splitlines()
    lines[line - 1] = text
    table.write_text("\n".join(lines))


def test_a_column_of_images_is_read(photos_table):
    examples = examples_of(photos_table, images_network())
    x, _ = examples.train.first(2)
    assert x.shape == (2, 4, 4, 3)


def test_an_empty_cell_has_the_line_of_the_table(photos_table):
    change(photos_table, 3, ",1,b")
    assert "Every row names its file. `file` is empty in 1 of 10 rows: `photos.csv:3`." in problem(
        photos_table, images_network()
    )


def test_a_file_that_does_not_exist_has_the_line_and_the_nearest_name(photos_table):
    Image.new("RGB", (4, 4)).save(photos_table.parent / "holiday.png")
    change(photos_table, 4, "holidy.png,2,a")
    said = problem(photos_table, images_network())
    assert "1 of 10 rows of `file` name none: `photos.csv:4`, the first `" in said
    assert "Did you mean `holiday.png`?" in said
    change(photos_table, 4, "pictures/2.png,2,a")
    assert "The folder `" in problem(photos_table, images_network())
    change(photos_table, 4, "pictures\\2.png,2,a")
    assert "`, with `/` between folders and not `\\`. Correct them" in problem(photos_table, images_network())


def test_a_file_that_is_no_image_has_the_line(photos_table):
    (photos_table.parent / "6.png").write_text("nonsense")
    said = problem(photos_table, images_network())
    assert "1 of 10 are not: `photos.csv:8` `" in said
    assert "6.png` (not an image)" in said


def test_a_file_that_is_no_sound_has_the_line(photos_table):
    network = keras.Sequential([keras.Input((100,)), keras.layers.Dense(2)])
    said = problem(photos_table, network, "types={file: audio}", "sample_rate=8000")
    assert "`photos.csv:2`: " in said


def test_images_among_several_columns_are_refused(photos_table):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    said = problem(photos_table, network, "inputs=[file, size]", "types={file: image}")
    assert (
        "A column of files is an input of its own, and the other columns another. `file` is `image`, and `inputs` "
        in said
    )
    assert "`inputs: {photo: file, numbers: [age, size]}`" in said
    assert "The network takes (4, 4, 3), and `inputs` names `file`, `size`" in problem(
        photos_table, images_network(), "inputs=[file, size]"
    )


def test_files_with_numbers_for_names_are_files_where_the_recipe_says_so(photos_table):
    table = photos_table.parent / "photos.csv"
    table.write_text(table.read_text().replace(".png", ""))
    for n in range(10):
        (photos_table.parent / f"{n}.png").rename(photos_table.parent / f"{n}")
    x, _ = examples_of(photos_table, images_network(), "types={file: image}").train.first(8)
    assert sorted(np.asarray(x)[:, 0, 0, 0].astype(int).tolist())[0] in range(10)
