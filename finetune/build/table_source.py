"""From tables to examples, whose columns are shaped for the inputs of a network."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune.build.file_columns import kind_of_files, network_files
from finetune.build.named_parts import named_parts, with_rest
from finetune.build.source_keys import (
    class_names_of,
    limited_rows,
    loss_names,
    named_by_splits,
    network_inputs,
    output_widths,
    split_as_asked,
    split_said_by_column,
)
from finetune.build.table_columns import files_of_table
from finetune.build.text_source import IDS, is_tokenized, made_of_ids, needs_tokenizer, network_tokens, text_warnings
from finetune.data.columns import VectorWidthError, check_width, feature_vectors
from finetune.data.examples import Examples, Split, make_examples
from finetune.data.file_names import RowPlaces
from finetune.data.rows import select
from finetune.data.separators import TABBED, written_separator
from finetune.data.several_tables import join_tables, read_tables
from finetune.data.splits import Indices
from finetune.data.table_bytes import DELIMITED, ending_of
from finetune.data.table_files import Table
from finetune.data.table_head import unnamed_warning
from finetune.data.targets import Target, read_target
from finetune.errors import DataError, did_you_mean, quote
from finetune.recipe.loader import placed
from finetune.recipe.schema import Recipe


def table_examples(recipe: Recipe, files: str | Sequence[str], network: keras.Model | None) -> Examples:
    """Makes examples of a table.

    Args:
        recipe: The recipe.
        files: The file or files of the table, as the recipe names them.
        network: The network, whose inputs say what becomes of the columns.

    Raises:
        DataError: The table cannot be read, or its columns do not fit the network or the loss.
    """
    source = recipe.data
    others = {"test": source.test_table, "validation": source.validation_table}
    named = {"train" if source.test_table else "": files} | {name: of for name, of in others.items() if of}
    paths = {name: files_of_table(recipe, of) for name, of in named.items()}
    _check_apart(paths)
    _check_keys_of_text(recipe, [path for of in paths.values() for path in of])
    tables = {
        name: read_tables(
            of,
            source.missing,
            types=source.types,
            quotes=source.quotes,
            delimiter=source.delimiter,
            decimal=source.decimal,
        )
        for name, of in paths.items()
    }
    return examples_of_tables(recipe, tables, network)


def _check_apart(paths: Mapping[str, Sequence[Path]]) -> None:
    """Refuses a pattern that also matches files of another split: rows to test on would be trained on."""
    for (name, first), (other, second) in combinations(paths.items(), 2):
        both = [path.name for path in first if path in second]
        if both and len(first) + len(second) > 2:
            raise DataError(
                f"A file belongs to a single split. {quote(both)} {'is' if len(both) == 1 else 'are'} among the files "
                f"to `{name}` and those to `{other}`. Write a pattern that leaves out the others."
            )


def _check_keys_of_text(recipe: Recipe, files: Sequence[Path]) -> None:
    """Refuses keys that only tables of delimited text have where no file is such a table, which would ignore them."""
    if any(ending_of(file) in DELIMITED for file in files):
        return
    for key in ("quotes", "delimiter", "decimal"):
        if getattr(recipe.data, key) != type(recipe.data).model_fields[key].default:
            with placed(recipe, "data", key):
                raise DataError(
                    f"`data.{key}` is for tables of text that end in {quote(DELIMITED)}, and `{files[0].name}` is "
                    "none. Remove it."
                )


def examples_of_tables(recipe: Recipe, tables: Mapping[str, Table], network: keras.Model | None) -> Examples:
    """Makes examples of tables in memory.

    Args:
        recipe: The recipe.
        tables: A table by the name of its split; or all rows, by an empty name, which are split as the recipe says.
        network: The network, whose inputs say what becomes of the columns.

    Raises:
        DataError: The splits are not known, or the columns do not fit the network or the loss.
    """
    parts = named_by_splits(recipe, tables)
    first = next(iter(parts.values()))
    # A misspelt name would change nothing, in silence.
    first.checked_columns([*recipe.data.types, *recipe.data.exclude], {})
    recipe = with_rest(recipe, list(first.columns))
    source = recipe.data
    if not source.inputs or not source.target:
        raise DataError(
            "Columns of a table are inputs or targets. It has "
            f"{quote(next(iter(parts.values())).columns, limit=12)}. Name both in the recipe, such as "
            "`inputs: [age, town]` and `target: price`."
        )
    main = next(iter(parts))
    parts |= {main: parts[main].select(limited_rows(recipe, len(parts[main])))}
    table = join_tables(list(parts.values()), source.types)
    with placed(recipe, "data", "target"):
        targets = _targets(recipe, table, network)
    with placed(recipe, "data", "split"):
        indices = _indices(recipe, table, parts, targets)
    with placed(recipe, "data", "inputs"):
        inputs, columns = _table_inputs(recipe, table, indices, network)
    y = {name: target.values for name, target in targets.items()}
    named = {name: target.about | {"class_names": list(target.class_names)} for name, target in targets.items()}
    is_single = list(targets) == [""]
    y, weights = (y[""] if is_single else y), _weights(recipe, table)
    splits = {name: Split(inputs[name], select(y, rows), select(weights, rows)) for name, rows in indices.items()}
    about = {"kind": "table", "file": str(table.path)}
    about |= {"files": [str(path) for path in table.paths], "inputs": columns} if table.paths else {"inputs": columns}
    about |= _text_form(recipe, table) | {"target": targets[""].about if is_single else named}
    about |= (
        {"warnings": warnings}
        if (warnings := [*table.warnings, *unnamed_warning(table.columns), *text_warnings(columns)])
        else {}
    )
    class_names = targets[""].class_names if is_single else ()
    places = {name: RowPlaces(table.places.text, rows) for name, rows in indices.items()}
    return make_examples(**splits, class_names=class_names, source=about, places=places)


def _text_form(recipe: Recipe, table: Table) -> dict[str, Any]:
    """Returns how values are written where that is not by commas and with points: rows to predict are read so, too."""
    if not table.delimiter:
        return {}
    names = [name for name in dict.fromkeys(part for _, part in named_parts(recipe)) if name in table.columns]
    commas = [name for name in names if table.column(name).has_commas]
    usual = "\t" if ending_of(table.path) in TABBED else ","
    delimiter = {"delimiter": written_separator(table.delimiter)} if table.delimiter != usual else {}
    return delimiter | ({"decimal_commas": commas} if commas else {})


def _indices(recipe: Recipe, table: Table, parts: Mapping[str, Table], targets: Mapping[str, Target]) -> Indices:
    """Returns the rows of each split."""
    ends = np.cumsum([len(part) for part in parts.values()])
    given = {name: np.arange(end - len(parts[name]), end) for name, end in zip(parts, ends, strict=True)}
    split, columns = recipe.data.split, next(iter(recipe.data.target.values()))
    if len(parts) > 1 and not split:
        return given
    keys = table.column(split.column).texts() if split and split.column else None
    is_of_classes = len(targets) == 1 and len(columns) == 1 and targets[""].class_names
    labels = table.column(columns[0]).texts() if is_of_classes else None
    if split and keys is not None and not split.by:
        return split_said_by_column(recipe, keys.tolist(), labels)
    keys = [*map(str, range(len(table)))] if keys is None else keys
    return split_as_asked(recipe, len(table), labels, keys, test=given.get("test"))


def _targets(recipe: Recipe, table: Table, network: keras.Model | None) -> dict[str, Target]:
    """Returns the targets of each output of the network by its name."""
    written, losses = recipe.data.target, loss_names(recipe)
    widths = output_widths(recipe, network)
    if set(written) != set(widths):
        several = len(widths) > 1
        wrong = sorted(set(written) - set(widths) - {""})
        shown = f"of each of its outputs: {quote(widths)}" if several else "of its only output, without a name"
        received = quote(name or "a column without a name" for name in written)
        raise DataError(
            f"`target` names the column {shown}. Received: {received}."
            f"{did_you_mean(wrong[0], list(widths)) if wrong and several else ''}"
        )
    if len(written) > 1 and recipe.data.class_names + tuple(filter(None, [recipe.data.class_names_file])):
        raise DataError("`class_names` are for a single target, and here are several. Remove it: the names are sorted.")
    return {
        name: read_target(
            table,
            columns,
            losses.get(name, losses.get("", "auto")),
            class_names_of(recipe),
            types=recipe.data.types,
            outputs=widths[name],
        )
        for name, columns in written.items()
    }


def _weights(recipe: Recipe, table: Table) -> np.ndarray | None:
    """Returns the weight of each row, if the recipe names their column."""
    if not recipe.data.sample_weight:
        return None
    column = table.column(recipe.data.sample_weight)
    wrong = np.flatnonzero(column.missing | (column.values < 0)) if column.kind == "number" else np.arange(len(table))
    if len(wrong):
        raise DataError(
            f"The weight of a row is a number of at least 0. `{column.name}` has {quote(column.texts()[wrong[:3]])} in "
            f"{table.places_of(wrong)}. Correct these rows, or remove `sample_weight`."
        )
    if not column.values.any():
        raise DataError(f"Some row must have a weight above 0. `{column.name}` is 0 in every row.")
    return column.values.astype(np.float32)


def _table_inputs(
    recipe: Recipe, table: Table, indices: Indices, network: keras.Model | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the inputs of a network in each split, and what was fitted for each input."""
    inputs, written = network_inputs(network), recipe.data.inputs
    made_of = made_of_ids(list(inputs), list(written))
    named = [name for name in inputs if name not in made_of]
    if made_of and len(named) == 1 and list(written) == [""]:
        written = {named[0]: written[""]}
    if list(inputs) != [""] and set(written) != set(named):
        wrong = sorted(set(written) - set(inputs) - {""})
        raise DataError(
            f"`inputs` names the columns of each input of the network: {quote(named)}. Received: "
            f"{quote(name or 'columns without the name of an input' for name in written)}."
            f"{did_you_mean(wrong[0], list(inputs)) if wrong else ''}"
        )
    if list(inputs) == [""] and list(written) != [""] and len(written) > 1:
        raise DataError(
            f"The network has a single input, and `inputs` names {quote(written)}. Write a list of columns."
        )
    whole: dict[str, Any] = {}  # rows of the whole table by the name of the input
    vectors: dict[str, Mapping[str, np.ndarray]] = {}  # those of each split
    about = {}
    for name, names in written.items():
        network_input, alone = inputs[name if len(inputs) > 1 else ""], len(named) == 1
        of_files = kind_of_files(table, names, recipe.data.types, getattr(network_input, "shape", None))
        if is_tokenized(recipe, table, names, network_input, alone) or name in IDS:
            parts, about[name] = network_tokens(recipe, table, names, network, network_input)
            whole[name] = parts["ids"]
            whole |= {other: parts[part] for other, part in made_of.items()} if name in IDS else {}
        elif of_files:
            whole[name], about[name] = network_files(recipe, table, table.column(names[0]), of_files, network_input)
        elif _is_text(recipe, table, names, network_input):
            whole[name] = table.column(names[0]).texts().astype(object)
            about[name] = {names[0]: {"kind": "text"}}
        else:
            vectors[name], about[name] = _vectors(recipe, table, names, indices, network_input)
    if missing := sorted(set(inputs) - {*whole, *vectors} - {""}):
        raise DataError(f"The inputs {quote(missing)} are made of token ids, and there are none. Name their columns.")

    def of_split(split: str) -> Any:
        made = {**select(whole, indices[split]), **{name: of[split] for name, of in vectors.items()}}
        return {name: made[name] for name in inputs} if len(inputs) > 1 else next(iter(made.values()))

    return {split: of_split(split) for split in indices}, about


def _is_text(recipe: Recipe, table: Table, names: Sequence[str], network_input: Any) -> bool:
    """Returns whether an input of the network takes a column as text."""
    dtype, kind = getattr(network_input, "dtype", None), recipe.data.types.get(names[0], "")
    return len(names) == 1 and dtype == "string" and kind in ("", "text")


def _vectors(
    recipe: Recipe, table: Table, names: Sequence[str], indices: Indices, network_input: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the vectors that a single input of the network takes in each split, and what was fitted for it."""
    columns, shape = table.checked_columns(names, recipe.data.types), getattr(network_input, "shape", None)
    vectors, fitted = feature_vectors(columns, recipe.data.types, indices)
    try:
        check_width(fitted, vectors["train"].shape[1], shape[-1] if shape and len(shape) == 2 else None)
    except VectorWidthError as error:
        is_whole = str(getattr(network_input, "dtype", None)).startswith(("int", "uint"))
        if is_whole and all(each.kind == "text" for each in columns):
            raise needs_tokenizer(names) from error
        raise
    return vectors, fitted
