"""Arrays in memory that TensorFlow can use as it is: one that is not aligned is copied."""

from math import prod

import numpy as np

ALIGNMENT = 64  # bytes; what TensorFlow's kernels need


def aligned_array(shape: tuple[int, ...], dtype: np.dtype | type = np.uint8) -> np.ndarray:
    """Returns an array of zeros that begins at a multiple of 64 bytes; its base are bytes."""
    nbytes = prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def finished_bytes(array: np.ndarray) -> np.ndarray | None:
    """Returns the bytes of an array of `aligned_array` that is read only by now, so that they may be shared.

    Args:
        array: Any array. `None` is returned for one that may still be written, or that TensorFlow would copy.
    """
    base = array.base
    if not isinstance(base, np.ndarray) or base.dtype != np.uint8 or not base.flags.writeable:
        return None
    if array.flags.writeable or not array.flags.c_contiguous or array.ctypes.data % ALIGNMENT:
        return None
    start = array.ctypes.data - base.ctypes.data
    return base[start : start + array.nbytes]
