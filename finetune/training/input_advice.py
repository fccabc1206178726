"""Advice on pixels that were scaled before they reach a network that scales them itself."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from finetune.keras_private import sublayers

_SMALL = 0.05  # a scale that brings 255 to no more than about 10
_SCALED = 2.0  # the greatest value of pixels that were scaled to 0..1 or -1..1


def advice_on_pixels(model: Any, application: str | None, high: float) -> Iterator[str]:
    """Yields a sentence where the network takes pixels from 0 to 255, and the inputs are scaled already.

    Args:
        model: The network.
        application: Name of the network in `keras.applications`, whose preprocessing is inside the model; or `None`.
        high: The greatest value of the images that it is fed with.
    """
    name = application or next((layer.name for layer in sublayers(model) if _scales_pixels(layer)), None)
    if name and high <= _SCALED:
        yield (
            f"`{name}` takes pixels from 0 to 255, since its preprocessing is inside the model, and the inputs reach "
            f"{high:.3g} at most: they would be scaled twice. Remove `data.value_range`, or do not scale them"
        )


def _scales_pixels(layer: Any) -> bool:
    """Whether a layer brings pixels from 0 to 255 to small numbers, as the first layers of many networks do."""
    if not isinstance(layer, keras.layers.Rescaling) or float(np.max(np.abs(layer.scale))) > _SMALL:
        return False
    try:
        output: Any = layer.output
        return len(output.shape) == 4
    except (AttributeError, ValueError):  # a layer that was called in no graph, or in several
        return True
