"""Raw rows of the test split of a run, and how an export takes them."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune.data.columns import is_number
from finetune.data.examples import Examples
from finetune.data.table_column import cell_text
from finetune.data.table_head import MISSING, table_paths
from finetune.errors import DataError, FinetuneError
from finetune.files.patterns import short_names
from finetune.inference.exports.raw_graph import GraphInput
from finetune.inference.fine_tuned import FineTuned
from finetune.inference.prepared_inputs import content_of
from finetune.inference.raw_rows import RawRows
from finetune.sequences import one_or_more

ROWS = 32  # compared at most
BASE64 = "base64:"  # begins the names of arrays of texts and bytes in files for another process


class ComparedRows(NamedTuple):
    """Rows that an export is compared on.

    Attributes:
        rows: The rows.
        name: What they are.
    """

    rows: RawRows
    name: str


def compared_rows_of(fine_tuned: FineTuned, examples: Examples | None, data: Sequence[str | Path]) -> ComparedRows:
    """Returns raw rows: those that the user names, or else the first of the test split.

    Args:
        fine_tuned: The run.
        examples: The rows of its recipe, where they can be made.
        data: Files, folders or tables; may be empty.

    Raises:
        FinetuneError: There are none.
    """
    if data:
        rows = next(fine_tuned.read(list(data), size=ROWS), None)
        if rows is None:
            raise FinetuneError("An export is compared on some rows. The data hold none.")
        for _ in fine_tuned.predictions([rows]):
            pass  # rows that do not fit are told with their place, before minutes of conversion
        return ComparedRows(rows, ", ".join(map(str, data)))
    if examples is None:
        raise FinetuneError(
            "An export is compared with the run on raw rows of its test split, whose files are not here. Name some "
            "with `--data`; no targets are needed."
        )
    kinds = {each.kind for each in fine_tuned.record.inputs}
    if kinds == {"array"}:
        x, _ = examples.test.first(ROWS)
        columns = {name: np.asarray(value) for name, value in (x.items() if isinstance(x, dict) else [("", x)])}
        count = len(next(iter(columns.values())))
        return ComparedRows(
            RawRows(columns, [f"test row {number}" for number in range(count)]), "rows of the test split"
        )
    places = list(examples.places["test"][:ROWS])
    if fine_tuned.record.source.get("kind") in ("images", "audio"):
        folder = Path(fine_tuned.record.source["folder"])  # where the names of files begin
        return ComparedRows(RawRows({"": [folder / place for place in places]}, places), "rows of the test split")
    return ComparedRows(_of_tables(fine_tuned, places), "rows of the test split")


def _of_tables(fine_tuned: FineTuned, places: Sequence[str]) -> RawRows:
    """Returns the rows of tables at some places, such as `reviews.csv:1042`, in the order in which they lie there."""
    wanted = set(places)
    rows: list[tuple[RawRows, int]] = []
    chunks = (
        (chunk, name) for file, name in _tables(fine_tuned).items() for chunk in fine_tuned.read([file], size=1024)
    )
    for chunk, name in chunks:
        places = [f"{name}:{place.rpartition(':')[2]}" for place in chunk.places]
        rows += [(chunk, number) for number, place in enumerate(places) if place in wanted]
        if len(rows) >= len(wanted):
            break
    if not rows:
        raise DataError(f"The test rows of this run are at `{places[0]}` and so on. They are not there. Use `--data`.")
    first = rows[0][0]
    columns = {name: [chunk.columns[name][number] for chunk, number in rows] for name in first.columns}
    return RawRows(columns, [chunk.places[number] for chunk, number in rows], first.folder)


def tabled_rows(fine_tuned: FineTuned, count: int) -> RawRows | None:
    """Returns the first rows of the tables of a run; `None` where there are none, or not here.

    Args:
        fine_tuned: The run.
        count: How many at most, >= 1.
    """
    tables = [path for path in _tables(fine_tuned) if path.is_file()]
    return next(fine_tuned.read(tables, size=count), None) if tables else None


def _tables(fine_tuned: FineTuned) -> dict[Path, str]:
    """Returns the names that the files of the run's tables have in places of rows."""
    data, tables = fine_tuned.record.recipe.get("data") or {}, {}
    for value in filter(None, (data.get(key) for key in ("test_table", "table", "validation_table"))):
        try:
            paths = table_paths(one_or_more(value))
        except DataError:  # they are in another place now
            continue
        tables = dict(zip(paths, short_names(paths), strict=True)) | tables
    return tables


def arrays_for(inputs: Sequence[GraphInput], fine_tuned: FineTuned, rows: RawRows) -> dict[str, np.ndarray]:
    """Returns what an export is given for some rows, by the names of its inputs.

    Args:
        inputs: What the export takes.
        fine_tuned: The run.
        rows: The rows.
    """
    prepared: Any = None
    missing = fine_tuned.record.missing
    words = {"", *(MISSING if missing is None else missing)}
    arrays: dict[str, np.ndarray] = {}
    for each in inputs:
        if each.kind == "prepared":
            prepared = fine_tuned.prepare(rows) if prepared is None else prepared
            arrays[each.name] = np.asarray(prepared[each.column] if isinstance(prepared, dict) else prepared)
            continue
        values = rows.columns[each.column if each.column in rows.columns else ""]
        if each.kind == "bytes":
            made: Any = [content_of(value, rows, number) for number, value in enumerate(values)]
        else:
            # A text that becomes token ids is never missing: `none` is a word.
            no_text = set() if each.kind == "sentence" else words
            made = ["" if (text := cell_text(value)) in no_text else text for value in values]
        if each.kind == "number":
            made = [float(text) if is_number(text) else np.nan for text in made]
        arrays[each.name] = np.array(made, np.float64 if each.kind == "number" else object)
        arrays[each.name] = arrays[each.name].reshape(len(rows), *each.spec.shape[1:])
    return arrays


def plain_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays that NumPy writes to a file without pickling: texts and bytes as base64."""
    plain = {}
    for name, array in arrays.items():
        if array.dtype == object:
            encoded = [value.encode() if isinstance(value, str) else value for value in array.reshape(-1)]
            texts = np.array([base64.b64encode(value).decode() for value in encoded])
            plain[BASE64 + name] = texts.reshape(array.shape)
        else:
            plain[name] = array
    return plain
