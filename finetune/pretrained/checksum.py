"""Fingerprints that prove which values a weight holds."""

import hashlib
from typing import Any

import keras


def checksum(values: Any) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of the values' bytes.

    Weights of one shape and type have equal checksums when they are equal bit for bit: `-0.0` is not `0.0`, and a
    NaN equals itself.

    Args:
        values: A `keras.Variable`, `tf.Variable`, tensor or array of any shape and type, bfloat16 and scalars included.

    Returns:
        Sixteen hexadecimal digits.
    """
    array: Any = keras.ops.convert_to_numpy(values)
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]
