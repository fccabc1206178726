"""Variables that a layer holds and Keras does not see: no optimizer trains them, and no file of weights holds them.

Keras takes `keras.Variable`s and what `add_weight` makes for weights of a layer, but neither a `tf.Variable` nor the
variables of a `tf.Module` or of a loaded SavedModel that is an attribute of the layer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import quote
from finetune.groups.layer_tree import layers_in_order
from finetune.keras_private import is_trackable, stored_value


def untracked_variables(model: keras.layers.Layer) -> list[str]:
    """Returns the attributes of layers that hold trainable variables which are no weights of the model.

    Args:
        model: A Keras model or layer.

    Returns:
        Names such as `scaling.factor`, of the layer and its attribute.
    """
    known = {id(held) for weight in model.variables for held in (weight, stored_value(weight))}
    names = []
    for layer in (model, *layers_in_order(model)):
        for attribute, value in list(vars(layer).items()):
            # TensorFlow keeps its own list of what a layer refers to.
            if not attribute.startswith("_self_") and any(id(v) not in known for v in _trainable_variables(value)):
                names.append(f"{layer.name}.{attribute}")
    return names


def advice_on_untracked(model: keras.layers.Layer) -> list[str]:
    """Returns a sentence about such attributes; none where there are no such."""
    names = untracked_variables(model)
    if not names:
        return []
    return [
        f"Keras does not see the trainable variables in {quote(names)}: they are neither trained nor saved with the "
        "weights. Make them with `self.add_weight` or `keras.Variable`; for a SavedModel use `finetune.HubLayer`."
    ]


def _trainable_variables(value: Any) -> Iterator[tf.Variable]:
    if isinstance(value, tf.Variable):
        if value.trainable:
            yield value
    elif isinstance(value, Mapping):
        for part in list(value.values()):
            yield from _trainable_variables(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _trainable_variables(part)
    elif is_trackable(value) and not isinstance(value, keras.layers.Layer | keras.optimizers.Optimizer):
        held = getattr(value, "trainable_variables", None)
        yield from (v for v in (held if isinstance(held, list | tuple) else ()) if isinstance(v, tf.Variable))
