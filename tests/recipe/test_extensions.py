import pytest
from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.recipe.extensions import EXTEND, Extension
from finetune.recipe.loader import dump_recipe, load_recipe


def test_an_extension_is_read_strictly():
    assert Extension(by="append", at_steps=8, total_steps=12).total_steps == 12
    with pytest.raises(ValidationError):
        Extension(by="append", at_steps=0, total_steps=12)
    with pytest.raises(ValidationError):
        Extension(by="stretch", at_steps=1, total_steps=12)  # is what a run does that has no extensions


def test_a_recipe_holds_how_it_is_extended_and_how_it_was(tiny_files):
    changes = ["train.extend=cooldown", "train.extensions=[{by: append, at_steps: 8, total_steps: 8}]"]
    recipe = load_recipe(tiny_files / "tiny.yaml", overrides=changes)
    assert (recipe.train.extend, recipe.train.extensions[0].by) == ("cooldown", "append")
    assert "by: append" in dump_recipe(recipe)
    assert load_recipe(tiny_files / "tiny.yaml").train.extend == EXTEND[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.extend=longer"], "`train.extend` is not a known value"),
        (["train.extend=append", "phases=gradual_unfreezing"], "`train.extend` is of a run without `phases`"),
    ],
)
def test_what_cannot_be_extended_so_is_refused_with_its_place(changes, message, tiny_files):
    with pytest.raises(RecipeError) as error:
        load_recipe(tiny_files / "tiny.yaml", overrides=changes)
    assert message in str(error.value)
    assert "--set train.extend" in str(error.value)
