"""The networks of `keras.applications`, with the preprocessing that each of them wants placed inside the model."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import keras
import numpy as np

from finetune.errors import FinetuneError, did_you_mean, quote, reason

_OURS = ("weights", "include_top", "input_shape", "input_tensor", "include_preprocessing", "pooling", "name")


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
        name: Its name there, e.g. `MobileNetV2`.
        input_shape: Height, width and channels of an image.
        imagenet: Whether to begin with the weights of ImageNet, which Keras downloads, or with fresh ones.
        include_top: Whether it keeps its own head.
        arguments: Further keyword arguments, e.g. `alpha`.

    Returns:
        A functional model; its layers have the network's own names, that of the preprocessing is `preprocessing`.

    Raises:
        FinetuneError: If it does not take the arguments, or the weights cannot be had.
    """
    function = getattr(keras.applications, name)
    arguments = dict(arguments or {})
    _check_arguments(name, function, arguments)
    wanted = {**arguments, "weights": "imagenet" if imagenet else None, "include_top": include_top}
    pixels = keras.Input(tuple(input_shape), name="pixels")
    prepared = preprocess(pixels, module_of(function))
    try:
        network = function(**wanted, input_shape=tuple(input_shape), input_tensor=prepared)
    except Exception as error:
        raise FinetuneError(_complaint(name, imagenet, error)) from error
    return keras.Model(pixels, network.output, name=name.lower())


def _complaint(name: str, imagenet: bool, error: Exception) -> str:
    said = f"{type(error).__name__}: {reason(error)}"
    if imagenet and ("fetch" in str(error) or isinstance(error, OSError)):
        return (
            f"`weights: imagenet` is downloaded by Keras once. For `{name}` it could not be: {said}. Check the "
            "network, or name a local weight file: `weights: path/to/file.weights.h5`."
        )
    return f"`{name}` cannot be made with these arguments. Keras says: {said}. Change them."


def _check_arguments(name: str, function: Any, arguments: Mapping[str, Any]) -> None:
    known = [key for key in inspect.signature(function).parameters if key not in _OURS]
    unknown = [key for key in arguments if key not in known]
    if unknown:
        beside = [key for key in unknown if key in _OURS]
        advice = " It stands beside `application`, not in `arguments`." if beside else did_you_mean(unknown[0], known)
        raise FinetuneError(f"`{name}` takes the arguments {quote(known, limit=9)}, not {quote(unknown)}.{advice}")


def module_of(function: Any) -> ModuleType:
    """Returns the public module of a network, which holds its `preprocess_input`."""
    return importlib.import_module(f"keras.applications.{inspect.unwrap(function).__module__.rpartition('.')[2]}")


def preprocess(pixels: Any, module: ModuleType) -> Any:
    """Applies what the module's `preprocess_input` does, as layers that plain Keras can load."""
    scale, offset, reverses = measure_preprocessing(module)
    x = keras.ops.flip(pixels, axis=-1) if reverses else pixels
    if np.all(scale == 1) and np.all(offset == 0):
        return x
    if np.all(scale == scale[0]) and np.all(offset == offset[0]):
        return keras.layers.Rescaling(float(scale[0]), float(offset[0]), name="preprocessing")(x)
    # `(x - mean) / sqrt(variance)`; with both given the layer has no weights.
    mean, variance = -offset / scale, 1 / np.square(scale)
    return keras.layers.Normalization(mean=mean.tolist(), variance=variance.tolist(), name="preprocessing")(x)


def measure_preprocessing(module: ModuleType) -> tuple[np.ndarray, np.ndarray, bool]:
    """Measures what `preprocess_input` does to each channel, rather than keep a table of it.

    Returns:
        Scale and offset of each output channel, in float64, and whether the order of the channels is reversed.
    """
    black, single = np.zeros((1, 1, 3)), np.eye(3)[:, None, None, :]
    offset = module.preprocess_input(black)[0, 0]
    change = np.stack([module.preprocess_input(one.copy())[0, 0] - offset for one in single])
    return change.sum(axis=0), offset, bool(change[0, 2])


def top_layers(
    name: str, network: keras.Model, *, input_shape: Sequence[int], arguments: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Returns the names of the layers that the whole network has and `network`, made without its top, has not."""
    whole = make_application(name, input_shape=input_shape, include_top=True, arguments=arguments)
    kept = {layer.name for layer in network.layers}
    return tuple(layer.name for layer in whole.layers if layer.name not in kept)
