"""From TFRecord files to examples."""

import hashlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.build.image_source import image_options
from finetune.build.source_keys import item_names, network_inputs
from finetune.build.source_splits import SourceRows, split_examples
from finetune.data.arrays import as_array
from finetune.data.examples import Examples, Split
from finetune.data.file_names import RowPlaces
from finetune.data.images import image_of_bytes
from finetune.data.record_features import (
    LOOKED_AT,
    Feature,
    check_features,
    feature_bytes,
    look_at,
    make_feature,
    parse,
)
from finetune.data.rows import Rows, StoredRows
from finetune.data.tfrecord_files import Records, read_index
from finetune.errors import DataError, reason
from finetune.files.patterns import matching_files
from finetune.machine_failures import raise_machine_failure
from finetune.recipe.loader import resolve_path
from finetune.recipe.schema import Recipe

_SMALL_TARGET = 1024  # values; larger targets, such as masks, are read when they are needed


def tfrecord_examples(recipe: Recipe, files: Mapping[str, Any], network: keras.Model | None) -> Examples:
    """Makes examples of the records in some files.

    Args:
        recipe: The recipe.
        files: Files or patterns by the name of their split; or all files, by an empty name.
        network: The network, whose inputs say what becomes of the features.

    Raises:
        DataError: The files cannot be read, or their features do not fit the recipe or the network.
    """
    paths = {
        name: matching_files([resolve_path(recipe, each) for each in of], "files of records")
        for name, of in files.items()
    }
    records = {name: read_index(of) for name, of in paths.items()}
    names = item_names(recipe, network)
    needed = [*names.inputs.values(), *names.target, *([names.column] if names.column else [])]
    looks = look_at(_first_records(recipe, next(iter(records.values()))))
    features = {name: look for name, look in looks.items() if isinstance(look, Feature)}
    for name, spec in recipe.data.features.items():
        size: Any = spec.size
        dtype = None if spec.decode not in (None, "none") else spec.dtype or "string"
        features[name] = make_feature(dtype, tuple(spec.shape), spec.length, tuple(size) if size else None)
    check_features([*needed, *recipe.data.features], features, looks)
    features = {name: features[name] for name in needed}
    inputs = network_inputs(network)
    reader = _Reader(recipe, features, {part: inputs.get(name) for name, part in names.inputs.items()})
    parts = {name: reader.rows(of, names) for name, of in records.items()}
    shown = [path.name for of in paths.values() for path in of]
    about = {
        "kind": "tfrecord",
        "files": shown if len(shown) <= 5 else [*shown[:5], f"and {len(shown) - 5} more"],
        "features": {
            name: look.described() if isinstance(look, Feature) else look.partition(":")[0]
            for name, look in {**looks, **features}.items()
        },
    }
    return split_examples(recipe, parts, about)


def _first_records(recipe: Recipe, records: Records) -> list[bytes]:
    first = []
    for index in range(min(len(records), LOOKED_AT)):
        try:
            first.append(records[index])
        except DataError:
            if recipe.data.on_error == "stop":
                raise
    return first


