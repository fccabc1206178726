"""Layers that run in inference mode while the model around them trains.

Keras couples inference mode to `layer.trainable`, and for BatchNormalization alone: a frozen Dropout still drops. Here
a layer is called with `training=False` whatever the model is called with: its instance gets a `call` that passes that
on. An attribute of the instance is not part of the layer's config, so a model that is saved meanwhile is unchanged.
`tests/test_keras_private.py` checks what this takes for granted: Keras calls a layer through `self.call`, and passes
`training` by name.
"""

import inspect
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any

import keras

from finetune.groups.layer_tree import Leaf, layers_in_order


def run_in_inference_mode(layers: Iterable[keras.layers.Layer]) -> None:
    """Calls these layers with `training=False` from now on. Functions that are already traced are not changed."""
    for layer in layers:
        layer.call = partial(_call_for_inference, layer.call, vars(layer).get("call"))


def undo_inference_mode(layers: Iterable[keras.layers.Layer]) -> None:
    """Undoes `run_in_inference_mode`; a `call` that other code had put on the instance before comes back."""
    for layer in layers:
        call: Any = vars(layer).get("call")
        if isinstance(call, partial) and call.func is _call_for_inference:
            _, replaced = call.args
            del layer.call  # the class's own `call` shows again
            if replaced is not None:
                layer.call = replaced


def _call_for_inference(call: Any, replaced: Any, /, *inputs: Any, training: Any = None, **more: Any) -> Any:
    """Calls a layer without the `training` it got; `replaced` is only carried along for `undo_inference_mode`."""
    return call(*inputs, training=False, **more)


# Their `call` has a `training` argument for quantization-aware training alone.
_SAME_IN_TRAINING = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)


def differs_in_training(layer: keras.layers.Layer) -> bool:
    """Whether the layer may compute something else in training than in inference."""
    return type(layer) not in _SAME_IN_TRAINING and "training" in inspect.signature(type(layer).call).parameters


def layers_in_frozen_part(
    model: keras.Model, leaves: Sequence[Leaf], frozen: Collection[int]
) -> list[keras.layers.Layer]:
    """Returns the layers that differ in training and belong to the frozen part of a model, in the model's order.

    A layer belongs to the frozen part in two cases:

    - all weights below it are frozen, or those of a layer that holds it, as the dropout inside a frozen attention;
    - it has no weights and lies between frozen layers: there are layers with weights before it, all of them are
      frozen, and so is the next one after it.

    So the dropout between a frozen body and a trained head still drops, which is for the head's sake, and so does
    random augmentation of the inputs.

    Args:
        model: A built model.
        leaves: All of its weights.
        frozen: The `id` of every frozen variable.
    """
    layers = layers_in_order(model)
    is_frozen: dict[int, list[bool]] = {}  # of the weights that a layer owns itself
    for leaf in leaves:
        is_frozen.setdefault(id(leaf.owner), []).append(id(leaf.variable) in frozen)
    inside: set[int] = set()
    for layer in layers:
        parts = [layer, *layers_in_order(layer)]
        below = [flag for part in parts for flag in is_frozen.get(id(part), [])]
        if below and all(below):
            inside |= {id(part) for part in parts}
    # One entry a layer: whether its own weights are all frozen; `None` for a layer without any.
    whole = [all(is_frozen[id(layer)]) if id(layer) in is_frozen else None for layer in layers]
    selected = []
    for position, layer in enumerate(layers):
        before = [flag for flag in whole[:position] if flag is not None]
        after = next((flag for flag in whole[position + 1 :] if flag is not None), False)
        is_between = whole[position] is None and not layers_in_order(layer) and bool(before) and all(before) and after
        if (id(layer) in inside or is_between) and differs_in_training(layer):
            selected.append(layer)
    return selected
