"""Recipes laid out as a run does it."""

import pytest

from finetune.build.data import precision
from finetune.build.layout import build_layout
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe


@pytest.fixture
def lay_out():
    """Goes from a recipe to a compiled model and everything around it."""
    return laid_out


@pytest.fixture
def problem():
    """Lays out a recipe that must fail; returns the message."""

    def message(recipe, *overrides, kind=RecipeError):
        with pytest.raises(kind) as error:
            laid_out(recipe, *overrides)
        return str(error.value)

    return message


def laid_out(recipe, *overrides):
    loaded = load_recipe(recipe, overrides=overrides)
    with precision(loaded):
        return build_layout(loaded)
