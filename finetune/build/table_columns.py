"""Columns that a recipe names and its tables do not have, which the heads of the tables show without TensorFlow."""

from collections.abc import Iterator

from finetune.build.named_parts import located_text, named_parts
from finetune.data.table_head import is_misread, read_head, unknown_column
from finetune.recipe.data import REST
from finetune.recipe.loader import resolve_path
from finetune.recipe.schema import Recipe

_MOST = 3  # messages about a table; more columns than that are in one message


def unknown_columns(recipe: Recipe) -> Iterator[str]:
    """Yields a sentence, with its place, for each column that a table of the recipe does not have.

    Args:
        recipe: The recipe. Tables that are missing, or whose columns are not known before all rows are read, are left
            to their reader.
    """
    source = recipe.data
    if not source.table:
        return
    written = [(keys, part) for keys, part in named_parts(recipe) if part != REST or keys[1] != "inputs"]
    for key in filter(lambda key: getattr(source, key), ("table", "test_table", "validation_table")):
        path = resolve_path(recipe, getattr(source, key))
        head = read_head(path, source.delimiter, quotes=source.quotes)
        unknown = [(keys, column) for keys, column in written if head and column not in head]
        if unknown and head and is_misread(head):  # a single fault, however many columns are named
            yield located_text(recipe, ("data", key), unknown_column([column for _, column in unknown], path, head))
            continue
        several = [column for _, column in unknown] if len(unknown) > _MOST else []
        for keys, column in unknown[:1] if several else unknown:
            yield located_text(recipe, keys, unknown_column(several or [column], path, head or {}))
