"""`finetune check`: is a recipe valid? Answers without loading TensorFlow."""

import os
from collections.abc import Sequence
from pathlib import Path


def check(recipe: str | Path, *, overrides: Sequence[str] = (), allow_code: Sequence[str] = ()) -> None:
    """Reads a recipe and checks its spelling and its rules.

    Args:
        recipe: Path of the recipe.
        overrides: Changes to the recipe such as `"train.epochs=3"`.
        allow_code: Packages whose code the recipe may run.

    Raises:
        RecipeError: The recipe breaks a rule.
    """
    # Before pydantic is imported: its search for plugins takes a tenth of the time of this command.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from finetune.recipe.loader import load_recipe

    load_recipe(recipe, overrides=overrides, allow_code=allow_code)
