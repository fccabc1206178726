"""What Keras' variables and TensorFlow's have in common, asked in one way."""

from typing import Any

import keras
import tensorflow as tf


def tf_variable(variable: Any) -> Any:
    """Returns the `tf.Variable` in which a `keras.Variable` keeps its value; anything else is returned as it is.

    TensorFlow's kernels, gradient tapes and devices know only the inner variable. While Keras runs a layer in a
    `StatelessScope`, `value` is the tensor that the layer sees instead: use this outside of layers.
    """
    return variable.value if isinstance(variable, keras.Variable) else variable


def variable_path(variable: Any) -> str:
    """Returns the path of a `keras.Variable`, as `body/dense/kernel`, or the name of a `tf.Variable`, `kernel:0`."""
    return getattr(variable, "path", variable.name)


def copies_of(variable: Any) -> tuple[Any, ...]:
    """Returns the copies that the replicas have of a variable; on a single device the `tf.Variable` alone."""
    held = tf_variable(variable)
    return tuple(held.values) if isinstance(held, tf.distribute.DistributedValues) else (held,)