class _Reader:
    """Reads records as rows."""

    def __init__(self, recipe: Recipe, features: Mapping[str, Feature], network_inputs: Mapping[str, Any]) -> None:
        self._recipe, self._features = recipe, features
        self._images: dict[str, Any] = {}
        for name, feature in features.items():
            if feature.is_image:
                self._images[name] = image_options(recipe, network_inputs.get(name), feature.size)

    def rows(self, records: Records, names: Any) -> SourceRows:
        """Returns the rows of some records; those that are damaged are skipped where the recipe says so."""
        targets = {name: self._features[name] for name in {*names.target, *filter(None, [names.column])}}
        large = {name for name in targets if self._images.get(name) or np.prod(targets[name].shape) > _SMALL_TARGET}
        small = {name: feature for name, feature in targets.items() if name not in large}
        kept, values, unreadable = self._small_values(records, small)
        x = {name: self._leaf(records, kept, part) for name, part in names.inputs.items()}
        y: list[Any] = [values[part] if part in values else self._leaf(records, kept, part) for part in names.target]
        if len(y) > 1 and large:
            raise DataError("Several targets make a vector, and images have no place in it. Name a single target.")
        return SourceRows(
            Split(x[""] if list(x) == [""] else x, y[0] if len(y) == 1 else np.stack(y, axis=-1)),
            column=values.get(names.column),
            places=RowPlaces(records.place, kept),
            unreadable=unreadable,
        )

    def _small_values(
        self, records: Records, features: Mapping[str, Feature]
    ) -> tuple[np.ndarray, dict[str, np.ndarray], list[str]]:
        """Returns the readable records, values of features in them, and the places of others.

        TensorFlow reads the files from beginning to end, in a fraction of the time; record by record only to say which
        is at fault.
        """
        everything = np.arange(len(records))
        if not features and self._recipe.data.on_error == "stop":
            return everything, {}, []
        batches = tf.data.TFRecordDataset([str(path) for path in records.paths])
        batches = batches.map(lambda each: parse(each, features)).batch(1024)
        try:
            read = [{name: np.asarray(value) for name, value in batch.items()} for batch in batches]
            kept, unreadable = everything, []
        except tf.errors.OpError as error:
            raise_machine_failure(error, "Reading the records")
            read, numbers, unreadable = [], [], []
            for index in range(len(records)):
                try:
                    parsed = parse(tf.constant(records[index]), features)
                except Exception as error:  # a damaged record, or a feature that is missing or of another type
                    raise_machine_failure(error, f"Reading `{records.place(index)}`")
                    if self._recipe.data.on_error == "stop":
                        raise DataError(
                            f"Every record must be readable. `{records.place(index)}` is not: {reason(error)}. Write "
                            "it again, or set `data.on_error: skip`."
                        ) from error
                    unreadable.append(records.place(index))
                else:
                    numbers.append(index)
                    read.append({name: np.asarray(value)[np.newaxis] for name, value in parsed.items()})
            kept = np.array(numbers, np.int64)
        joined = {name: np.concatenate([batch[name] for batch in read]) for name in features if read}
        values: dict[str, Any] = {name: as_array(value, name) for name, value in joined.items()}  # text is decoded
        return kept, values, unreadable

    def _leaf(self, records: Records, kept: np.ndarray, name: str) -> Rows:
        """Returns the values of a feature as rows."""
        feature, options = self._features[name], self._images.get(name)

        def read(index: Any) -> bytes:
            return records[int(kept[index])]

        def take_row(index: Any) -> Any:
            serialized: Any = tf.numpy_function(read, [index], tf.string, stateful=False)
            value = parse(tf.ensure_shape(serialized, ()), {name: feature})[name]
            if options:
                return image_of_bytes(value, **options)
            return tf.cast(value, keras.config.floatx()) if value.dtype.is_floating else value

        shape = (
            (*options["size"], options["channels"])
            if options
            else (feature.length,)
            if feature.length
            else feature.shape
        )
        dtype: Any = tf.float32 if options else tf.as_dtype(feature.dtype)
        dtype = tf.as_dtype(keras.config.floatx()) if dtype.is_floating else dtype

        # A function of its own: outside of a graph `map_fn` logs warnings where a record cannot be read.
        @tf.function(autograph=False, input_signature=[tf.TensorSpec((None,), tf.int64)])
        def several(indices: Any) -> Any:
            return tf.map_fn(take_row, indices, fn_output_signature=tf.TensorSpec(shape, dtype))

        digest = hashlib.sha256(f"{name} {feature} {options}".encode() + kept.tobytes())
        stats = "".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n" for path in records.paths)
        digest.update(stats.encode())
        return Rows(
            len(kept),
            lambda indices: several(tf.cast(indices, tf.int64)),
            fingerprint=digest.hexdigest(),
            take_row=take_row,
            stored=StoredRows(lambda row: feature_bytes(records[int(kept[row])], name)),
        )
