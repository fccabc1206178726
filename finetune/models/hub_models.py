"""A SavedModel as a whole Keras model: an input, the module as the layer `hub`, one output."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import FinetuneError, reason
from finetune.models.heads import one_output
from finetune.models.hub import HubLayer
from finetune.models.modules import describe


def make_hub_model(
    handle: str | Path,
    *,
    signature: str | None = None,
    output_key: str | None = None,
    input_shape: Sequence[int] | None = None,
    output_shape: Sequence[int | None] | None = None,
) -> keras.Model:
    """Makes a functional model of a TensorFlow Hub module or SavedModel.

    Args:
        handle: See `HubLayer`, as for the other arguments.
        signature: Which signature to run.
        output_key: Which of several outputs to return.
        input_shape: Shape of one row, where the SavedModel leaves it open.
        output_shape: Shape of one row of the output, where it does not tell it.

    Raises:
        FinetuneError: If it does not take a single input or does not give a single output.
    """
    layer = HubLayer(handle, signature=signature, output_key=output_key, output_shape=output_shape, name="hub")
    key, spec = _one_input(layer.module.inputs, str(handle))
    shape = _row_shape(spec, input_shape, str(handle))
    x = keras.Input(shape, dtype=spec.dtype.name, name="inputs")
    try:
        outputs = layer(x if key is None else {key: x})
    except (ValueError, TypeError) as error:
        raise FinetuneError(f"{reason(error)}.") from error
    return keras.Model(x, one_output(outputs, None, str(handle)), name="hub_model")


def _one_input(specs: Any, name: str) -> tuple[str | None, tf.TensorSpec]:
    by_key: dict[Any, Any] = dict(specs) if isinstance(specs, Mapping) else {None: specs}
    key, spec = next(iter(by_key.items()))
    if len(by_key) != 1 or not isinstance(spec, tf.TensorSpec):
        raise FinetuneError(
            f"A recipe gives one array to the network. `{name}` takes `{describe(specs)}`. Say which `signature` takes "
            "a single one, or use `finetune.HubLayer` in a `builder` of your own."
        )
    return key, spec


def _row_shape(spec: tf.TensorSpec, wanted: Sequence[int] | None, name: str) -> tuple[int | None, ...]:
    saved = None if spec.shape.rank is None else tuple(spec.shape[1:])
    if wanted is None:
        if saved is None:
            raise FinetuneError(
                f"A network's input has a shape. `{name}` does not tell it: give `input_shape` of one row."
            )
        return saved
    if saved is not None and not spec.shape[1:].is_compatible_with(list(wanted)):
        raise FinetuneError(
            f"`input_shape` is one that the SavedModel takes. `{name}` takes `{describe(spec)}`, rows first; received "
            f"`{list(wanted)}` for a row."
        )
    return tuple(wanted)
