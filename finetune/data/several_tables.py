"""Several files as a table: shards of a data set, or a file for each month."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from finetune.data.table_bytes import LINES, ending_of
from finetune.data.table_column import Column
from finetune.data.table_files import Columns, Table, read_table
from finetune.data.table_head import is_number
from finetune.data.table_places import join_places
from finetune.errors import DataError, did_you_mean, quote
from finetune.files.patterns import short_names

_NO_TYPES: Mapping[str, str] = {}


def read_tables(
    paths: Sequence[Path],
    missing: Sequence[str] | None = None,
    *,
    types: Mapping[str, str] = _NO_TYPES,
    quotes: bool = True,
    delimiter: str = "auto",
    decimal: str = "auto",
) -> Table:
    """Reads files with the same columns, in any order of these, as a table of the rows of one after another.

    Args:
        paths: The files, see `table_paths`.
        missing: As for `read_table`.
        types: Columns of which it is written what they are, by name.
        quotes: As for `read_table`.
        delimiter: As for `read_table`.
        decimal: As for `read_table`.

    Raises:
        DataError: A file cannot be read, or the columns differ.
    """
    tables = [read_table(path, missing, quotes=quotes, delimiter=delimiter, decimal=decimal) for path in paths]
    names = short_names(paths)
    if names != [path.name for path in paths]:
        tables = [
            replace(table, places=replace(table.places, names=(name,)))
            for table, name in zip(tables, names, strict=True)
        ]
    # A line of JSON leaves out what it does not have, and so may all lines of a file.
    every = dict.fromkeys(name for table in tables if _is_json(table) for name in table.columns)
    tables = [_with_empty(table, list(every)) if _is_json(table) else table for table in tables]
    for table in tables[1:]:
        lacking = [name for name in tables[0].columns if name not in table.columns]
        others = [name for name in table.columns if name not in tables[0].columns]
        if lacking or others:
            near = did_you_mean(lacking[0], others) if lacking and others else ""
            raise DataError(
                "Files of a table have the same columns. "
                f"`{table.path}` {_difference(lacking, others)}, unlike `{tables[0].path}`.{near} Correct it, or name "
                "the files that belong together."
            )
    return join_tables(tables, types)


def _difference(lacking: Sequence[str], others: Sequence[str]) -> str:
    parts = [f"lacks {quote(lacking)}"] if lacking else []
    return " and ".join([*parts, *([f"has {quote(others)} in addition"] if others else [])])


def _is_json(table: Table) -> bool:
    return ending_of(table.path) in LINES


def _with_empty(table: Table, names: Sequence[str]) -> Table:
    """Returns a table with these columns, of which those that it lacks are missing in each row."""
    if set(names) == set(table.columns):
        return table

    def made(name: str) -> Column:
        if name in table.columns:
            return table.columns.once(name)
        return Column(name, "text", np.zeros(len(table), np.str_))

    return replace(table, columns=Columns({name: partial(made, name) for name in names}, table.columns.most_kept))


def join_tables(tables: Sequence[Table], types: Mapping[str, str] = _NO_TYPES) -> Table:
    """Returns the rows of several tables with the columns of the first, one after another.

    Args:
        tables: The tables.
        types: Columns of which it is written what they are, by name.

    Raises:
        DataError: A table lacks a column of the first; or, when a column is made, it holds numbers in a table and
            words in another.
    """
    if len(tables) == 1:
        return tables[0]
    for name, table in ((name, table) for name in tables[0].columns for table in tables):
        if name not in table.columns:
            table.column(name)  # raises

    def joined(name: str) -> Column:
        parts = [table.columns.once(name) for table in tables]
        words = tuple(sorted({word for part in parts for word in part.missing_words}))
        kinds = {part.kind for part in parts if not part.missing.all()}
        if kinds == {"number"}:
            values = np.concatenate([_as_numbers(part) for part in parts])
            is_whole, commas = all(part.whole for part in parts), any(part.has_commas for part in parts)
            return Column(name, "number", values, is_whole, words, commas)
        if len(kinds) == 2 and name not in types:
            _check_alike(tables, parts)
        return Column(name, "text", np.concatenate([part.texts() for part in parts]), False, words)

    warnings = tuple(dict.fromkeys(warning for table in tables for warning in table.warnings))
    most_kept = min(table.columns.most_kept for table in tables)
    columns = Columns({name: partial(joined, name) for name in tables[0].columns}, most_kept)
    places = join_places([table.places for table in tables])
    paths = tuple(path for table in tables for path in table.paths or (table.path,))
    return replace(tables[0], columns=columns, places=places, warnings=warnings, paths=paths)


def _as_numbers(column: Column) -> np.ndarray:
    return column.values if column.kind == "number" else np.full(len(column.values), np.nan)


def _check_alike(tables: Sequence[Table], parts: Sequence[Column]) -> None:
    """Refuses a column that holds numbers in a table, and in another words alone: nobody means a mixture of these.

    Where a table has both, as numbers of tickets do, the column is text.
    """
    numbers = next(table for table, part in zip(tables, parts, strict=True) if part.kind == "number")
    for table, part in zip(tables, parts, strict=True):
        texts = dict.fromkeys(filter(None, part.texts().tolist())) if part.kind == "text" else {}
        if texts and not any(map(is_number, texts)):
            raise DataError(
                f"A column has the same type in all files. `{part.name}` holds numbers in `{numbers.path}`, and text "
                f"in `{table.path}`: {quote(texts, limit=3)}. Correct one of them, or set "
                f"`types: {{{part.name}: category}}`."
            )
