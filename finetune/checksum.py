"""Fingerprints that prove which values a weight holds."""

import hashlib
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.variables import tf_variable


def checksum(values: Any) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of the values' bytes.

    Weights of one shape and type have equal checksums when they are equal bit for bit: `-0.0` is not `0.0`, and a
    NaN equals itself.

    Args:
        values: A `keras.Variable`, `tf.Variable`, tensor or array of any shape and type, bfloat16 and scalars included.

    Returns:
        Sixteen hexadecimal digits.
    """
    return hashlib.sha256(as_array(values).tobytes()).hexdigest()[:16]


def as_array(values: Any) -> np.ndarray:
    """Returns the values of a variable, tensor or array without changing their type."""
    stored = tf_variable(values)
    return np.asarray(stored.numpy() if tf.is_tensor(stored) or isinstance(stored, tf.Variable) else stored)
