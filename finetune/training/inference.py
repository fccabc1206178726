"""Layers that are called in inference mode while the rest of the model trains.

Keras couples this to `layer.trainable`, and for BatchNormalization alone: a frozen dropout still drops. Here a layer is
called with `training=False` whatever the model is called with, by a `call` of the instance that passes that on. It is
no part of the layer's config, so a model saved meanwhile is as it always was. `tests/test_keras_contract.py` holds what
that takes for granted of Keras: that a layer is called through `self.call`, with `training` by name.
"""

import inspect
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

import keras

from finetune.groups.layer_tree import LayerTree, layers_in_order


def rest(layers: Iterable[keras.layers.Layer]) -> None:
    """Calls these layers in inference mode from now on. What was traced before is not changed."""
    for layer in layers:
        layer.call = partial(_infer, layer.call, vars(layer).get("call"))


def release(layers: Iterable[keras.layers.Layer]) -> None:
    """Undoes `rest`; a `call` of the instance that somebody else has put there comes back."""
    for layer in layers:
        call: Any = vars(layer).get("call")
        if isinstance(call, partial) and call.func is _infer:
            del layer.call
            if call.args[1] is not None:
                layer.call = call.args[1]


def _infer(call: Any, before: Any, /, *inputs: Any, training: Any = None, **more: Any) -> Any:
    return call(*inputs, training=False, **more)


# They take `training` for the sake of quantization alone.
_INDIFFERENT = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)


def takes_training(layer: keras.layers.Layer) -> bool:
    """Whether the layer may behave differently in training."""
    return type(layer) not in _INDIFFERENT and "training" in inspect.signature(type(layer).call).parameters


def frozen_parts(model: keras.Model, tree: LayerTree, frozen: Collection[int]) -> list[keras.layers.Layer]:
    """Returns the layers that behave differently in training, and belong to what is frozen.

    These are, in the model's order of layers: a layer all of whose weights are frozen, and all of its parts, weights or
    not, such as the dropout inside a frozen attention; and a layer without weights between frozen ones, that is, where
    every layer with weights before it is frozen, there is one, and so is the next one after it. So the dropout between
    a frozen body and a trained head drops, as it does for the head, and so does random augmentation of the inputs.

    Args:
        model: A built model.
        tree: Its layer tree.
        frozen: `id` of every weight that is frozen.
    """
    layers = layers_in_order(model)
    own: dict[int, list[bool]] = {}
    for leaf in tree.leaves:
        own.setdefault(id(leaf.owner), []).append(id(leaf.variable) in frozen)
    inside: set[int] = set()
    for layer in layers:
        parts = [layer, *layers_in_order(layer)]
        below = [one for part in parts for one in own.get(id(part), [])]
        if below and all(below):
            inside |= {id(part) for part in parts}
    places = [all(own[id(layer)]) if id(layer) in own else None for layer in layers]
    found = []
    for place, layer in enumerate(layers):
        before = [one for one in places[:place] if one is not None]
        after = next((one for one in places[place + 1 :] if one is not None), False)
        between = places[place] is None and not layers_in_order(layer) and bool(before) and all(before) and after
        if (id(layer) in inside or between) and takes_training(layer):
            found.append(layer)
    return found
