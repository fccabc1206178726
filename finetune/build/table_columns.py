"""Columns that a recipe names and its tables do not have, which the heads of the tables show without TensorFlow."""

from collections.abc import Iterator

from finetune.data.table_head import read_head, unknown_column
from finetune.recipe.loader import place_of, resolve_path
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
    named = [(("data", key), by_name) for key in ("inputs", "target") for by_name in [getattr(source, key)]]
    written: list[tuple[tuple[str | int, ...], str]] = [
        ((*keys, *([name] if name else []), number), column)
        for keys, by_name in named
        for name, columns in by_name.items()
        for number, column in enumerate(columns)
    ]
    written += [(("data", "types", column), column) for column in source.types]
    written += [(("data", "sample_weight"), source.sample_weight)] if source.sample_weight else []
    written += [(("data", "split", "column"), source.split.column)] if source.split and source.split.column else []
    for file in filter(None, (source.table, source.test_table, source.validation_table)):
        path = resolve_path(recipe, file)
        head = read_head(path)
        unknown = [(keys, column) for keys, column in written if head and column not in head]
        several = [column for _, column in unknown] if len(unknown) > _MOST else []
        for keys, column in unknown[:1] if several else unknown:
            at = f"{place_of(recipe, *keys)}: `{'.'.join(key for key in keys if isinstance(key, str))}`: ".lstrip(": ")
            yield at + unknown_column(several or [column], path, head or {})
