"""`finetune schema`: the JSON schema of a recipe, for editors. Answers without loading TensorFlow."""

import json
import os
from pathlib import Path

SCHEMA_FILE = "recipe.schema.json"


def schema_text() -> str:
    """Returns the JSON schema of a recipe as text."""
    # Before pydantic is imported: its search for plugins takes a tenth of the time of this command.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from finetune.recipe.json_schema import recipe_schema

    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def editor_line(schema: Path, folder: Path) -> str:
    """Returns the comment by which editors know the schema of a recipe; it begins the recipe's first line.

    Args:
        schema: The file with the schema.
        folder: The folder of the recipe.
    """
    return f"# yaml-language-server: $schema={Path(os.path.relpath(schema, folder)).as_posix()}"


def write_schema_beside(folder: Path) -> str:
    """Writes the schema into a folder of recipes.

    Returns:
        The line that begins a recipe there; empty where another file has the name, which is left as it is.
    """
    from finetune.recipe.json_schema import TITLE
    from finetune.results.run_folder import write_text

    path = folder / SCHEMA_FILE
    if os.path.lexists(path):
        try:
            is_ours = path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("title") == TITLE
        except (OSError, ValueError, AttributeError, RecursionError):
            is_ours = False
        if not is_ours:
            return ""
    write_text(path, schema_text())
    return editor_line(path, folder)
