import pytest

from finetune.commands.check import check
from finetune.errors import RecipeError


def test_a_good_recipe_passes_without_a_word(recipe, capsys):
    assert check(recipe) is None
    assert capsys.readouterr() == ("", "")


def test_faults_are_reported_with_their_place_and_overrides_count(recipe):
    with pytest.raises(RecipeError, match=r"^--set train\.epochs: `train\.epochs` must be a whole number"):
        check(recipe, overrides=["train.epochs=many"])
    recipe.write_text(recipe.read_text().replace("seed: 3", "seed: x"))
    with pytest.raises(RecipeError, match=r"^tiny\.yaml:1:7: `seed` must be"):
        check(recipe)
    check(recipe, overrides=["seed=3"])


def test_code_of_others_is_a_fault_unless_its_package_is_allowed(recipe):
    code = ["model={builder: my_package.models:build}"]
    with pytest.raises(RecipeError, match="--allow-code my_package"):
        check(recipe, overrides=code)
    check(recipe, overrides=code, allow_code=["my_package"])


def test_files_that_the_recipe_names_are_not_opened(recipe):
    check(recipe, overrides=["data.npz=nowhere.npz", "restore={from: nowhere.h5}"])
