"""Layers that are not trainable while the layers inside them are, because Keras forgot the latter.

A file, a pickle and a copy say `trainable = False` of the layers that have a config there. A layer that makes layers
itself, as `MultiHeadAttention`, `LSTM` and `Bidirectional` do, makes them trainable, and Keras trains them: in
`MultiHeadAttention(2, 2, trainable=False)`, and in every such layer that was frozen before its model was saved.
"""

import keras

from finetune.keras_private import layer_variables, sublayers, was_made_frozen


def is_freezing_forgotten(layer: keras.layers.Layer) -> bool:
    """Whether a layer came with `trainable=False` and everything inside it trains nevertheless.

    Where something inside is frozen, `trainable` was set later, which reaches everything inside, and what trains there
    was opened again.
    """
    if layer.trainable or was_made_frozen(layer) is False:
        return False
    inside = [variable for part in sublayers(layer) for variable in layer_variables(part)[0]]
    return bool(inside) and all(variable.trainable for variable in inside)


def freeze_again(model: keras.layers.Layer) -> None:
    """Freezes what is inside of the layers whose freezing Keras forgot, moving statistics included."""
    for layer in sublayers(model):
        if is_freezing_forgotten(layer):
            # First `True`: TensorFlow's `AutoTrackable` skips an attribute that already has the value.
            layer.trainable = True
            layer.trainable = False
