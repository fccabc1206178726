"""Parts of the rows that a recipe names: columns of a table, features of a record, parts of an item."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from finetune.data.table_head import is_unnamed
from finetune.errors import DataError, PartError, RecipeError, quote
from finetune.recipe.data import REST
from finetune.recipe.loader import place_of, with_values
from finetune.recipe.schema import Recipe

Keys = tuple[str | int, ...]


def named_parts(recipe: Recipe) -> list[tuple[Keys, str]]:
    """Returns the names of parts in `data`, each with the keys that lead to it in the recipe."""
    source = recipe.data
    parts: list[tuple[Keys, str]] = [
        (("data", key, *([name] if name else []), number), part)
        for key in ("inputs", "target")
        for name, of_name in getattr(source, key).items()
        for number, part in enumerate(of_name)
    ]
    parts += [(("data", "as", number), part) for number, part in enumerate(source.as_ or ())]
    for key in ("types", "features"):
        parts += [(("data", key, part), part) for part in getattr(source, key)]
    parts += [(("data", "exclude", number), part) for number, part in enumerate(source.exclude)]
    parts += [(("data", "sample_weight"), source.sample_weight)] if source.sample_weight else []
    parts += [(("data", "split", "column"), source.split.column)] if source.split and source.split.column else []
    return parts


@contextmanager
def parts_placed(recipe: Recipe) -> Iterator[None]:
    """Puts the place of the key that names a part in front of an error about it in the block.

    Args:
        recipe: The recipe.

    Raises:
        RecipeError: For a `PartError` in the block, if the recipe names the part. Other errors pass.
    """
    try:
        yield
    except PartError as error:
        keys = next((keys for keys, part in named_parts(recipe) if part == error.part), ("data",))
        raise RecipeError(located_text(recipe, keys, str(error))) from error


def located_text(recipe: Recipe, keys: Keys, text: str) -> str:
    """Returns a message with the place and the name of a key; the number in a list is in the place alone.

    Args:
        recipe: The recipe.
        keys: The keys that lead to what the message is about.
        text: The message.
    """
    path = ".".join(key for key in keys if isinstance(key, str))
    return f"{place_of(recipe, *keys)}: `{path}`: ".lstrip(": ") + text


def with_rest(recipe: Recipe, columns: Sequence[str]) -> Recipe:
    """Returns the recipe with the names of columns in place of `inputs: rest`, which are those not named otherwise,
    without those that have no name of their own.

    Args:
        recipe: The recipe.
        columns: All columns of the table. Where one is called `rest`, the word means that column.

    Raises:
        DataError: There are no others.
    """
    inputs = recipe.data.inputs
    rest = [name for name, of_name in inputs.items() if of_name == (REST,)]
    if not rest or REST in columns:
        return recipe
    named = {part for keys, part in named_parts(recipe) if keys[1] not in ("types", "features")}
    others = [column for column in columns if column not in named and not is_unnamed(column)]
    if not others:
        raise DataError(
            f"`inputs: {REST}` are the columns that are not named otherwise, and all are: {quote(columns, limit=12)}. "
            "Name fewer of them."
        )
    values: dict[Keys, Any] = {("data", "inputs", *([name] if name else [])): others for name in rest}
    return with_values(recipe, values | ({("data", "exclude"): []} if recipe.data.exclude else {}))
