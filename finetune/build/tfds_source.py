"""From TensorFlow Datasets to examples, by index, through `tfds.data_source`."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.build.image_source import image_options
from finetune.build.source_keys import item_names, network_inputs
from finetune.build.source_splits import SourceRows, split_examples
from finetune.data.examples import SPLITS, Examples
from finetune.data.file_names import RowPlaces
from finetune.data.images import image_of_bytes
from finetune.data.indexed import ItemNames, indexed_rows, part_of
from finetune.data.rows import Rows, StoredRows
from finetune.errors import DataError, PartError, did_you_mean, quote, reason
from finetune.machine_failures import raise_machine_failure
from finetune.recipe.loader import placed, resolve_path
from finetune.recipe.schema import Recipe


def tfds_examples(recipe: Recipe, name: str, network: keras.Model | None) -> Examples:
    """Makes examples of a prepared data set of TensorFlow Datasets.

    Args:
        recipe: The recipe.
        name: `name` or `name/config:version`.
        network: The network, whose inputs say what becomes of the features.

    Raises:
        DataError: The package is missing, or the data set is not prepared for reading by index.
    """
    try:
        tfds: Any = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise DataError(
            "`tfds` is read by the package `tensorflow-datasets`, which is not installed. Install it: "
            "`pip install 'discriminative-finetune[tfds]'`."
        ) from error
    folder = resolve_path(recipe, recipe.data.data_dir) if recipe.data.data_dir else None
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        known = list(builder.info.splits)
    except Exception as error:  # a name that does not exist, no network, another format: errors of many classes
        raise_machine_failure(error, f"Opening `{name}`")
        raise DataError(
            f"`tfds` names a data set. `{name}` cannot be opened: {reason(error)}. Prepare it once: `tfds.builder("
            f"'{name}', file_format='array_record').download_and_prepare()`, and name its folder with `data_dir`."
        ) from error
    if not known:
        with placed(recipe, "data", "data_dir" if recipe.data.data_dir else "tfds"):
            raise DataError(
                f"`{name}` is not prepared in `{builder.data_dir}` for reading by index. Do so once: `tfds.builder("
                f"'{name}', file_format='array_record').download_and_prepare()`."
            )
    asked = recipe.data.splits or {split: split for split in SPLITS if split in known}
    asked = asked or {"train": known[0]}
    names = _names(recipe, network)
    features: dict[str, Any] = dict(builder.info.features.items())
    for part in (*names.inputs.values(), *names.target):
        if part.partition("/")[0] not in features:
            raise PartError(
                f"`{name}` has no feature `{part}`. It has {quote(features, limit=12)}."
                f"{did_you_mean(part, list(features))}",
                part,
            )
    images = {of: part for of, part in names.inputs.items() if isinstance(features.get(part), tfds.features.Image)}
    encoded = {part: tfds.decode.SkipDecoding() for part in images.values()}
    inputs = network_inputs(network)
    parts = {}
    for split, expression in asked.items():
        try:
            source = builder.as_data_source(split=expression, decoders=encoded or None)
        except Exception as error:  # a split that does not exist, an expression that cannot be read
            raise_machine_failure(error, f"Opening `{name}`")
            with placed(recipe, "data", "splits", split):
                raise DataError(
                    f"`splits` names splits of `{name}`: {quote(known)}. Received: `{expression}`: {reason(error)}."
                ) from error
        read = indexed_rows(source, names, skip=recipe.data.on_error == "skip", name="row")
        options = {of: image_options(recipe, inputs.get(of)) for of in images}
        x = read.split.x
        x = (
            {of: _decoded(rows, options[of]) if of in options else rows for of, rows in x.items()}
            if isinstance(x, dict)
            else _decoded(x, options[""])
            if options
            else x
        )
        kept = np.setdiff1d(np.arange(len(source)), np.array(list(read.unreadable), np.int64))
        stored = {of: _stored(source, kept, part) for of, part in names.inputs.items()}
        x = (
            {of: replace(rows, stored=stored[of]) for of, rows in x.items()}
            if isinstance(x, dict)
            else replace(x, stored=stored[""])
        )
        places = RowPlaces(lambda index, of=expression: f"{of}:{index}", kept)
        skipped = [f"{expression}:{index}" for index in read.unreadable]
        parts[split] = SourceRows(replace(read.split, x=x), read.column, places, skipped)
    label: Any = features[names.target[0]] if len(names.target) == 1 else None
    class_names: Sequence[str] = label.names if isinstance(label, tfds.features.ClassLabel) else ()
    about = {"kind": "tfds", "name": builder.info.full_name, "splits": dict(asked), "features": sorted(features)}
    return split_examples(recipe, parts, about, class_names)


def _names(recipe: Recipe, network: Any) -> ItemNames:
    """Returns which features are inputs and target: `as` has both in a list."""
    if not recipe.data.as_:
        return item_names(recipe, network)
    column = (recipe.data.split.column if recipe.data.split else None) or ""
    [of] = network_inputs(network) if len(network_inputs(network)) == 1 else [None]
    if of is None:
        raise DataError(
            "`as` names the feature of an only input, and the network has several. Write `inputs` and `target`."
        )
    return ItemNames({of: recipe.data.as_[0]}, recipe.data.as_[1:], column)


def _stored(source: Any, kept: np.ndarray, part: str) -> StoredRows:
    """Returns a feature of the items of a source as it is stored."""

    def read(row: int) -> bytes:
        value = part_of(source[int(kept[row])], part)
        return value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()

    return StoredRows(read)


def _decoded(rows: Rows, options: dict[str, Any]) -> Rows:
    """Returns rows of encoded images as images."""
    take_one: Any = rows.take_row

    def take_row(index: Any) -> Any:
        return image_of_bytes(take_one(index), **options)

    shape = (*options["size"], options["channels"])

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None,), tf.int64)])
    def several(indices: Any) -> Any:
        return tf.map_fn(take_row, indices, fn_output_signature=tf.TensorSpec(shape, tf.float32))

    return Rows(len(rows), lambda indices: several(tf.cast(indices, tf.int64)), take_row=take_row)
