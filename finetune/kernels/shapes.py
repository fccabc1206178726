"""Shapes of which a part is known only when the graph runs: the batch, or the length of a text."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def lengths_of(x: tf.Tensor) -> list[Any]:
    """Returns the length of each axis: an integer, or a scalar tensor where it is not known."""
    return [tf.shape(x)[axis] if length is None else length for axis, length in enumerate(x.shape)]


def reshape(x: tf.Tensor, lengths: Sequence[Any]) -> tf.Tensor:
    """Reshapes a tensor, and keeps what is known of its shape.

    Args:
        x: The tensor.
        lengths: The length of each axis: an integer, a scalar tensor where it is not known, or `None` for what remains.
    """
    known = [length if isinstance(length, int) else None for length in lengths]
    if known.count(None) > 1:
        return tf.reshape(x, tf.stack(lengths))
    return x if x.shape.as_list() == known else tf.reshape(x, [-1 if length is None else length for length in known])
