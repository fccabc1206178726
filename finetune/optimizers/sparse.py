"""Sparse gradients, as embeddings have them: one row for every token, the same row many times.

A `tf.IndexedSlices` is a list of pieces, each with the row of the variable that it belongs to; the gradient of a row is
the sum of its pieces. Update rules that are not linear depend on when that sum is taken. Adam, for pieces a and b:

- Keras adds `a^2 + b^2` to the average of squares: the pieces are squared one by one;
- TF1 adds `(a + b)^2`, which is also what a dense gradient of the same numbers gives.

An embedding moves up to twice as far by the first rule. A `GroupedOptimizer` uses one of the two for whatever options
it has: that of Keras, or with `merge_rows=True` that of TF1. Keras itself changes from the first to the second with
`global_clipnorm`, since it multiplies a sparse gradient by a tensor, which makes it dense; here it stays sparse. Only
`gradient_accumulation_steps` adds up the pieces in any case, because gradients are accumulated in dense variables.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


def merge_rows(gradients: Iterable[Any]) -> list[Any]:
    """Adds up the pieces of each sparse gradient that belong to the same row of the variable.

    Then its norm is that of the gradient: two pieces (3, 4) of one row have norm 7.07, their sum (6, 8) has norm 10.

    Args:
        gradients: Dense gradients, which are returned as they are, `tf.IndexedSlices`, and `None`.
    """
    return [_with_unique_rows(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]


def _with_unique_rows(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    rows, position = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def on_values(clip: Callable[[list[Any]], list[Any]], gradients: Iterable[Any]) -> list[Any]:
    """Calls a function with the pieces of sparse gradients in place of these, which so remain sparse.

    Args:
        clip: Takes and returns tensors and `None`, each of the same shape.
        gradients: Dense gradients, `tf.IndexedSlices` and `None`.
    """
    gradients = list(gradients)
    values = clip([g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients])
    return [
        tf.IndexedSlices(value, g.indices, g.dense_shape) if isinstance(g, tf.IndexedSlices) else value
        for g, value in zip(gradients, values, strict=True)
    ]


@dataclass(frozen=True)
class DivisibleSlices:
    """A sparse gradient that can be divided: Keras' `apply` unscales every gradient by `gradient / scale`.

    Attributes:
        gradient: The gradient, which TensorFlow does not divide.
    """

    gradient: tf.IndexedSlices

    def __truediv__(self, scale: Any) -> tf.IndexedSlices:
        return tf.IndexedSlices(self.gradient.values / scale, self.gradient.indices, self.gradient.dense_shape)


def divisible(gradients: Iterable[Any]) -> list[Any]:
    """Returns the gradients with every sparse one as `DivisibleSlices`."""
    return [DivisibleSlices(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]
