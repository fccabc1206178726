"""What the image converter of a KerasHub preset does to pixels, as a part of the network."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import keras
from keras import layers

_LAYER = "image_converter"


def image_converter(preset: str) -> Any:
    """Returns the image converter that a preset brings; `None` where it brings none.

    Args:
        preset: A local folder, or a handle that KerasHub can resolve.
    """
    import keras_hub  # optional, and takes seconds; the network of the preset has been loaded with it

    if Path(preset).is_dir() and not (Path(preset) / "image_converter.json").is_file():
        return None
    with suppress(ValueError, OSError):  # a handle of a preset without one
        return keras_hub.layers.ImageConverter.from_preset(preset)
    return None


def converted(
    network: keras.Model, shape: tuple[int | None, ...], converter: Any, size: Sequence[int] | None = None
) -> keras.Model:
    """Returns a network that takes pixels from 0 to 255, and scales them as the converter does.

    Images are resized where they are read, to the size that the network takes.

    Args:
        network: A network with a single input for images.
        shape: Shape of that input for a row, `(height, width, channels)`.
        converter: What `image_converter` returned.
        size: Height and width for a network that leaves them open; by default those of the converter.
    """
    height, width = size or converter.image_size or (None, None)
    x = keras.Input((shape[0] or height, shape[1] or width, shape[2]), name="inputs")
    scale, offset = (converter.scale, converter.offset)
    scaled = layers.Rescaling(1.0 if scale is None else scale, 0.0 if offset is None else offset, name=_LAYER)(x)
    return keras.Model(x, network(scaled), name="preset_model")


def converter_sentence(network: Any) -> str:
    """Returns how a network scales pixels by the converter of its preset, as a sentence; empty where it has none."""
    layer = next((each for each in getattr(network, "layers", ()) if each.name == _LAYER), None)
    if layer is None:
        return ""
    shape = " x ".join("any" if size is None else str(size) for size in network.input_shape[1:])
    return (
        f"preset: its image converter is inside the network, which takes pixels from 0 to 255, {shape}: they are "
        f"multiplied with {_shown(layer.scale)}, and {_shown(layer.offset)} is added"
    )


def _shown(values: Any) -> str:
    return ", ".join(f"{value:.4g}" for value in values) if isinstance(values, list | tuple) else f"{values:.4g}"
