"""Sparse gradients, as embeddings have them: one row for every token, the same row many times."""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf


def merge_rows(gradients: Iterable[Any]) -> list[Any]:
    """Adds up the rows of each sparse gradient that belong to the same row of the variable.

    Only then is its norm the norm of the gradient. Keras clips by the norm of the pieces, which is another number: two
    pieces (3, 4) of one row have norm 7.07, and the gradient (6, 8) has norm 10.

    Args:
        gradients: Dense gradients, which are returned as they are, `tf.IndexedSlices`, and `None`.
    """
    return [_with_unique_rows(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]


def merge_to_clip(gradients: list[Any], optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """Returns `merge_rows(gradients)` if the optimizer clips gradients, otherwise the gradients as they are.

    Not always merged: Keras' rules treat the pieces of a repeated row each in their own way (Adam squares them before
    it adds them up), and equal groups have the bits of Keras.
    """
    clips = any(getattr(optimizer, setting) for setting in ("clipnorm", "clipvalue", "global_clipnorm"))
    return merge_rows(gradients) if clips else gradients


def _with_unique_rows(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    rows, position = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def densify(gradients: Iterable[Any]) -> list[Any]:
    """Converts every sparse gradient to a tensor of the variable's shape; repeated rows are added up."""
    return [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]
