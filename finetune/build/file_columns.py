"""Columns of a table that name files: images and sounds, each an input of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.build.audio_source import network_sounds
from finetune.build.image_source import network_images
from finetune.data.file_names import FilePaths, RowPlaces, joined_texts
from finetune.data.table_column import Column
from finetune.data.table_files import Table
from finetune.errors import DataError, did_you_mean, quote
from finetune.recipe.schema import Recipe


def kind_of_files(
    table: Table, names: Sequence[str], types: Mapping[str, str], shape: Sequence[int | None] | None
) -> str:
    """Returns which files the columns of an input name: `image`, `audio`, or nothing.

    Args:
        table: The table.
        names: The columns of the input.
        types: What columns are by their names, where the recipe says so.
        shape: Shape of the input of the network, the batch axis included, where that is known.

    Raises:
        DataError: Files are among several columns.
    """
    written = {name: types[name] for name in names if types.get(name) in ("image", "audio")}
    takes_images = shape is not None and len(shape) == 4
    if len(names) == 1:
        # Without `types` it is the network that says what text means.
        is_image = takes_images and names[0] not in types and table.column(names[0]).kind == "text"
        return "image" if is_image else next(iter(written.values()), "")
    if written or takes_images:
        of_network = f"The network takes {tuple(shape or ())[1:]}" if not written else ""
        received = ", ".join(f"`{name}` is `{kind}`" for name, kind in written.items()) or of_network
        raise DataError(
            f"A column of files is an input of its own, and the other columns another. {received}, and `inputs` names "
            f"{quote(names)} for the same input. Name the columns of each input of the "
            "network: `inputs: {photo: file, numbers: [age, size]}`."
        )
    return ""


def network_files(
    recipe: Recipe, table: Table, column: Column, kind: str, network_input: Any
) -> tuple[Any, dict[str, Any]]:
    """Returns the images or sounds that a column names, and how they were read.

    Args:
        recipe: The recipe.
        table: The table, in whose folder relative names begin.
        column: The column of names of files.
        kind: `image` or `audio`.
        network_input: The symbolic input of the network, or `None` where it is not known.

    Raises:
        DataError: A cell is empty, or names a file that does not exist or cannot be read; with its line in the table.
    """
    if column.missing.any():
        rows = np.flatnonzero(column.missing)
        raise DataError(
            f"Every row names its file. `{column.name}` is empty in {len(rows):,} of {len(table):,} rows: "
            f"{table.places_of(rows)}. Fill them in, or remove these rows."
        )
    paths = FilePaths(table.path.parent, joined_texts(column.texts()))
    absent = [row for row, path in enumerate(paths) if not path.is_file()]
    if absent:
        first = paths[absent[0]]
        names = sorted(other.name for other in first.parent.glob("*")) if first.parent.is_dir() else []
        slashes = ", with `/` between folders and not `\\`" if "\\" in first.name else ""
        where = "" if first.parent.is_dir() else f" The folder `{first.parent}` does not exist."
        raise DataError(
            f"Every row names a file. {len(absent):,} of {len(paths):,} rows of `{column.name}` name none: "
            f"{table.places_of(np.array(absent))}, the first `{first}`.{where or did_you_mean(first.name, names)} "
            f"Names are relative to `{table.path.parent}`{slashes}. Correct them, or remove these rows."
        )
    places = RowPlaces(table.places.text, np.arange(len(table)))
    if kind == "audio":
        rows, about = network_sounds(recipe, paths, network_input, places)
        return rows, {column.name: {"kind": "audio", **about}}
    rows, about = network_images(recipe, paths, network_input, places)
    return rows, {column.name: {"kind": "image", **about}}
