"""`finetune fill`: a recipe with every default written out. Answers without loading TensorFlow."""

import os
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError


def fill(recipe: Path, out: Path | None = None, *, overwrite: bool = False) -> str:
    """Returns the text of a recipe with its defaults, and writes it where that is asked for.

    Args:
        recipe: The recipe.
        out: The file to write. Paths in the text are relative to its folder, or to that of the recipe.
        overwrite: Whether the file may exist.

    Raises:
        FinetuneError: The recipe is not valid, or the file may not be written.
    """
    # Before pydantic is imported: its search for plugins takes a tenth of the time of this command.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from finetune.recipe.filled import filled_text
    from finetune.results.new_files import check_new_file
    from finetune.results.run_folder import replacing

    if out:
        check_new_file(out, overwrite=overwrite)
    text = filled_text(recipe, (out or recipe).parent)
    if not out:
        return text
    expected = _whole(recipe)
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if _whole(temporary) != expected:
            raise FinetuneError(
                f"A filled recipe says the same as `{recipe}`, and here it would not. Nothing is written; please "
                "report it with the recipe."
            )
    return text


def _whole(path: Path) -> Any:
    """Returns what a recipe says as plain data, with its paths in full."""
    from finetune.recipe.loader import dump_recipe, load_recipe
    from finetune.recipe.text import Place, parse

    text = dump_recipe(load_recipe(path), absolute_paths=True)
    root = parse(text, lambda line, column: Place(str(path), line, column), [])
    return _normal(root.plain() if root else None)


def _normal(value: Any) -> Any:
    """Returns plain data whose absolute paths have no `..` in them."""
    if isinstance(value, dict):
        return {key: _normal(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_normal(each) for each in value]
    return os.path.normpath(value) if isinstance(value, str) and value.startswith("/") else value
