"""A SavedModel as a whole Keras model: a single input, the SavedModel as the layer `hub`, a single output."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import FinetuneError, reason
from finetune.models.heads import select_output
from finetune.models.hub import HubLayer
from finetune.models.saved_module import describe


def make_hub_model(
    handle: str | Path,
    *,
    signature: str | None = None,
    output_key: str | None = None,
    input_shape: Sequence[int] | None = None,
    output_shape: Sequence[int | None] | None = None,
    allow_operations: Iterable[str] | None = (),
) -> keras.Model:
    """Makes a functional model from a TensorFlow Hub module or SavedModel.

    Args:
        handle: What `HubLayer` takes, as are the other arguments except `input_shape`.
        signature: Which signature to run.
        output_key: Which of several outputs to return.
        input_shape: Shape of a row of the input, without the batch, where the SavedModel leaves it open.
        output_shape: Shape of a row of the output, where the SavedModel does not contain it.
        allow_operations: Operations that may reach outside of the graph; `None` allows all.

    Raises:
        FinetuneError: If the SavedModel does not take a single input or return a single output, or `input_shape` is
            missing or does not fit.
    """
    layer = HubLayer(
        handle,
        signature=signature,
        output_key=output_key,
        output_shape=output_shape,
        allow_operations=allow_operations,
        name="hub",
    )
    # A call takes a tensor (key `None`) or a dict of tensors, a signature always takes inputs by name.
    key, spec = _single_input(layer.module.inputs, str(handle))
    # Keras needs the shape of the input before it calls the layer, and takes the number of rows to be open.
    shape = _row_shape(spec, input_shape, str(handle))
    x = keras.Input(shape, dtype=spec.dtype.name, name="inputs")
    try:
        outputs = layer(x if key is None else {key: x})
    except (ValueError, TypeError) as error:
        # Keras puts advice for authors of layers before the error that `HubLayer.call` raised.
        cause = ValueError(str(error).rpartition("Error encountered:")[2])
        raise FinetuneError(f"{reason(cause)}.") from error
    return keras.Model(x, select_output(outputs, None, str(handle)), name="hub_model")


def _single_input(specs: Any, name: str) -> tuple[str | None, tf.TensorSpec]:
    by_key: dict[Any, Any] = dict(specs) if isinstance(specs, Mapping) else {None: specs}
    key, spec = next(iter(by_key.items()))
    if len(by_key) != 1 or not isinstance(spec, tf.TensorSpec):
        raise FinetuneError(
            f"A recipe feeds a single array to the network. `{name}` takes `{describe(specs)}`. Name a `signature` "
            "that takes one array, or write a `builder` that uses `finetune.HubLayer`."
        )
    return key, spec


def _row_shape(spec: tf.TensorSpec, shape: Sequence[int] | None, name: str) -> tuple[int | None, ...]:
    """Returns the shape of a row, as the SavedModel or as the user says; both must agree where both say something."""
    saved = None if spec.shape.rank is None else tuple(spec.shape[1:])
    if shape is None:
        if saved is None:
            raise FinetuneError(
                f"A network's input has a known shape. `{name}` was saved without it. Add `input_shape`, the shape of "
                "one row, e.g. `input_shape: [224, 224, 3]`."
            )
        return saved
    if saved is not None and not spec.shape[1:].is_compatible_with(list(shape)):
        raise FinetuneError(
            f"`input_shape` is the shape of a row that the SavedModel takes. `{name}` takes `{describe(spec)}`, batch "
            f"first; received `{list(shape)}` for a row."
        )
    return tuple(shape)
