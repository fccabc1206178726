"""Keys of features: a hash of everything that their values depend on."""

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.checksum import as_array
from finetune.training.features.graph import Step

_CHUNK_ROWS = 4096
_PLAIN = (str, int, float, complex, bool, bytes, type(None), slice, range, np.dtype, tf.DType, np.generic, type(...))


def feature_keys(
    steps: Iterable[Step], data: Any, *, inference: frozenset[int] = frozenset(), passes: int = 1
) -> dict[int, str] | None:
    """Returns a key for every value that the steps compute, by its number.

    A key depends on the bytes of the data, on the calls that lead to the value, their layers' configs, weights, types
    and what of them is frozen, on the code of layers that are not Keras' own, on the versions of Keras and TensorFlow
    and, where there are several passes, on the random state of the layers.

    Args:
        steps: The steps in front of a cut, in order.
        data: The inputs by number, as arrays.
        inference: Ids of layers that run in inference mode.
        passes: How many passes there will be.

    Returns:
        The keys; `None` if something is among it of which nobody can say whether it stays the same.
    """
    try:
        keys = {number: _digest("data", _content(array)) for number, array in data.items()}
        for step in steps:
            own = _step(step, id(step.operation) in inference, passes)
            read = [keys[number] for number in step.reads]
            for position, number in enumerate(step.writes):
                keys[number] = _digest(own, *read, str(position), str(passes))
    except _UnknownError:
        return None
    return keys


class _UnknownError(Exception):
    """Something has no content that can be told."""


def _step(step: Step, infers: bool, passes: int) -> str:
    about = [keras.__version__, tf.__version__, str(infers), _content(list(step.constants))]
    operation = step.operation
    if operation is None:
        return _digest("in", *about)
    kind = type(operation)
    about += [f"{kind.__module__}.{kind.__qualname__}", _code(kind)]
    if not isinstance(operation, keras.layers.Layer):
        settings = {name: value for name, value in vars(operation).items() if not name.startswith("_")}
        return _digest(*about, _content({name: value for name, value in settings.items() if name != "name"}))
    state = operation.variables if passes > 1 else operation.weights
    about += [_array(as_array(variable)) for variable in state]
    about += [f"{part.trainable} {part.dtype_policy.name}" for part in operation._flatten_layers()]
    return _digest(*about, _content(_config(operation)))


def _config(layer: keras.layers.Layer) -> Any:
    try:
        return layer.get_config()
    except Exception:  # anybody's code, which may fail in any way: then the features are made anew, never found again
        raise _UnknownError from None


def _code(kind: type) -> str:
    if kind.__module__.partition(".")[0] in ("keras", "keras_hub", "finetune"):
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        raise _UnknownError from None


def _content(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_content(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"[{','.join(_content(one) for one in value)}]"
    if isinstance(value, np.ndarray) or tf.is_tensor(value):
        return _array(as_array(value))
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, keras.DTypePolicy):
        return value.name
    raise _UnknownError


def _array(array: Any) -> str:
    array = array if isinstance(array, np.ndarray) else np.asarray(array)
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    parts = [array] if not array.ndim else (array[at : at + _CHUNK_ROWS] for at in range(0, len(array), _CHUNK_ROWS))
    for part in parts:
        digest.update(_text(part) if array.dtype.kind in "OUS" else np.ascontiguousarray(part).view(np.uint8).data)
    return digest.hexdigest()


def _text(array: np.ndarray) -> bytes:
    each = [one if isinstance(one, bytes) else str(one).encode() for one in array.reshape(-1)]
    return b"".join(len(one).to_bytes(8, "little") + one for one in each)


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()[:32]
