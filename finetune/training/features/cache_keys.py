"""Keys of features: a hash of everything that their values depend on.

A key is a Merkle hash: the key of a value hashes the step that computes it together with the keys of the values that
the step reads, down to the bytes of the data. So features on disk are used again exactly where the same bits would be
computed again, and two models with the same first layers share the keys of those.
"""

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune import keras_private
from finetune.checksum import as_array
from finetune.data.rows import Rows
from finetune.kernels.native_kernels import active_kernels
from finetune.training.features.graph import Step

_CHUNK_ROWS = 4096  # hashed at once, so that data on disk are not read into memory as a whole
_PLAIN = (str, int, float, complex, bool, bytes, type(None), slice, range, np.dtype, tf.DType, np.generic, type(...))


def feature_keys(
    steps: Iterable[Step], data: Any, *, inference: frozenset[int] = frozenset(), passes: int = 1
) -> dict[int, str] | None:
    """Returns a key for every value that the steps compute, by its number.

    A key depends on the bytes of the data; on the calls that lead to the value; on the layers' configs, weights and
    types, and on which of them are frozen; on the code of layers that are not Keras' own; on the versions of Keras and
    TensorFlow, and on the kernels; and, if there are several passes, on the random state of the layers.

    Args:
        steps: The steps in front of a cut, in order.
        data: The inputs by number, as arrays.
        inference: `id`s of layers that run in inference mode.
        passes: How many passes over the data there will be.

    Returns:
        The keys; `None` if they depend on something whose content cannot be hashed, such as a function in a config.
    """
    try:
        keys = {number: _digest("data", _content(array)) for number, array in data.items()}
        for step in steps:
            step_digest = _step(step, id(step.operation) in inference, passes)
            read = [keys[number] for number in step.reads]
            # A step with several outputs has a key for each.
            for position, number in enumerate(step.writes):
                keys[number] = _digest(step_digest, *read, str(position), str(passes))
    except _UnknownError:
        return None
    return keys


class _UnknownError(Exception):
    """Something has no content that can be hashed."""


def _step(step: Step, infers: bool, passes: int) -> str:
    parts = [keras.__version__, tf.__version__, active_kernels(), str(infers), _content(list(step.constants))]
    operation = step.operation
    if operation is None:
        return _digest("in", *parts)
    kind = type(operation)
    parts += [f"{kind.__module__}.{kind.__qualname__}", _code(kind)]
    if not isinstance(operation, keras.layers.Layer):
        # An operation such as `ops.flip` has no config; its arguments are attributes. Its name is counted by Keras and
        # differs from run to run.
        settings = {name: value for name, value in vars(operation).items() if not name.startswith("_")}
        return _digest(*parts, _content({name: value for name, value in settings.items() if name != "name"}))
    # The bytes of the weights, not their names: two runs that restored the same weights share their features.
    # `variables` are the weights and the seeds; seeds matter only where random layers are run several times.
    state = operation.variables if passes > 1 else operation.weights
    parts += [_array(as_array(variable)) for variable in state]
    parts += [
        f"{layer.trainable} {layer.dtype_policy.name}"
        for layer in keras_private.sublayers(operation, include_self=True)
    ]
    try:
        config = operation.get_config()
    except Exception:  # a user's code may raise anything; then the features are computed anew in every run
        raise _UnknownError from None
    return _digest(*parts, _content(config))


def _code(kind: type) -> str:
    """Returns the source of a class; of the packages whose version is known it says nothing new."""
    if kind.__module__.partition(".")[0] in ("keras", "keras_hub", "finetune"):
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        raise _UnknownError from None


def _content(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_content(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, (set, frozenset)):  # their order differs from process to process
        return "{" + ",".join(sorted(_content(item) for item in value)) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_content(item) for item in value)}]"
    if isinstance(value, Rows) and value.fingerprint:
        return value.fingerprint
    if isinstance(value, np.ndarray) or tf.is_tensor(value):
        return _array(as_array(value))
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, keras.DTypePolicy):
        return value.name
    # Anything else, such as a function, may change without a trace: then there is no key.
    raise _UnknownError


def _array(array: Any) -> str:
    array = array if isinstance(array, np.ndarray) else np.asarray(array)
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    starts = range(0, len(array), _CHUNK_ROWS) if array.ndim else ()
    for part in [array[start : start + _CHUNK_ROWS] for start in starts] if array.ndim else [array]:
        digest.update(_text(part) if array.dtype.kind in "OUS" else np.ascontiguousarray(part).view(np.uint8).data)
    return digest.hexdigest()


def _text(array: np.ndarray) -> bytes:
    """Returns the strings with their lengths in front, so that `["ab", "c"]` and `["a", "bc"]` differ."""
    strings = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1)]
    return b"".join(len(string).to_bytes(8, "little") + string for string in strings)


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()[:32]
