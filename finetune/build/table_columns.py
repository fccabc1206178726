"""The tables of a recipe, and columns that it names and they do not have, which their heads show without TensorFlow."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.build.named_parts import located_text, named_parts
from finetune.data.table_head import is_misread, read_head, table_paths, unknown_column
from finetune.errors import DataError
from finetune.files.patterns import is_pattern
from finetune.recipe.data import REST
from finetune.recipe.loader import resolve_path
from finetune.recipe.schema import Recipe
from finetune.sequences import one_or_more

_MOST = 3  # messages about a table; more columns than that are in one message


def files_of_table(recipe: Recipe, written: str | Sequence[str]) -> list[Path]:
    """Returns the files of a table that a recipe names.

    Args:
        recipe: The recipe.
        written: A file or a pattern, or several.

    Raises:
        DataError: A pattern matches no file.
    """
    return table_paths([resolve_path(recipe, each) for each in one_or_more(written)])


def unknown_columns(recipe: Recipe) -> Iterator[str]:
    """Yields a sentence, with its place, for each column that a table of the recipe does not have.

    Args:
        recipe: The recipe. Tables that are missing, or whose columns are not known before all rows are read, are left
            to their reader; of several files the first is looked at.
    """
    source = recipe.data
    if not source.table:
        return
    written = [(keys, part) for keys, part in named_parts(recipe) if part != REST or keys[1] != "inputs"]
    for key in filter(lambda key: getattr(source, key), ("table", "test_table", "validation_table")):
        try:
            path = files_of_table(recipe, getattr(source, key))[0]
        except DataError as error:
            if all(map(is_pattern, one_or_more(getattr(source, key)))):  # a name of a file is told by `missing_files`
                yield located_text(recipe, ("data", key), str(error))
            continue
        head = read_head(path, source.delimiter, quotes=source.quotes)
        unknown = [(keys, column) for keys, column in written if head and column not in head]
        if unknown and head and is_misread(head):  # a single fault, however many columns are named
            yield located_text(recipe, ("data", key), unknown_column([column for _, column in unknown], path, head))
            continue
        several = [column for _, column in unknown] if len(unknown) > _MOST else []
        for keys, column in unknown[:1] if several else unknown:
            yield located_text(recipe, keys, unknown_column(several or [column], path, head or {}))
