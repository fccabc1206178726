"""Sparse gradients, as embeddings have them: one row for every token, the same row many times."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf


def merge_rows(gradients: Iterable[Any]) -> list[Any]:
    """Adds up the rows of each sparse gradient that belong to the same row of the variable.

    Only then is its norm the norm of the gradient. Keras clips by the norm of the pieces, which is another number: two
    pieces (3, 4) of one row have norm 7.07, and the gradient (6, 8) has norm 10.

    Args:
        gradients: Dense gradients, which are returned as they are, `tf.IndexedSlices`, and `None`.
    """
    return [_with_unique_rows(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]


def _with_unique_rows(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    rows, position = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def densify(gradients: Iterable[Any]) -> list[Any]:
    """Converts every sparse gradient to a tensor of the variable's shape; repeated rows are added up."""
    return [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]
