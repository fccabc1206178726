"""Sparse gradients, as embeddings have them: one row for every token, the same row many times."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf


def merge_rows(gradients: Iterable[Any]) -> list[Any]:
    """Adds up the rows of each sparse gradient that stand for the same row of the variable.

    Only then is its norm the norm of the gradient; Keras clips by the norm of the pieces.
    """
    return [_merged(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]


def _merged(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    rows, position = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def densify(gradients: Iterable[Any]) -> list[Any]:
    """Makes every sparse gradient a tensor of the variable's shape."""
    return [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]
