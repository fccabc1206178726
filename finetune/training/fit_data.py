"""The batches that `model.fit` would train on, for code that reads them itself: Keras' own adapters make them."""

import types
from collections.abc import Mapping
from typing import Any

import keras
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

    Raises:
        DataError: `fit` would not take this.
    """
    advice = "Pass arrays with `y`, or a `tf.data.Dataset`, a `PyDataset` or a generator of batches without."
    with explained(DataError, "Data are what `model.fit` takes.", advice):
        return keras_private.data_adapter(
            x,
            y,
            sample_weight=sample_weight,
            class_weight=class_weight,
            batch_size=batch_size or _DEFAULT_BATCH_SIZE,
            shuffle=shuffle and not isinstance(x, tf.data.Dataset | keras.utils.PyDataset | types.GeneratorType),
        ).get_tf_dataset()


def without_optionals(data: Any) -> Any:
    """Returns a batch with `None` in place of parts that are missing, which `tf.data` keeps as optionals."""
    return tf.nest.map_structure(lambda part: None if isinstance(part, tf.experimental.Optional) else part, data)
