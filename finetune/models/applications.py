"""The networks of `keras.applications`, with the preprocessing that each of them needs inside the model."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import keras
import numpy as np

from finetune.errors import FinetuneError, did_you_mean, quote, reason
from finetune.machine_failures import raise_machine_failure

# Arguments of the Keras functions that `make_application` sets itself.
_SET_HERE = ("weights", "include_top", "input_shape", "input_tensor", "include_preprocessing", "pooling", "name")


def make_application(
    name: str,
    *,
    input_shape: Sequence[int],
    imagenet: bool = False,
    include_top: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> keras.Model:
    """Makes a network of `keras.applications` that takes raw pixels, 0 to 255.

    Args:
        name: Name of the function in `keras.applications`, e.g. `MobileNetV2`.
        input_shape: Height, width and channels of an image.
        imagenet: Whether to start from the ImageNet weights, which Keras downloads, or from fresh weights.
        include_top: Whether the network includes its classification head.
        arguments: Further keyword arguments of that function, e.g. `alpha`.

    Returns:
        A functional model on the network's layers, which keep their names; the preprocessing is the layer
        `preprocessing`.

    Raises:
        FinetuneError: If the function does not accept the arguments, or the weights cannot be downloaded.
    """
    function = getattr(keras.applications, name)
    arguments = dict(arguments or {})
    _check_arguments(name, function, arguments)
    # `include_preprocessing` exists for some networks only; with the layers here all of them take raw pixels.
    pixels = keras.Input(tuple(input_shape), name="pixels")
    try:
        network = function(
            **arguments,
            weights="imagenet" if imagenet else None,
            include_top=include_top,
            input_shape=tuple(input_shape),
            input_tensor=preprocess(pixels, module_of(function)),
        )
    except Exception as error:
        raise_machine_failure(error, f"Making `{name}`")
        raise FinetuneError(_message(name, imagenet, error)) from error
    return keras.Model(pixels, network.output, name=name.lower())


def _message(name: str, imagenet: bool, error: Exception) -> str:
    cause = f"{type(error).__name__}: {reason(error)}"
    if imagenet and ("fetch" in str(error) or isinstance(error, OSError)):
        return (
            f"Keras downloads `weights: imagenet` once. It could not download those of `{name}`: {cause}. Check the "
            "network, or name a local weight file: `weights: path/to/file.weights.h5`."
        )
    return f"`{name}` cannot be made with these arguments: Keras raised {cause}. Change them."


def _check_arguments(name: str, function: Any, arguments: Mapping[str, Any]) -> None:
    known = [key for key in inspect.signature(function).parameters if key not in _SET_HERE]
    unknown = [key for key in arguments if key not in known]
    if unknown:
        has_own_key = any(key in _SET_HERE for key in unknown)
        advice = (
            " Write it next to `application`, not in `arguments`." if has_own_key else did_you_mean(unknown[0], known)
        )
        raise FinetuneError(f"`{name}` accepts the arguments {quote(known, limit=9)}, not {quote(unknown)}.{advice}")


def module_of(function: Any) -> ModuleType:
    """Returns the public module of a network, which has its `preprocess_input`."""
    return importlib.import_module(f"keras.applications.{inspect.unwrap(function).__module__.rpartition('.')[2]}")


def preprocess(pixels: Any, module: ModuleType) -> Any:
    """Applies what the module's `preprocess_input` does, as layers that plain Keras can load.

    A function would have to be saved as a `Lambda`, which Keras does not load in safe mode.
    """
    scale, offset, reverses = measure_preprocessing(module)
    x = keras.ops.flip(pixels, axis=-1) if reverses else pixels
    if np.all(scale == 1) and np.all(offset == 0):
        return x
    if np.all(scale == scale[0]) and np.all(offset == offset[0]):
        return keras.layers.Rescaling(float(scale[0]), float(offset[0]), name="preprocessing")(x)
    # scale * x + offset = (x - mean) / sqrt(variance); a Normalization with both set has no weights.
    mean, variance = -offset / scale, 1 / np.square(scale)
    return keras.layers.Normalization(mean=mean.tolist(), variance=variance.tolist(), name="preprocessing")(x)


def measure_preprocessing(module: ModuleType) -> tuple[np.ndarray, np.ndarray, bool]:
    """Measures what `preprocess_input` does to each channel, so that no table of the networks has to be kept.

    Returns:
        Scale and offset of each output channel, in float64, and whether the order of the channels is reversed.
    """
    # `preprocess_input` is affine: black gives the offsets, a pixel with a single channel of 1 the scale of that
    # channel.
    black, single = np.zeros((1, 1, 3)), np.eye(3)[:, None, None, :]
    offset = module.preprocess_input(black)[0, 0]
    change = np.stack([module.preprocess_input(pixel.copy())[0, 0] - offset for pixel in single])
    return change.sum(axis=0), offset, bool(change[0, 2])  # is red seen in the last output channel?
