"""`finetune keys`: what can be written in a recipe. Answers without loading TensorFlow."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def keys_as_data(path: str) -> list[dict[str, Any]]:
    """Returns the same as plain data: each mapping with its `path`, `about`, and `keys`.

    Raises:
        RecipeError: Nothing in a recipe has this name.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from dataclasses import asdict

    from finetune.recipe.keys import blocks_at

    return [asdict(block) for block in blocks_at(path)]


def show_keys(path: str, *, as_markdown: bool, console: "Console") -> None:
    """Prints the keys of a part of the recipe, with their values, defaults and meanings.

    Args:
        path: A key such as `train` or `data.split`, or the name of a schedule or strategy; empty for the first keys.
        as_markdown: Whether to print tables in Markdown.
        console: Where to print.

    Raises:
        RecipeError: Nothing in a recipe has this name.
    """
    # Before pydantic is imported: its search for plugins takes a tenth of the time of this command.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from rich import box
    from rich.table import Table

    from finetune.recipe.keys import blocks, blocks_at, markdown

    for block in blocks_at(path):
        if as_markdown:
            print(f"## `{block.path or 'recipe'}`\n\n{block.about}\n\n{markdown(block)}")
            continue
        console.print(f"\n{block.path or 'recipe'}: {block.about}")
        table = Table("key", "values", "default", "meaning", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.columns[3].ratio = 1
        for key in block.keys:
            table.add_row(key.name, key.values.replace("`", ""), key.default, key.meaning.replace("`", ""))
        console.print(table)
    if not path and not as_markdown:
        places = dict.fromkeys(block.path for block in blocks() if block.path)
        console.print(f"More, with `finetune keys NAME`: {', '.join(places)}")
