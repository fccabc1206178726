"""The `report` of a recipe."""

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import dump_recipe, load_recipe


def loaded(recipe, text):
    recipe.write_text(recipe.read_text() + text)
    return load_recipe(recipe)


def test_a_report_is_written_with_inputs_unless_it_says_otherwise(recipe):
    assert loaded(recipe, "").report.page
    assert load_recipe(recipe).report.examples


@pytest.mark.parametrize("text", ["report: off\n", 'report: "off"\n', "report: {page: false}\n"])
def test_off_writes_none_and_survives_being_written(recipe, text):
    made = loaded(recipe, text)
    assert not made.report.page
    recipe.write_text(dump_recipe(made))
    assert load_recipe(recipe) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "report: on\n",
            r"tiny.yaml:12:9: `report` has keys of its own, such as `report: {examples: false}`, or is `off`",
        ),
        ("report: {example: false}\n", r"`report.example` is not a known key. Did you mean `examples`?"),
        ("report: {examples: 1}\n", r"`report.examples` must be `true` or `false`"),
    ],
)
def test_anything_else_is_an_error_with_its_place(recipe, text, message):
    with pytest.raises(RecipeError) as caught:
        loaded(recipe, text)
    assert message in str(caught.value)
