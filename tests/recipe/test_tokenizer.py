"""The `tokenizer` of a recipe: its rules, with the place of what breaks them, without TensorFlow."""

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import dump_recipe, load_recipe
from finetune.recipe.named_files import missing_files

TABLE = "data={table: a.csv, inputs: text, target: kind}"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{file: vocab.txt}", "`data.tokenizer.length` is missing. Add it under `data.tokenizer`"),
        ("tokenizer.json", "has keys of its own: write `tokenizer: {file: tokenizer.json, length: 64}`"),
        ("{file: a.json, length: 8, padding: bucket}", "Did you mean `buckets`?"),
        ("{file: a.json, length: 0}", "must be 1 or more"),
        ("{file: a.json, length: 8, pad_tokn: x}", "Did you mean `pad_token`?"),
        ("{length: 8}", "`data.tokenizer.file` is missing. Only a KerasHub preset"),
    ],
)
def test_what_breaks_a_rule_is_answered(recipe, written, said):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides=[TABLE, f"data.tokenizer={written}"])
    assert said in str(caught.value)


def test_a_padding_token_is_for_the_tokenizer_of_a_file(recipe):
    keys = [TABLE, "model={preset: bert_tiny_en_uncased, head: {classes: 2}}", "data.tokenizer={pad_token: x}"]
    with pytest.raises(RecipeError, match=r"`data\.tokenizer\.pad_token` is for a `file`: a preset knows its own"):
        load_recipe(recipe, overrides=keys)


def test_the_cache_need_not_exist_and_is_no_file(recipe):
    (recipe.parent / "a.json").write_text("{}")
    (recipe.parent / "file").write_text("")
    written = "data.tokenizer={file: a.json, length: 8, cache: "
    loaded = load_recipe(recipe, overrides=[TABLE, f"{written}{recipe.parent.absolute() / 'new' / 'folder'}}}"])
    assert "tokenizer.cache" not in " ".join(missing_files(loaded))
    assert f"cache: {recipe.parent.absolute() / 'new' / 'folder'}" in dump_recipe(loaded, absolute_paths=True)
    loaded = load_recipe(recipe, overrides=[TABLE, f"{written}{recipe.parent / 'file'}}}"])
    assert "`data.tokenizer.cache` names a folder" in " ".join(missing_files(loaded))


def test_a_folder_given_as_tokenizer_is_answered_with_what_is_in_it(recipe):
    (recipe.parent / "model").mkdir()
    (recipe.parent / "model" / "tokenizer.json").write_text("{}")
    loaded = load_recipe(recipe, overrides=[TABLE, f"data.tokenizer={{file: {recipe.parent / 'model'}, length: 8}}"])
    said = " ".join(missing_files(loaded))
    assert "`data.tokenizer.file` names a file" in said
    assert "is a folder that holds `tokenizer.json`" in said
