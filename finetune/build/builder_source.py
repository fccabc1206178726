"""From whatever a builder of data returns to examples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.build.source_keys import item_names, network_inputs
from finetune.build.source_splits import SourceRows, examples_as_asked, split_examples
from finetune.build.table_source import examples_of_tables
from finetune.data.arrays import as_array, as_arrays
from finetune.data.examples import ARRAY_NAMES, SPLITS, Examples, Split
from finetune.data.indexed import ItemNames, has_items, indexed_rows
from finetune.data.streamed import read_once
from finetune.data.table_files import Table, table_of_columns
from finetune.errors import DataError, did_you_mean, quote
from finetune.recipe.schema import Recipe

FORMS = (
    "`Examples`; `(x, y)`; `((x_train, y_train), (x_test, y_test))`; a dict with `x_train`, `y_train`, `x_test` and "
    "`y_test`, or with `train` and `test`; a data frame; a `tf.data.Dataset`, a `PyDataset`; or anything with a length "
    "whose items are `(x, y)` or dicts"
)
_OF_TABLES = (
    "types",
    "missing",
    "sample_weight",
    "tokenizer",
    "size",
    "resize",
    "value_range",
    "sample_rate",
    "length",
)
_OF_NAMES = ("inputs", "target")
_READ_ONCE = "read once and kept: order of an epoch from the seed alone; what it draws at random is drawn once"


def builder_examples(recipe: Recipe, returned: Any, network: keras.Model | None) -> Examples:
    """Makes examples of what a builder returned.

    Args:
        recipe: The recipe.
        returned: Examples, arrays, tables, datasets or anything with items; see `FORMS`.
        network: The network, whose inputs say what the rows must look like.

    Raises:
        DataError: It is nothing that rows can be made of, or its parts do not fit together.
    """
    if isinstance(returned, Mapping) and any(name in ARRAY_NAMES for name in returned):
        returned = _by_names(returned)
    if isinstance(returned, Examples):
        _check_unused(recipe, *_OF_TABLES, *_OF_NAMES)
        arrays: dict[str, Any] = {name: as_arrays(getattr(returned, name), name) for name in ARRAY_NAMES}
        return examples_as_asked(recipe, replace(returned, **arrays))
    parts, class_names = _parts(returned, recipe.data.missing)
    tables = {name: part for name, part in parts.items() if isinstance(part, Table)}
    if len(tables) == len(parts):
        return examples_of_tables(recipe, tables, network)
    _check_unused(recipe, *_OF_TABLES)
    names = item_names(recipe, network)
    rows = {name: _rows_of(recipe, part, names, network) for name, part in parts.items()}
    kinds = list(dict.fromkeys(kind for _, kind in rows.values()))
    about = {"kind": "builder", "builder": recipe.data.builder, "returned": "; ".join(kinds)}
    return split_examples(recipe, {name: part for name, (part, _) in rows.items()}, about, class_names)


def _check_unused(recipe: Recipe, *keys: str) -> None:
    """Refuses keys that mean nothing for what the builder returned: they would be ignored in silence."""
    for key in keys:
        default = type(recipe.data).model_fields[key].get_default(call_default_factory=True)
        if getattr(recipe.data, key) != default:
            owner = "tables" if key in _OF_TABLES else "tables, and rows that are dicts"
            raise DataError(f"`data.{key}` is for {owner}, and the builder returned other data. Remove it.")


def _by_names(returned: Mapping[str, Any]) -> Examples:
    known = [*ARRAY_NAMES, "class_names"]
    unknown = [str(name) for name in returned if name not in known]
    missing = [name for name in ARRAY_NAMES[:4] if name not in returned]
    if unknown or missing:
        wrong = did_you_mean(unknown[0], known) if unknown else f" {quote(missing)} are missing."
        raise DataError(
            f"A dict of arrays by name holds {quote(ARRAY_NAMES, limit=9)}. Received: {quote(returned, limit=9)}."
            f"{wrong}"
        )
    arrays: dict[str, Any] = {name: returned.get(name) for name in ARRAY_NAMES}
    return Examples(**arrays, class_names=tuple(map(str, returned.get("class_names", ()))))


def _parts(returned: Any, missing: Sequence[str] | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns rows by the name of their split, empty for rows that are still to be split; and names of classes."""
    if isinstance(returned, Mapping) and any(name in SPLITS for name in returned):
        return {str(name): _plain(part, str(name), missing) for name, part in returned.items()}, ()
    if isinstance(returned, tuple | list) and len(returned) == 2 and all(map(_is_pair_of_arrays, returned)):
        return {"train": tuple(returned[0]), "test": tuple(returned[1])}, ()  # as Keras' `load_data`
    splits = tf.data.Dataset | keras.utils.PyDataset
    if (
        isinstance(returned, tuple | list)
        and 0 < len(returned) <= 3
        and all(isinstance(part, splits) or _is_table(part) or _is_pair_of_arrays(part) for part in returned)
    ):
        raise DataError(
            f"Rows of several splits are named. The builder returned a {type(returned).__name__} of {len(returned)} "
            "without names. Return a dict: `{'train': ..., 'test': ...}`."
        )
    class_names: Any = ()
    if isinstance(returned, Mapping):
        class_names = returned.get("class_names", returned.get("target_names"))
    return {"": _plain(returned, "table", missing)}, () if class_names is None else tuple(map(str, class_names))


