"""The batches that `model.fit` would train on, for code that reads them itself: Keras' own adapters make them."""

import types
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune import keras_private
from finetune.errors import DataError
from finetune.training.try_examples import explained

_DEFAULT_BATCH_SIZE = 32  # as in `fit`


def fit_batches(
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
    batch_size: int | None = None,
    shuffle: bool = False,
    model: Any = None,
) -> tf.data.Dataset:
    """Returns the batches of an epoch as `model.fit` would train on them: `(x,)`, `(x, y)` or `(x, y, sample_weight)`.

    Args:
        x: Inputs as `fit` takes them: arrays, tensors, structures of them, a `tf.data.Dataset`, a `PyDataset`, a Python
            generator.
        y: Targets of arrays.
        sample_weight: Weights of the rows of arrays, one array or one for each output.
        class_weight: Weight of each class, which becomes weights of rows.
        batch_size: Rows in a batch of arrays; 32 by default.
        shuffle: Whether the rows of arrays have another order in each iteration.
        model: The model that is trained: a KerasHub task with a preprocessor makes its inputs of raw rows itself.

    Raises:
        DataError: `fit` would not take this.
    """
    advice = "Pass arrays with `y`, or a `tf.data.Dataset`, a `PyDataset` or a generator of batches without."
    with explained(DataError, "Data are what `model.fit` takes.", advice):
        if preprocesses(model):
            return _preprocessed(model, x, y, sample_weight, class_weight, batch_size or _DEFAULT_BATCH_SIZE, shuffle)
        return keras_private.data_adapter(
            x,
            y,
            sample_weight=sample_weight,
            class_weight=class_weight,
            batch_size=batch_size or _DEFAULT_BATCH_SIZE,
            shuffle=shuffle and not isinstance(x, tf.data.Dataset | keras.utils.PyDataset | types.GeneratorType),
        ).get_tf_dataset()


def preprocesses(model: Any) -> bool:
    """Returns whether the `fit` of a model makes its inputs of raw rows, such as strings, as that of KerasHub does."""
    return callable(getattr(model, "preprocess_samples", None)) and getattr(model, "preprocessor", None) is not None


def preprocess(model: Any, batch: Any) -> tuple[Any, ...]:
    """Returns inputs, targets and weights of rows, or `None`, as such a model makes them of a batch of raw rows."""
    parts: Any = keras.utils.unpack_x_y_sample_weight(batch)
    return keras.utils.unpack_x_y_sample_weight(model.preprocess_samples(*parts))


def strings_as_tensors(arrays: Any) -> Any:
    """Returns arrays of strings, which Keras cannot slice, as tensors, in any structure of dicts and tuples."""
    if isinstance(arrays, Mapping):
        return {name: strings_as_tensors(part) for name, part in arrays.items()}
    if isinstance(arrays, tuple):
        return tuple(strings_as_tensors(part) for part in arrays)
    array: Any = np.asarray(arrays) if isinstance(arrays, list) else arrays
    return tf.constant(array) if getattr(getattr(array, "dtype", None), "kind", "") in ("U", "S", "O") else array


def _preprocessed(
    model: Any, x: Any, y: Any, sample_weight: Any, class_weight: Any, batch_size: int, shuffle: bool
) -> tf.data.Dataset:
    """Returns the batches of a model that makes its inputs itself, as its `fit` does with `tf.data`."""
    if isinstance(x, keras.utils.PyDataset | types.GeneratorType):
        raise TypeError(f"`{type(model).__name__}` preprocesses arrays and datasets, and no `{type(x).__name__}`")
    rows = x
    if not isinstance(x, tf.data.Dataset):
        rows = tf.data.Dataset.from_tensor_slices(keras.utils.pack_x_y_sample_weight(x, y, sample_weight))
        rows = (rows.shuffle(max(1, len(rows)), reshuffle_each_iteration=True) if shuffle else rows).batch(batch_size)

    def prepare(*batch: Any) -> Any:
        parts = preprocess(model, batch)
        # Without parts that are missing, which `tf.data` would keep as optionals.
        parts = keras_private.with_class_weights(parts, class_weight) if class_weight else parts
        return tuple(part for part in parts if part is not None)

    return rows.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)


def without_optionals(data: Any) -> Any:
    """Returns a batch with `None` in place of parts that are missing, which `tf.data` keeps as optionals."""
    return tf.nest.map_structure(lambda part: None if isinstance(part, tf.experimental.Optional) else part, data)
