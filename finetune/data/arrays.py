"""Arrays of NumPy out of whatever holds numbers or text: lists, tensors, columns of a data frame."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune.data.rows import Rows
from finetune.errors import DataError, quote
from finetune.machine_failures import raise_machine_failure

_PAD = "Pad, cut or resize the rows, as `keras.utils.pad_sequences` does."


def as_array(value: Any, name: str = "an array") -> np.ndarray | Rows:
    """Returns numbers or text as an array.

    Args:
        value: An array, a tensor of any library, nested lists, or a data frame or a column of it. A memory-mapped array
            stays in its file, and `Rows` are returned as they are.
        name: What messages call it.

    Raises:
        DataError: The rows differ in length, or hold Python objects that are neither numbers nor text.
    """
    if isinstance(value, Rows) or (isinstance(value, np.ndarray) and value.dtype.kind != "O"):
        return value
    # Tensors of PyTorch that have a gradient or lie on a device refuse to become arrays.
    value = value.detach().cpu() if hasattr(value, "detach") else value  # pyright: ignore[reportAttributeAccessIssue]
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise_machine_failure(error, f"Reading `{name}`")
        raise DataError(
            f"Rows must all have the same shape. `{name}` cannot become an array: {str(error).splitlines()[0]}. {_PAD}"
        ) from error
    if array.dtype.kind != "O":
        return array
    flat = array.ravel()
    if all(isinstance(each, str | bytes) for each in flat):
        return np.array([each.decode() if isinstance(each, bytes) else each for each in flat]).reshape(array.shape)
    if all(isinstance(each, bool | int | float | np.generic) for each in flat):  # as columns of mixed numbers
        return array.astype(np.float64)
    kinds = sorted({type(each).__name__ for each in flat})
    if {"list", "tuple", "ndarray"} & set(kinds):
        raise DataError(f"Rows must all have the same shape. Those of `{name}` differ in length. {_PAD}")
    raise DataError(f"Arrays hold numbers or text. `{name}` holds {quote(kinds)}. Convert its values to one of both.")


def as_arrays(value: Any, name: str = "an array") -> Any:
    """Returns a structure of arrays with every array as `as_array` returns it.

    A dict or a tuple is a structure, as is a list of arrays or tensors; other lists are the numbers of a single array.

    Args:
        value: The structure, or a single array.
        name: What messages call it.

    Raises:
        DataError: Something in it cannot become an array.
    """
    if value is None:
        return None
    if isinstance(value, Mapping) and not hasattr(value, "iloc"):
        return {str(key): as_arrays(each, f"{name}/{key}") for key, each in value.items()}
    is_structure = isinstance(value, tuple) or (isinstance(value, list) and value and _is_array(value[0]))
    if is_structure and any(_is_array(each) or isinstance(each, Mapping | list) for each in value):
        return tuple(as_arrays(each, f"{name}/{number}") for number, each in enumerate(value))
    return as_array(value, name)


def _is_array(value: Any) -> bool:
    """Whether a value has rows itself: an array or a tensor, but not a number of NumPy."""
    return isinstance(value, Rows) or (hasattr(value, "__array__") and bool(getattr(value, "shape", ())))