def _is_pair_of_arrays(value: Any) -> bool:
    return _is_short(value) and all(getattr(each, "shape", ()) or isinstance(each, Mapping) for each in value)


def _is_short(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) in (2, 3)


def _plain(part: Any, name: str, missing: Sequence[str] | None) -> Any:
    """Returns rows as a pair of inputs and targets, or as a `Table`, where they are either in another form."""
    if isinstance(part, Mapping):
        for x, y in (("x", "y"), ("data", "target")):  # the second as scikit-learn has it
            if x in part and y in part:
                weights = part.get("sample_weight", part.get("weights"))
                return (part[x], part[y]) if weights is None else (part[x], part[y], weights)
        if part and all(hasattr(each, "__len__") and not isinstance(each, str) for each in part.values()):
            columns = {str(key): np.asarray(column).tolist() for key, column in part.items()}
            return table_of_columns(columns, name, missing)
    frame: Any = part
    if not _is_table(part):
        return part
    if isinstance(part, np.ndarray):
        columns: Any = {key: part[key].tolist() for key in part.dtype.names or ()}
    elif hasattr(frame, "iloc"):  # pandas
        columns = frame.to_dict("list")
    else:  # Arrow, or polars
        columns = frame.to_pydict() if hasattr(frame, "to_pydict") else frame.to_dict(as_series=False)
    return table_of_columns({str(key): column for key, column in columns.items()}, name, missing)


def _is_table(value: Any) -> bool:
    """Whether a value has columns with names, as data frames of pandas and polars, tables of Arrow and records have."""
    is_frame = hasattr(value, "columns") and (hasattr(value, "to_dict") or hasattr(value, "to_pydict"))
    return is_frame or (isinstance(value, np.ndarray) and value.dtype.names is not None)


def _rows_of(recipe: Recipe, part: Any, names: ItemNames, network: Any) -> tuple[SourceRows, str]:
    """Returns the rows of a part, and what it was, in words."""
    if isinstance(part, tf.data.Dataset):
        if part.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise DataError(
                "A dataset is read once, and its rows are kept. This one has no end. Remove `repeat()`; epochs are "
                "counted by `train.epochs`."
            )
        batched = _is_batched(part.element_spec, names, network)
        return SourceRows(read_once(part, names, batched=batched)), f"a `tf.data.Dataset`, {_READ_ONCE}"
    if isinstance(part, keras.utils.PyDataset):
        if part.num_batches is None:
            raise DataError(
                "A `PyDataset` is read once, and its rows are kept. This one has no end: give it `__len__`."
            )
        batches = (part[number] for number in range(part.num_batches))
        return SourceRows(read_once(batches, names, batched=True)), f"a `PyDataset`, {_READ_ONCE}"
    if isinstance(part, tuple) or (_is_short(part) and not any(isinstance(each, tuple | dict) for each in part)):
        if _is_short(part) and all(hasattr(each, "__len__") for each in part):
            _check_unused(recipe, *_OF_NAMES)
            x, y, *weights = part
            weights = as_array(weights[0], "weights") if weights else None
            return SourceRows(Split(as_arrays(x, "x"), as_arrays(y, "y"), weights)), "arrays"
    elif has_items(part) and not hasattr(part, "__array__"):
        read = indexed_rows(part, names, skip=recipe.data.on_error == "skip")
        unreadable = [f"item {index}" for index in read.unreadable]
        return SourceRows(read.split, column=read.column, unreadable=unreadable), f"a `{type(part).__name__}`, by index"
    is_stream = hasattr(part, "__iter__") and not has_items(part)
    advice = " It has no items by index: make a `tf.data.Dataset.from_generator` of it." if is_stream else ""
    raise DataError(f"A builder of data returns {FORMS}. Received: {_described(part)}.{advice}")


def _is_batched(spec: Any, names: ItemNames, network: Any) -> bool:
    """Whether elements are batches: Keras takes nothing else, but datasets of single rows are common."""
    leaves = tf.nest.flatten(spec)
    if any(leaf.shape.rank == 0 for leaf in leaves if getattr(leaf, "shape", None) is not None):
        return False
    inputs = network_inputs(network)
    name = next(iter(inputs))
    x = spec.get(names.inputs.get(name, "")) if isinstance(spec, dict) else spec[0] if isinstance(spec, tuple) else spec
    if isinstance(x, dict):
        x = x.get(name)
    elif isinstance(x, tuple):
        x = x[0]
    rank, shape = getattr(getattr(x, "shape", None), "rank", None), getattr(inputs[name], "shape", None)
    return rank is None or shape is None or rank >= len(shape)


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict with {quote(value, limit=9) or 'nothing'}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({quote(type(each).__name__ for each in value[:3])})"
    return f"a `{type(value).__name__}`"
