"""Rows with their targets, of data that a run has never seen, in the form that its model was trained on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.audio import ENDINGS as SOUNDS
from finetune.data.class_folders import find_files
from finetune.data.examples import Examples, Split, make_examples
from finetune.data.images import ENDINGS as IMAGES
from finetune.data.npz import read_npz_splits
from finetune.data.rows import Rows
from finetune.data.table_files import table_of_columns
from finetune.data.targets import class_target, read_target
from finetune.errors import DataError, did_you_mean, quote
from finetune.inference.fine_tuned import FineTuned
from finetune.inference.raw_rows import ARRAYS, RawRows
from finetune.inference.record import OutputRecord, RunRecord

_AT_ONCE = 4096  # rows read at a time


def labelled_examples(fine_tuned: FineTuned, place: str | Path, refused: list[DataError]) -> Examples:
    """Makes examples of data with targets; all of its rows are test rows.

    Args:
        fine_tuned: The run.
        place: A table with the input and target columns of the run, a folder of class folders, or an `.npz` file with
            `x_test` and `y_test`, or `x` and `y`.
        refused: Gets what is wrong with a row that turns out not to fit when it is taken: see `refusal_told`.

    Raises:
        DataError: The rows cannot be read, lack a column, have a class that the run does not know, or are of another
            kind than those the run was trained on; says where.
    """
    path, outputs = Path(place), fine_tuned.record.outputs
    if path.suffix.lower() in ARRAYS:
        return _of_arrays(fine_tuned.record, path)
    if path.is_dir():
        rows, labels = _of_class_folders(path)
        targets = {outputs[0].name: _class_targets(outputs[0], labels, rows.places)}
    else:
        rows = _joined(list(fine_tuned.read([path], size=_AT_ONCE)))
        targets = {each.name: _table_targets(fine_tuned, each, rows) for each in outputs}
    y = targets[""] if list(targets) == [""] else targets
    split = Split(_lazy_inputs(fine_tuned, rows, refused), y)
    about = {"class_names": fine_tuned.classes, "source": fine_tuned.record.source}
    return make_examples(split, split, **about, places={"test": rows.places, "train": rows.places})


@contextmanager
def refusal_told(refused: Sequence[DataError]) -> Iterator[None]:
    """Raises what was wrong with a row in place of what TensorFlow makes of it, which has lost the reason."""
    try:
        yield
    except Exception as error:
        if refused:
            raise refused[0] from error
        raise


def _of_arrays(record: RunRecord, path: Path) -> Examples:
    made = [each for each in record.inputs if each.kind != "array"]
    if made:  # arrays would reach the network as they are, without what was fitted on the training rows
        columns = list(dict.fromkeys(name for each in made for name in each.columns if name))
        kinds, targets = [each.kind for each in made], [name for each in record.outputs for name in each.columns]
        these = (
            f"a table with the columns {quote([*columns, *targets], limit=20)}" if columns else "a folder of classes"
        )
        raise DataError(
            f"The inputs of this run are made of rows of a table or of files, as {quote(dict.fromkeys(kinds))}. "
            f"`{path}` holds arrays. Give {these}."
        )
    splits, class_names = read_npz_splits(path)
    split = next(splits[name] for name in ("test", "", "validation", "train") if name in splits)
    return make_examples(split, split, class_names=class_names)


def _of_class_folders(folder: Path) -> tuple[RawRows, list[str]]:
    files = find_files(folder, (*IMAGES, *SOUNDS), "images or sounds", "cat")
    names = [path.relative_to(folder).as_posix() for path in files.paths]
    return RawRows({"": list(files.paths)}, names), files.labels.tolist()


def _joined(chunks: Sequence[RawRows]) -> RawRows:
    if not chunks:
        raise DataError("There must be a row to evaluate. The data hold none.")
    names = dict.fromkeys(name for chunk in chunks for name in chunk.columns)
    columns = {
        name: [value for chunk in chunks for value in chunk.columns.get(name, [None] * len(chunk))] for name in names
    }
    return RawRows(columns, [place for chunk in chunks for place in chunk.places], chunks[0].folder)


def _table_targets(fine_tuned: FineTuned, output: OutputRecord, rows: RawRows) -> np.ndarray:
    absent = [name for name in output.columns if name not in rows.columns]
    if absent or not output.columns:
        known = list(rows.columns)
        raise DataError(
            f"To evaluate, rows need the target the model was trained on: {quote(output.columns) or 'classes'}. "
            f"`{rows.places[0]}` has the columns {quote(known)}."
            f"{did_you_mean(absent[0], known) if absent else ''}"
        )
    record, is_number = fine_tuned.record, output.kind == "numbers"
    name, columns = rows.places[0].rpartition(":")[0], {name: rows.columns[name] for name in output.columns}
    table = table_of_columns(columns, name, record.missing)
    names = output.names if len(output.columns) == 1 and not is_number else ()
    if names:
        _check_known(output, table.column(output.columns[0]).texts().tolist(), rows.places)
    types = record.recipe["data"].get("types") or {}
    return read_target(table, output.columns, output.loss, names, types=types).values


def _class_targets(output: OutputRecord, labels: Sequence[str], places: Sequence[str]) -> np.ndarray:
    _check_known(output, labels, places)
    return class_target(labels, output.loss, output.names).values


def _check_known(output: OutputRecord, labels: Sequence[str], places: Sequence[str]) -> None:
    """Refuses classes that the model has never seen: it could only be wrong about them."""
    known = set(output.names)
    several = output.kind == "labels"
    unknown: Mapping[str, str] = {
        part.strip(): place
        for label, place in zip(labels, places, strict=True)
        for part in (label.split("|") if several else [label])
        if part.strip() not in known and (part.strip() or not several)
    }
    if unknown:
        shown = ", ".join(f"`{name}` (`{place}`)" for name, place in list(unknown.items())[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise DataError(
            f"The model knows the classes {quote(output.names, limit=12)}. The data also hold {shown}{more}."
            f"{did_you_mean(next(iter(unknown)), output.names)} Remove these rows, or correct them."
        )


def _lazy_inputs(fine_tuned: FineTuned, rows: RawRows, refused: list[DataError]) -> Any:
    """Returns inputs that are prepared when they are taken."""
    first = fine_tuned.prepare(rows.row(0))
    named = first if isinstance(first, Mapping) else {"": first}

    def lazy(name: str, sample: Any) -> Rows:
        dtype, shape = tf.as_dtype(sample.dtype), (None, *sample.shape[1:])
        text = len(shape) == 2 and any(each.kind == "tokens" for each in fine_tuned.record.inputs)
        shape = (None, None) if text else shape  # as long as the batch needs

        def read(indices: np.ndarray) -> Any:
            try:
                value = fine_tuned.prepare(rows.select(indices))
            except DataError as error:
                refused.append(error)
                raise
            return np.asarray(value[name] if name else value)

        def take(indices: Any) -> Any:
            values: Any = tf.numpy_function(read, [indices], dtype, stateful=False)
            return tf.ensure_shape(values, shape)

        return Rows(len(rows), take)

    made = {name: lazy(name, sample) for name, sample in named.items()}
    return made[""] if list(made) == [""] else made
