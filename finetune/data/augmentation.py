"""Augmentation of training rows by Keras layers, in which a row has the same picture whoever asks for it.

What a layer draws depends on (seed, epoch, row) alone: neither on the batch that the row is in, nor on the number of
threads or workers, nor on where training was resumed. Keras' layers draw from `SeedGenerator`s, whose state is a
variable. Here each call runs in a `keras.StatelessScope` in which that state is a hash of (seed, epoch, row), so a
layer needs no state, and any layer of Keras can be used.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from finetune.data.rows import rows_of, take
from finetune.errors import DataError, quote


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Layers that change training rows.

    Attributes:
        row_layers: Called on each row by itself, in this order.
        batch_layers: Called afterwards on each batch: layers such as `MixUp` that blend its rows, and their targets and
            weights.
        leaf: Which of the inputs is changed, counted in the order of `tf.nest.flatten`.
        dtype: Type of this input, to which what the layers return is converted.
        seed: Seed of the random numbers.
    """

    row_layers: Sequence[keras.layers.Layer]
    batch_layers: Sequence[keras.layers.Layer]
    leaf: int
    dtype: tf.DType
    seed: int = 0
    _states: dict[int, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for layer in (*self.row_layers, *self.batch_layers):
            # Each state has the shape `(2,)`; nothing else in such a layer is a variable.
            self._states[id(layer)] = list({id(v): v for v in layer.non_trainable_variables}.values())

    def row(self, value: Any, epoch: Any, row: Any) -> Any:
        """Returns what a row of the input looks like in an epoch.

        Args:
            value: The row, of the shape of a single row.
            epoch: The epoch, from 0: a scalar of type int64.
            row: Its number among the training rows: a scalar of type int64.
        """
        if not self.row_layers:
            return value
        batch = value[tf.newaxis]
        for number, layer in enumerate(self.row_layers):
            batch = self._called(layer, batch, epoch, row, number)
        return tf.ensure_shape(_converted(batch[0], self.dtype), value.shape)

    def batch(self, data: tuple[Any, ...], epoch: Any, step: Any) -> tuple[Any, ...]:
        """Returns a batch after the layers that blend its rows.

        Args:
            data: The batch: `(x, y)` or `(x, y, weights)`.
            epoch: The epoch, from 0: a scalar of type int64.
            step: Number of the batch in the epoch.
        """
        if not self.batch_layers:
            return data
        x, *others = data
        inputs = tf.nest.flatten(x)
        # The layers blend labels of shape `(batch, classes)`; targets of any shape become that for the call.
        flat = [tf.cast(part, keras.config.floatx()) for part in tf.nest.flatten(others)]
        widths = [tf.shape(part) for part in flat]
        labels = tf.concat([tf.reshape(part, (shape[0], -1)) for part, shape in zip(flat, widths, strict=True)], 1)
        sizes = [tf.reduce_prod(shape[1:]) for shape in widths]
        blended: Any = {"images": inputs[self.leaf], "labels": labels}
        for number, layer in enumerate(self.batch_layers, start=len(self.row_layers)):
            blended = self._called(layer, blended, epoch, step, number)
        inputs[self.leaf] = tf.ensure_shape(_converted(blended["images"], self.dtype), inputs[self.leaf].shape)
        parts = tf.split(blended["labels"], sizes, axis=1, num=len(sizes))
        mixed = [
            tf.ensure_shape(tf.reshape(part, shape), each.shape)
            for part, shape, each in zip(parts, widths, flat, strict=True)
        ]
        return tf.nest.pack_sequence_as(x, inputs), *tf.nest.pack_sequence_as(others, mixed)

    def rows(self, data: tuple[Any, ...], epoch: Any, chosen: Any, step: Any) -> tuple[Any, ...]:
        """Returns a whole batch as it looks in an epoch.

        Args:
            data: The batch: `(x, y)` or `(x, y, weights)`.
            epoch: The epoch, from 0: a scalar of type int64.
            chosen: Number of each row of the batch among the training rows, int64, shape `(batch,)`.
            step: Number of the batch in the epoch.
        """
        x, *others = data
        inputs = tf.nest.flatten(x)
        value = inputs[self.leaf]
        spec = tf.TensorSpec(value.shape[1:], value.dtype)
        inputs[self.leaf] = tf.map_fn(
            lambda each: self.row(each[0], epoch, each[1]), (value, chosen), fn_output_signature=spec
        )
        return self.batch((tf.nest.pack_sequence_as(x, inputs), *others), epoch, step)

    def _called(self, layer: Any, data: Any, epoch: Any, number: Any, place: int) -> Any:
        """Calls a layer with random numbers that depend on the epoch, the row or step, and the layer's place alone."""
        stateless: Any = tf.random  # TensorFlow's stubs do not know `experimental`
        fold = stateless.experimental.stateless_fold_in
        seed = tf.stack([tf.constant(self.seed % 2**63, tf.int64), tf.cast(epoch, tf.int64)])
        seed = fold(fold(seed, tf.cast(number, tf.int64)), place)
        states = [(state, fold(seed, index)) for index, state in enumerate(self._states[id(layer)])]
        with keras.StatelessScope(state_mapping=states), _python_seeded(self.seed + place):
            return layer(data, training=True)


@contextmanager
def _python_seeded(seed: int) -> Iterator[None]:
    """Lets `AugMix`, which chooses operations by Python's generator while it is traced, always choose the same."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def _converted(value: Any, dtype: tf.DType) -> Any:
    return tf.saturate_cast(tf.round(value), dtype) if dtype.is_integer else tf.cast(value, dtype)


def augmented_input(x: Any, *, images: bool) -> tuple[int, Any]:
    """Finds the input that is augmented: the only one of images, or else the only input of numbers.

    Args:
        x: Inputs of the training rows: a structure of arrays and `Rows`.
        images: Whether the layers take images alone.

    Returns:
        Its place among the inputs, in the order of `tf.nest.flatten`, and its first rows, 16 at most.

    Raises:
        DataError: There is no such input, or there are several.
    """
    rows = rows_of(x)
    first = [take(each, tf.range(min(16, each.length), dtype=tf.int64)) for each in tf.nest.flatten(rows)]
    shapes = [f"{'x'.join(map(str, value.shape[1:])) or 'a single value'} of {value.dtype.name}" for value in first]
    of_images = [place for place, value in enumerate(first) if value.shape.rank == 4 and value.dtype != tf.string]
    if len(of_images) > 1:
        raise DataError(
            f"augments a single input of images, and the data have {len(of_images)}: {quote(shapes)}. Put the layers "
            "into the network, in front of the input that they are for"
        )
    if of_images:
        return of_images[0], first[of_images[0]]
    if images:
        raise DataError(
            "has layers for images, whose rows have the shape (height, width, channels). The inputs of the data are "
            f"{quote(shapes)} per row. Use `GaussianNoise`, `GaussianDropout` or `Dropout` for other numbers, or "
            "remove it"
        )
    floats = [place for place, value in enumerate(first) if value.dtype.is_floating]
    if len(floats) != 1:
        raise DataError(
            f"changes a single input of floating-point numbers. The inputs of the data are {quote(shapes)} per row. "
            "Put the layers into the network, or remove them"
        )
    return floats[0], first[floats[0]]
