"""Files of a source may be a pattern, a list, or those of each split; features say how they are read."""

import pytest
from pydantic import TypeAdapter, ValidationError

from finetune.recipe.data_files import FeatureSpec, Files, Tables
from finetune.recipe.loader import dump_recipe, load_recipe

FILES = TypeAdapter(Files)
TABLES = TypeAdapter(Tables)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a-*", {"": ("a-*",)}),
        (["a", "b"], {"": ("a", "b")}),
        ({"train": "a", "test": ["b", "c"]}, {"train": ("a",), "test": ("b", "c")}),
    ],
)
def test_files_are_read_however_they_are_written_and_written_as_they_were_read(recipe, written, read):
    assert FILES.validate_python(written) == read
    assert FILES.validate_python(FILES.validate_python(written)) == read
    loaded = load_recipe(recipe, overrides=[f"data={{tfrecord: {written}, inputs: a, target: b}}"])
    recipe.with_name("again.yaml").write_text(dump_recipe(loaded))
    assert load_recipe(recipe.with_name("again.yaml")) == loaded


def test_paths_of_every_split_are_absolute_in_a_run_folder(recipe):
    loaded = load_recipe(recipe, overrides=["data={tfrecord: {train: a, test: [b, c]}, inputs: a, target: b}"])
    text = dump_recipe(loaded, absolute_paths=True)
    assert all(f" {recipe.parent.absolute() / name}\n" in text for name in "abc")


def test_a_path_is_relative_to_the_file_that_wrote_it(recipe, tmp_path):
    (tmp_path / "below").mkdir()
    below = tmp_path / "below" / "base.yaml"
    text = recipe.read_text().replace("data: {npz:", "data: {tfrecord: ['x-*'], inputs: a, target: b} #")
    below.write_text(text)
    (tmp_path / "top.yaml").write_text("extends: below/base.yaml\nseed: 4\n")
    assert f"{tmp_path / 'below' / 'x-*'}" in dump_recipe(load_recipe(tmp_path / "top.yaml"), absolute_paths=True)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (3, "must be a file or a pattern such as `train-*`"),
        ([], "must be a file or a pattern such as `train-*`"),
        ({"train": "a", "tset": "b"}, "must name files for `train` and `test`, and may for `validation`"),
        ({"train": "a"}, "must name files for `train` and `test`"),
    ],
)
def test_other_files_are_refused(written, said):
    with pytest.raises(ValidationError) as caught:
        FILES.validate_python(written)
    assert caught.value.errors()[0]["ctx"]["predicate"].startswith(said)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "needs either `dtype` or `decode`"),
        ({"dtype": "int64", "decode": "jpeg"}, "needs either `dtype` or `decode`"),
        ({"decode": "jpeg", "shape": [3]}, "is an image: its shape is `size`"),
        ({"dtype": "int64", "size": [3, 3]}, "is for images: write `decode: image` beside it"),
        ({"dtype": "int64", "shape": [3], "length": 3}, "takes at most one of `shape`, `length`"),
        ({"dtype": "int65"}, 'is not a known value. Received: `"int65"`. Did you mean `int64`'),
    ],
)
def test_a_feature_is_a_value_or_an_image(keys, said):
    with pytest.raises(ValidationError) as caught:
        FeatureSpec.model_validate(keys)
    assert caught.value.errors()[0]["ctx"]["predicate"].startswith(said)


@pytest.mark.parametrize(
    ("written", "read"), [("a-*.csv", "a-*.csv"), (["a.csv"], ("a.csv",)), (["a", "b"], ("a", "b"))]
)
def test_tables_are_a_file_or_several_and_are_written_as_they_were_read(recipe, written, read):
    assert TABLES.validate_python(written) == read
    assert TABLES.validate_python(TABLES.validate_python(written)) == read
    loaded = load_recipe(recipe, overrides=[f"data={{table: {written}, test_table: {written}, inputs: a, target: b}}"])
    recipe.with_name("again.yaml").write_text(dump_recipe(loaded))
    assert load_recipe(recipe.with_name("again.yaml")) == loaded
    assert (loaded.data.table, loaded.data.test_table) == (read, read)


@pytest.mark.parametrize("wrong", [3, [], ["a", 3], {"train": "a"}, ""])
def test_what_is_no_file_and_no_list_of_files_is_no_table(wrong):
    with pytest.raises(ValidationError, match="fault"):
        TABLES.validate_python(wrong)
